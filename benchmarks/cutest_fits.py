"""With `scale="jacobian"`, more of CUTEst's least-squares problems reach their minimum.

The nonlinear equations of CUTEst, as translated by the package sif2jax, that are proper
least-squares problems: at most 30 unknowns, no more unknowns than residuals, no bounds,
not linear, finite where they start. From there, by the sides of `certified_fits`.

The error is how much the sum of squares exceeds the least one found by any side, or by
SciPy's `trf` from the same start, relative to that least one, or, where it vanishes, to
1e-8 of the first. Above 1e-6 a side has failed.
Reported only: a side may fail. Without sif2jax, and with `--quick`, there are only two
problems of NIST.
"""

import importlib
from collections.abc import Container, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .certified_fits import nist, scipy_solve, sides
from .harness import absent, Case


_LONG = ("GULFNE",)


def cutest(
    most: int = 30, only: Container[str] | None = None
) -> Iterator[nist.Problem]:
    """Those of at most `most` unknowns, if among `only`."""
    try:
        sif2jax = importlib.import_module("sif2jax")
    except ImportError:
        return
    for problem in sorted(sif2jax.nonlinear_equations_problems, key=lambda p: p.name):
        if only is not None and problem.name not in only:
            continue
        start, unravel = ravel_pytree(problem.y0)
        start = np.asarray(start, float)
        bounds = jax.tree.leaves(problem.bounds)
        if start.size > most or any(np.any(np.isfinite(x)) for x in bounds):
            continue

        def model(y, x, problem=problem, unravel=unravel):
            del x
            return ravel_pytree(problem.constraint(unravel(y))[0])[0].astype(y.dtype)

        _, inequalities = jax.eval_shape(problem.constraint, problem.y0)
        size = jax.eval_shape(model, jnp.asarray(start), None).size
        if sum(x.size for x in jax.tree.leaves(inequalities)) > 0 or size < start.size:
            continue
        zeros = np.zeros(size)
        yield nist.Problem(
            problem.name, zeros, zeros, model, (start, start), start, np.nan
        )


def least(problem: nist.Problem) -> tuple[float, float]:
    """The sum of squares at the start, and the least one that SciPy finds."""
    residual = jax.jit(problem.residual)
    jacobian = jax.jit(jax.jacfwd(problem.residual))
    start = problem.starts[0]
    at_start = np.asarray(residual(start)), np.asarray(jacobian(start))
    if not all(np.all(np.isfinite(x)) for x in at_start):
        return np.nan, np.nan
    elsewhere = np.asarray(jacobian(1.01 * start + 1e-3))
    if np.allclose(at_start[1], elsewhere, rtol=1e-13, atol=0):
        return np.nan, np.nan  # linear
    first = float(np.sum(at_start[0] ** 2))
    found = [first]
    for method in ("trf", "lm"):
        y, _ = scipy_solve(problem, method)(start)
        found.append(float(np.sum(np.asarray(residual(y)) ** 2)))
    return first, float(np.nanmin(found))


def cases(quick: bool) -> Iterator[Case]:
    problems = [] if quick else list(cutest())
    for problem in problems or [nist.PROBLEMS[name] for name in ("BoxBOD", "Misra1a")]:
        first, best = least(problem)
        if not np.isfinite(first) or first == 0:
            continue
        by_name = {
            k: side._replace(may_fail=True) for k, side in sides(problem).items()
        }
        if problem.name in _LONG:
            by_name["geodesic"] = absent("XLA simplifies its second derivative forever")
        start = jnp.asarray(problem.starts[0])
        squares = jax.jit(lambda y, p=problem: jnp.sum(p.residual(y) ** 2))
        for name in ("optimistix", "lineax_ext", "geodesic"):
            fn = by_name[name].fn
            if fn is None:
                continue
            found, _ = jax.jit(fn)(start)
            best = np.fmin(best, float(squares(found)))

        def error(out, best=best, first=first, squares=squares) -> float:
            excess = float(squares(jnp.asarray(out[0]))) - best
            return excess / max(best, 1e-8 * min(first, 1.0))

        yield Case(
            panel="from the start of CUTEst",
            x=problem.name,
            sides=by_name,
            args=(start,),
            error=error,
            tolerance=1e-6,
            steps=lambda out: int(out[1]),
            seconds=0.3,
        )
