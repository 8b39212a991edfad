"""Stiff systems: error against time, next to what others would use.

Every panel is one problem, solved at relative tolerances from 1e-3 to 1e-8; absolute
ones are a hundredth of that, and for Robertson's kinetics, whose second species is
small, a ten-thousandth. The error is that of the final state against SciPy's
`Radau` at 1e-11: the largest difference, relative to the largest entry of its species.

- Robertson's kinetics, 1 to 10,000 of them side by side, each with its own start: the
  published benchmark of diffsol;
- Allen–Cahn and Brusselator in one dimension, n = 1000;
- SciML's Brusselator in two dimensions, N = 32;
- Gray–Scott on 64×64 cells;
- a tree of 2000 compartments, each with FitzHugh and Nagumo's model of a neuron.

Sides: diffrax as it is, where that ends in time; `structured` with Kvaerno5 and
Kvaerno3; SciPy's `BDF` and `Radau` with `jac_sparsity`, whose vector field is NumPy;
CVODES through CasADi, which compiles nothing, with a sparse matrix. Compile times stand
apart; those of the other sides are none.
"""

import functools as ft
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import diffrax as dfx
import jax.numpy as jnp
import lineax as lx
import numpy as np
import scipy.integrate
import scipy.sparse

import lineax_ext as lxe
from lineax_ext._structure.detect import detect

from .harness import absent, Case, peer, Side


class Problem(NamedTuple):
    """y' = field(t, y), of a flat y: of arrays of JAX, NumPy, or symbols of CasADi."""

    field: Callable[..., Any]
    y0: np.ndarray
    end: float
    species: int  # interleaved, or one after the other
    interleaved: bool = False
    atol: float = 1e-2  # in units of rtol


def robertson(t, y, np=jnp):
    a, b, c = y[0::3], y[1::3], y[2::3]
    slow, fast, fastest = 0.04 * a, 1e4 * b * c, 3e7 * b**2
    rates = [fast - slow, slow - fast - fastest, fastest]
    return np.stack(rates, axis=1).reshape(-1)


def _line(x, np):
    return np.diff(np.pad(np.diff(x), 1)) * len(x) ** 2


def allen_cahn(t, u, np=jnp):
    return 0.005 * _line(u, np) + u - u**3


def brusselator(t, y, np=jnp):
    u, v = y[: len(y) // 2], y[len(y) // 2 :]
    reaction = u**2 * v
    return np.concatenate(
        [
            1 + reaction - 4 * u + 0.02 * _line(u, np),
            3 * u - reaction + 0.02 * _line(v, np),
        ]
    )


def _square(x, np):
    """The sum of the four neighbours' differences, on a torus."""
    around = [np.roll(x, shift, axis) for shift in (-1, 1) for axis in (0, 1)]
    return sum(around) - 4 * x


def brusselator_2d(t, y, np=jnp):
    u, v = y.reshape(2, 32, 32)
    i = _GRID
    inside = (i[:, None] - 0.3) ** 2 + (i[None] - 0.6) ** 2 <= 0.1**2
    source = 5.0 * inside * (t >= 1.1)
    reaction, diffusion = u**2 * v, 10.0 * 31**2
    return np.stack(
        [
            1 + reaction - 4.4 * u + diffusion * _square(u, np) + source,
            3.4 * u - reaction + diffusion * _square(v, np),
        ]
    ).reshape(-1)


_GRID = np.linspace(0, 1, 32)


def gray_scott(t, y, np=jnp):
    u, v = y.reshape(2, 64, 64)
    reaction = u * v**2
    return np.stack(
        [
            0.16 * _square(u, np) - reaction + 0.035 * (1 - u),
            0.08 * _square(v, np) + reaction - 0.1 * v,
        ]
    ).reshape(-1)


@ft.cache
def _neighbours(n: int) -> np.ndarray:
    """The parent and the two children of each compartment; itself for one missing."""
    i = np.arange(n)
    parents = np.random.default_rng(0).integers(np.maximum(0, i - 40) // 2, i // 2 + 1)
    out = np.repeat(i[:, None], 3, axis=1)
    used = np.zeros(n, int)
    for child in range(1, n):
        parent = parents[child]
        while used[parent] >= 2:  # the next one with a free place
            parent = (parent + 1) % child
        used[parent] += 1
        out[child, 0], out[parent, used[parent]] = parent, child
    return out


def neuron(t, y, np=jnp):
    v, w = y[: len(y) // 2], y[len(y) // 2 :]
    at = _neighbours(len(v))
    current = sum(v[at[:, k]] - v for k in range(3))
    return np.concatenate(
        [50.0 * current + v - v**3 / 3 - w, 0.08 * (v + 0.7 - 0.8 * w)]
    )


def problems() -> Iterator[tuple[str, Problem]]:
    for count in (1, 10, 100, 1000, 10_000):
        one = np.linspace(0.9, 1.1, count) if count > 1 else np.ones(1)
        y0 = (one[:, None] * [1.0, 0.0, 0.0]).reshape(-1)
        yield f"Robertson × {count}", Problem(robertson, y0, 100.0, 3, True, 1e-4)
    x = np.linspace(0, 1, 500)
    u = np.sin(np.linspace(0, 20, 1000))
    yield "Allen–Cahn, n = 1000", Problem(allen_cahn, u, 0.5, 1)
    y0 = np.concatenate([1 + np.sin(2 * np.pi * x), np.full(500, 3.0)])
    yield "Brusselator, n = 1000", Problem(brusselator, y0, 1.0, 2)
    hump = 22 * (_GRID * (1 - _GRID)) ** 1.5
    y0 = np.stack([np.tile(hump, (32, 1)), np.tile(27 / 22 * hump[:, None], (1, 32))])
    yield "Brusselator, 32 × 32", Problem(brusselator_2d, y0.reshape(-1), 11.5, 2)
    y0 = np.zeros((2, 64, 64))
    y0[0] = 1 - 0.5 * _patch(64)
    y0[1] = 0.25 * _patch(64)
    yield "Gray–Scott, 64 × 64", Problem(gray_scott, y0.reshape(-1), 100.0, 2)
    y0 = np.concatenate(
        [np.where(np.arange(2000) < 20, 1.5, -1.2), np.full(2000, -0.6)]
    )
    yield "neuron, 2000 compartments", Problem(neuron, y0, 20.0, 2)


def _patch(n: int) -> np.ndarray:
    x = np.linspace(-1, 1, n)
    return np.exp(-20 * (x[:, None] ** 2 + x[None] ** 2))


def diffrax_side(problem: Problem, solver: dfx.AbstractSolver, rtol: float):
    def run(y0):
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


@ft.lru_cache(maxsize=1)
def _sparsity(field: Callable, n: int) -> scipy.sparse.csc_matrix:
    y = jnp.zeros(n)
    operator = lx.JacobianLinearOperator(lambda y, args: field(0.0, y), y)
    pattern = detect(operator)
    rows, cols = (pattern.rows, pattern.cols) if pattern else np.indices((n, n))
    ones = np.ones(np.size(rows))
    entries = ones, (np.ravel(rows), np.ravel(cols))
    return scipy.sparse.csc_matrix(entries, (n, n))


def scipy_side(problem: Problem, method: str, rtol: float):
    sparsity = _sparsity(problem.field, len(problem.y0))

    def run(y0):
        out = scipy.integrate.solve_ivp(
            lambda t, y: problem.field(t, y, np),
            (0.0, problem.end),
            y0,
            method,
            rtol=rtol,
            atol=rtol * problem.atol,
            jac_sparsity=sparsity,
        )
        return out.y[:, -1], len(out.t) - 1

    return run


def cvodes_side(problem: Problem, rtol: float) -> Side:
    def make(casadi):
        n = len(problem.y0)
        t, y = casadi.SX.sym("t"), casadi.SX.sym("y", n)
        parts = np.array([y[i] for i in range(n)], dtype=object)
        field = problem.field(t, parts, np)
        system = {"t": t, "x": y, "ode": casadi.vertcat(*field)}
        options = {
            "reltol": rtol,
            "abstol": rtol * problem.atol,
            "max_num_steps": 10**6,
            "show_eval_warnings": False,
            "disable_internal_warnings": True,
            "linear_solver": "csparse",
        }
        solve = casadi.integrator("f", "cvodes", system, 0.0, problem.end, options)

        def run(y0):
            try:
                return np.asarray(solve(x0=y0)["xf"]).reshape(-1), None
            except RuntimeError:  # it gave up
                return np.full_like(y0, np.inf), None

        return run

    return peer("casadi", make)._replace(may_fail=True)


@ft.lru_cache(maxsize=1)
def _reference(name: str) -> np.ndarray:
    problem = dict(problems())[name]
    return scipy_side(problem, "Radau", 1e-11)(problem.y0)[0]


def error_of(name: str, problem: Problem):
    shape = (-1, problem.species) if problem.interleaved else (problem.species, -1)
    axis = 0 if problem.interleaved else 1

    def error(out) -> float:
        expected = _reference(name).reshape(shape)
        difference = np.abs(np.asarray(out[0]).reshape(shape) - expected)
        scale = np.max(np.abs(expected), axis=axis, keepdims=True)
        return float(np.max(difference / scale))

    return error


# Above, a dense matrix takes minutes.
_DENSE = 300


def case(name: str, problem: Problem, rtol: float) -> Case:
    plain = diffrax_side(problem, dfx.Kvaerno5(), rtol)
    small = len(problem.y0) <= _DENSE
    sides = {
        "Kvaerno5()": plain if small else absent("it would take minutes"),
        "structured(Kvaerno5())": diffrax_side(
            problem, lxe.structured(dfx.Kvaerno5()), rtol
        ),
        "structured(Kvaerno3())": diffrax_side(
            problem, lxe.structured(dfx.Kvaerno3()), rtol
        ),
        "SciPy BDF": Side(scipy_side(problem, "BDF", rtol), host=True, may_fail=True),
        "SciPy Radau": Side(
            scipy_side(problem, "Radau", rtol), host=True, may_fail=True
        ),
        "CVODES": cvodes_side(problem, rtol),
    }
    return Case(
        panel=name,
        x=rtol,
        xlabel="rtol",
        sides=sides,
        args=(problem.y0,),
        error=error_of(name, problem),
        # Methods differ in how the error of a step adds up to that of the end.
        tolerance=max(1e-4, 1e3 * rtol),
        steps=lambda out: out[1],
        seconds=1.0,
        work_precision=True,
    )


def cases(quick: bool) -> Iterator[Case]:
    for name, problem in problems():
        if quick and name != "Robertson × 10":
            continue
        for rtol in (1e-4,) if quick else (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8):
            yield case(name, problem, rtol)
