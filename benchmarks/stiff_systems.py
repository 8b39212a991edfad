"""Stiff systems: error against time, next to what others would use.

Every panel is one problem, solved at relative tolerances from 1e-3 to 1e-8; absolute
ones are a hundredth of that, and for Robertson's kinetics, whose second species is
small, a ten-thousandth. The error is that of the final state, the largest difference
relative to the largest entry of its species, against a reference at 1e-11: SciPy's
`Radau` for Robertson's kinetics; elsewhere diffrax's explicit `Dopri8`, which has no
equations to solve, and takes up to a hundred thousand steps.

- Robertson's kinetics, 1 to 10,000 of them side by side, each with its own start: the
  published benchmark of diffsol;
- Allen–Cahn and Brusselator in one dimension, n = 1000;
- SciML's Brusselator in two dimensions, N = 32;
- Gray–Scott on 64×64 cells;
- a tree of 2000 compartments, each with FitzHugh and Nagumo's model of a neuron;
- 16 initial conditions of some of them at a tolerance of 1e-6: `vmap`, or one after the
  other; the error is that of the first.

Sides: diffrax as it is, where that ends in time; `structured` with Kvaerno5 and
Kvaerno3; SciPy's `BDF` and `Radau` with `jac_sparsity`, whose vector field is NumPy;
CVODES through CasADi, which compiles nothing, with a sparse matrix; for Robertson's
kinetics diffsol's BDF through pydiffsol, which compiles for up to some seconds. Our
compile times stand apart, once a problem, as tolerances are arguments. A side that took
longer than ten seconds at one tolerance is not asked for the next.

`--only "Gray–Scott"` runs a single problem; the text is a regular expression.
"""

import functools as ft
import re
import time
from collections.abc import Callable, Iterable, Iterator

import diffrax as dfx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import scipy.integrate
import scipy.interpolate
import scipy.sparse

import lineax_ext as lxe
from lineax_ext._structure.detect import detect

from ._stiff_problems import Problem, problems, robertson, robertson_diffsl
from .harness import absent, Case, peer, Side


def diffrax_side(problem: Problem, solver: dfx.AbstractSolver):
    def run(y0, rtol):
        solution = dfx.diffeqsolve(
            dfx.ODETerm(lambda t, y, args: problem.field(t, y)),
            solver,
            0.0,
            problem.end,
            None,
            y0,
            stepsize_controller=dfx.PIDController(rtol=rtol, atol=rtol * problem.atol),
            max_steps=None,
            throw=False,
        )
        assert solution.ys is not None
        return solution.ys[-1], solution.stats["num_steps"]

    return run


def compiled(problem: Problem, solver: dfx.AbstractSolver, batch: bool = False) -> Side:
    """`diffrax_side`, compiled once for all tolerances."""
    run = diffrax_side(problem, solver)
    run = jax.vmap(run, in_axes=(0, None)) if batch else run
    y0 = np.broadcast_to(problem.y0, ((BATCH,) if batch else ()) + problem.y0.shape)
    jax.clear_caches()
    begin = time.perf_counter()
    call = jax.jit(run).lower(y0, np.array(1e-3)).compile()
    seconds = time.perf_counter() - begin
    return Side(
        lambda *args: jax.block_until_ready(call(*args)),
        host=True,
        compile_seconds=seconds,
    )


@ft.lru_cache(maxsize=1)
def _sparsity(field: Callable, n: int) -> scipy.sparse.csc_matrix:
    y = jnp.zeros(n)
    operator = lx.JacobianLinearOperator(lambda y, args: field(0.0, y), y)
    pattern = detect(operator)
    rows, cols = (pattern.rows, pattern.cols) if pattern else np.indices((n, n))
    ones = np.ones(np.size(rows))
    entries = ones, (np.ravel(rows), np.ravel(cols))
    return scipy.sparse.csc_matrix(entries, (n, n))


def scipy_side(problem: Problem, method: str):
    def run(y0, rtol):
        out = scipy.integrate.solve_ivp(
            lambda t, y: problem.field(t, y, np),
            (0.0, problem.end),
            y0,
            method,
            rtol=float(rtol),
            atol=float(rtol) * problem.atol,
            jac_sparsity=_sparsity(problem.field, len(y0)),
        )
        return out.y[:, -1], len(out.t) - 1

    return run


def cvodes_side(problem: Problem) -> Side:
    def make(casadi):
        n = len(problem.y0)

        @ft.cache
        def system():
            t, y = casadi.SX.sym("t"), casadi.SX.sym("y", n)
            parts = np.array([y[i] for i in range(n)], dtype=object)
            field = problem.field(t, parts, np)
            return {"t": t, "x": y, "ode": casadi.vertcat(*field)}

        @ft.cache
        def solver(rtol):
            options = {
                "reltol": rtol,
                "abstol": rtol * problem.atol,
                "max_num_steps": 10**6,
                "show_eval_warnings": False,
                "disable_internal_warnings": True,
                # In the plane "csparse" takes 63 s where this takes 2.5.
                "linear_solver": "qr",
            }
            return casadi.integrator("f", "cvodes", system(), 0.0, problem.end, options)

        def run(y0, rtol):
            try:
                return np.asarray(solver(float(rtol))(x0=y0)["xf"]).reshape(-1), None
            except NotImplementedError:
                raise
            except RuntimeError:  # it gave up
                return np.full_like(y0, np.inf), None

        return run

    return peer("casadi", make)._replace(may_fail=True)


def diffsol_side(problem: Problem) -> Side:
    """Robertson's kinetics alone: diffsol compiles a language of its own."""

    def make(pydiffsol):
        @ft.cache
        def system():
            code = robertson_diffsl(len(problem.y0) // 3)
            return pydiffsol.Ode(
                code, matrix_type=pydiffsol.faer_sparse, ode_solver=pydiffsol.bdf
            )

        def run(y0, rtol):
            ode = system()
            ode.rtol, ode.atol = float(rtol), float(rtol) * problem.atol
            out = ode.solve(y0[0::3].copy(), problem.end)
            return out.ys[:, -1].reshape(3, -1).T.reshape(-1), len(out.ts) - 1

        return run

    return peer("pydiffsol", make)


def one_by_one(side: Side) -> Side:
    """A batch by a side that knows of none."""
    if side.fn is None:
        return side
    fn = side.fn

    def run(y0s, rtol):
        y, _ = zip(*[fn(y0, rtol) for y0 in y0s])
        return np.stack(y), None

    return side._replace(fn=run)


class Patience:
    """Sides that were slow at one tolerance are left out at the next."""

    def __init__(self):
        self.slow: dict[str, str] = {}

    def with_side(self, name: str, side: Side) -> Side:
        if name in self.slow:
            return absent(self.slow[name])
        if side.fn is None:
            return side
        fn = side.fn

        def run(y0, rtol):
            begin = time.perf_counter()
            out = fn(y0, rtol)
            seconds = time.perf_counter() - begin
            if seconds > _PATIENCE:
                self.slow[name] = f"took {seconds:.0f} s at rtol = {rtol:.0e}"
            return out

        return side._replace(fn=run)


@ft.cache
def _reference(name: str) -> np.ndarray:
    problem = dict(problems())[name]
    if problem.field is not robertson:
        run = jax.jit(diffrax_side(problem, dfx.Dopri8()))
        return np.asarray(run(problem.y0, 1e-11)[0])
    if len(problem.y0) <= 300:
        return scipy_side(problem, "Radau")(problem.y0, 1e-11)[0]
    # Side by side they know nothing of each other: a smooth function of one number, by
    # interpolation between Chebyshev points. It is exact to 1e-12.
    one = problem.y0[0::3]
    middle, half = (one[0] + one[-1]) / 2, (one[-1] - one[0]) / 2
    points = middle + half * np.cos(np.pi * (np.arange(12) + 0.5) / 12)
    y0 = (points[:, None] * [1.0, 0.0, 0.0]).reshape(-1)
    found = scipy_side(problem, "Radau")(y0, 1e-11)[0].reshape(-1, 3)
    polynomial = scipy.interpolate.BarycentricInterpolator(points, found)
    return polynomial(one).reshape(-1)


def error_of(name: str, problem: Problem, batch: bool = False):
    shape = (-1, problem.species) if problem.interleaved else (problem.species, -1)
    axis = 0 if problem.interleaved else 1

    def error(out) -> float:
        expected = _reference(name).reshape(shape)
        y = np.asarray(out[0])[0] if batch else np.asarray(out[0])
        difference = np.abs(y.reshape(shape) - expected)
        scale = np.max(np.abs(expected), axis=axis, keepdims=True)
        return float(np.max(difference / scale))

    return error


# Above, a dense matrix takes minutes.
_DENSE = 300
_PATIENCE = 10.0  # seconds
BATCH = 16
STRUCTURED = {
    "structured(Kvaerno5())": lxe.structured(dfx.Kvaerno5()),
    "structured(Kvaerno3())": lxe.structured(dfx.Kvaerno3()),
}


def work_precision(name: str, problem: Problem, rtols: Iterable[float]):
    plain = absent("it would take minutes")
    if len(problem.y0) <= _DENSE:
        plain = compiled(problem, dfx.Kvaerno5())
    sides = {
        "Kvaerno5()": plain,
        **{k: compiled(problem, solver) for k, solver in STRUCTURED.items()},
        "SciPy BDF": Side(scipy_side(problem, "BDF"), host=True, may_fail=True),
        "SciPy Radau": Side(scipy_side(problem, "Radau"), host=True, may_fail=True),
        "CVODES": cvodes_side(problem),
    }
    if problem.field is robertson:
        sides["diffsol"] = diffsol_side(problem)
    patience = Patience()
    for rtol in rtols:
        yield Case(
            panel=name,
            x=rtol,
            xlabel="rtol",
            sides={k: patience.with_side(k, side) for k, side in sides.items()},
            args=(problem.y0, np.array(rtol)),
            error=error_of(name, problem),
            # Methods differ in how the error of a step adds up to that of the end.
            tolerance=max(1e-4, 1e3 * rtol),
            steps=lambda out: out[1],
            seconds=1.0,
            work_precision=True,
        )


def batch(name: str, problem: Problem) -> Case:
    y0 = problem.y0 * np.linspace(1, 1.1, BATCH)[:, None]
    scipy_bdf = Side(scipy_side(problem, "BDF"), host=True, may_fail=True)
    return Case(
        panel=f"{BATCH} initial conditions, rtol = 1e-6",
        x=name,
        sides={
            "SciPy BDF": one_by_one(scipy_bdf),
            "CVODES": one_by_one(cvodes_side(problem)),
            **{k: compiled(problem, s, batch=True) for k, s in STRUCTURED.items()},
        },
        args=(y0, np.array(1e-6)),
        error=error_of(name, problem, batch=True),
        tolerance=1e-3,
        seconds=1.0,
    )


# For the README.
PICTURES = {
    "stiff_blocks": ("Robertson × 100", "Robertson × 1000", "Robertson × 10000"),
    "stiff_grids": (
        "Brusselator, 32 × 32",
        "Gray–Scott, 64 × 64",
        "neuron, 2000 compartments",
    ),
}
_IN_BATCHES = ("Robertson × 100", "Allen–Cahn, n = 1000", "Brusselator, n = 1000")


def cases(quick: bool, only: str = "") -> Iterator[Case]:
    rtols = (1e-4,) if quick else (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
    for name, problem in problems():
        if re.search(only, name) and (not quick or name == "Robertson × 10"):
            yield from work_precision(name, problem, rtols)
    for name, problem in problems():
        batches = re.search(only, f"batches, {name}")
        if name in _IN_BATCHES and not quick and batches:
            yield batch(name, problem)
