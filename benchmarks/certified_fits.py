"""With `scale="jacobian"`, the certified fits of NIST are found from either start.

The nonlinear regression problems of the NIST Statistical Reference Datasets, from their
two official starting points, by

- `lxe.LevenbergMarquardt` with `scale="jacobian"`, and with `geodesic=True`, too;
- `optx.LevenbergMarquardt`;
- SciPy's `least_squares(method="lm", x_scale="jac")`, which is MINPACK.

All get the same residuals, exact Jacobians and 5000 steps; tolerances are 1e-10, and
1e-14 for MINPACK, which also stops on the sum of squares. The error is that of the
parameters, max |y − y_certified| / |y_certified|. Above 1e-5 a side has failed; only
ours must not.
"""

import pathlib
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import scipy.optimize

import lineax_ext as lxe

from .harness import Case, Side


# The problems that the tests check, too.
sys.path.append(str(pathlib.Path(__file__).parents[1] / "tests"))
import nist  # noqa: E402  # pyright: ignore


def solve(problem: nist.Problem, solver):
    def run(y):
        sol = optx.least_squares(
            problem.residual, solver, y, max_steps=5000, throw=False
        )
        return sol.value, sol.stats["num_steps"]

    return run


def scipy_solve(problem: nist.Problem, method: str = "lm"):
    residual = jax.jit(problem.residual)
    jacobian = jax.jit(jax.jacfwd(problem.residual))

    def run(y):
        with np.errstate(all="ignore"):
            out = scipy.optimize.least_squares(
                lambda y: np.asarray(residual(y)),
                y,
                lambda y: np.asarray(jacobian(y)),  # pyright: ignore
                method=method,  # pyright: ignore
                x_scale="jac",
                xtol=1e-14,
                ftol=1e-14,
                gtol=1e-14,
                max_nfev=5000,
            )
        return out.x, out.nfev

    return run


def sides(problem: nist.Problem) -> dict[str, Side]:
    theirs = optx.LevenbergMarquardt(1e-10, 1e-10)
    ours = lxe.LevenbergMarquardt(1e-10, 1e-10, scale="jacobian")
    bent = lxe.LevenbergMarquardt(1e-10, 1e-10, scale="jacobian", geodesic=True)
    return {
        "SciPy lm": Side(scipy_solve(problem), host=True, may_fail=True),
        "optimistix": Side(solve(problem, theirs), may_fail=True),
        "lineax_ext": Side(solve(problem, ours)),
        "geodesic": Side(solve(problem, bent), may_fail=True),
    }


def cases(quick: bool) -> Iterator[Case]:
    names = ("BoxBOD", "Misra1a") if quick else sorted(nist.PROBLEMS)
    for start in (0, 1):
        for name in names:
            problem = nist.PROBLEMS[name]
            certified = problem.certified

            def error(out, certified=certified) -> float:
                return float(np.max(np.abs(np.asarray(out[0]) / certified - 1)))

            yield Case(
                panel=f"start {start + 1}",
                x=name,
                sides=sides(problem),
                args=(jnp.asarray(problem.starts[start]),),
                error=error,
                tolerance=1e-5,
                steps=lambda out: int(out[1]),
                seconds=0.3,
            )
