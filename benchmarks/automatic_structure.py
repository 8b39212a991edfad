"""diffrax and optimistix in O(n): the structure of the Jacobian is found by itself.

Nothing is said of any structure: the one side passes `AutoStructuredLinearSolver`, the
other one lets diffrax or optimistix choose, which is `lx.AutoLinearSolver`, and dense.

- Allen–Cahn equation by Kvaerno5, tridiagonal. Also with `TaggedLinearSolver`, where
  the structure is told;
- Brusselator, a dictionary of two arrays, by Kvaerno5: a band once it is interleaved;
- three species of stiff kinetics (Robertson's) that diffuse, of shape (n/3, 3);
- a boundary-value problem by `optx.Newton`.

All adaptive steps are taken, and both sides take the same ones. The error is the
distance from the answer of the dense side (from that with tags, where the dense one
would take too long), relative to the largest entry; for Newton it is the residual.
"""

from collections.abc import Callable, Iterator

import diffrax as dfx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
from jaxtyping import Array, Float

import lineax_ext as lxe

from .harness import absent, Case, Goal


DENSE, AUTO, TAGGED = "dense", "AutoStructuredLinearSolver", "TaggedLinearSolver"
SOLVERS = {
    DENSE: lx.AutoLinearSolver(well_posed=None),
    AUTO: lxe.AutoStructuredLinearSolver(),
    TAGGED: lxe.TaggedLinearSolver(lx.Tridiagonal(), lx.tridiagonal_tag),
}


def laplacian(x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """On the unit interval, with no flux through the ends."""
    walls = [(1, 1)] + [(0, 0)] * (x.ndim - 1)
    return jnp.diff(jnp.pad(jnp.diff(x, axis=0), walls), axis=0) * len(x) ** 2


def allen_cahn(t, u, args):
    return 0.005 * laplacian(u) + u - u**3


def brusselator(t, y, args):
    u, v = y["u"], y["v"]
    reaction = u**2 * v
    return {
        "u": 1 + reaction - 4 * u + 0.02 * laplacian(u),
        "v": 3 * u - reaction + 0.02 * laplacian(v),
    }


def kinetics(t, y, args):
    a, b, c = y.T
    slow, fast, fastest = 0.04 * a, 1e4 * b * c, 3e7 * b**2
    rates = [fast - slow, slow - fast - fastest, fastest]
    return 1e-3 * laplacian(y) + jnp.stack(rates, axis=1)


def start(problem: Callable, n: int):
    """The initial state, and the time to which it is followed."""
    if problem is allen_cahn:
        return jnp.sin(jnp.linspace(0, 20, n)), 0.5
    if problem is brusselator:
        x = jnp.linspace(0, 1, n // 2)
        return {"u": 1 + jnp.sin(2 * jnp.pi * x), "v": jnp.full(n // 2, 3.0)}, 0.1
    x = jnp.linspace(0, 1, n // 3)
    return jnp.stack([1 - x / 2, 0 * x, x / 2], axis=1), 1.0


def integrate(problem: Callable, end: float, linear_solver: lx.AbstractLinearSolver):
    root_finder = dfx.with_stepsize_controller_tols(dfx.VeryChord)(
        linear_solver=linear_solver
    )

    def run(y0):
        solution = dfx.diffeqsolve(
            dfx.ODETerm(problem),
            dfx.Kvaerno5(root_finder=root_finder),
            0.0,
            end,
            None,
            y0,
            stepsize_controller=dfx.PIDController(rtol=1e-6, atol=1e-8),
        )
        return solution.ys, solution.stats["num_steps"]

    return run


def boundary_value(u: Float[Array, " n"], args) -> Float[Array, " n"]:
    """ε u'' − u³ + sin 9x = 0, u = 0 at both ends."""
    padded = jnp.pad(u, 1)
    second = (padded[2:] - 2 * u + padded[:-2]) * (len(u) + 1) ** 2
    return 0.01 * second - u**3 + jnp.sin(jnp.linspace(0, 9, len(u)))


def newton(linear_solver: lx.AbstractLinearSolver):
    def run(u):
        solver = optx.Newton(rtol=1e-8, atol=1e-8, linear_solver=linear_solver)
        solution = optx.root_find(boundary_value, solver, u, throw=False)
        return solution.value, solution.stats["num_steps"]

    return run


def distance(expected):
    def error(out) -> float:
        pairs = zip(*map(jax.tree_util.tree_leaves, (out[0], expected)))
        return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in pairs)

    return error


def cases(quick: bool) -> Iterator[Case]:
    def case(panel, n, make, y0, error, factor, names=(DENSE, AUTO)):
        large = n > 1000 and make is not newton or n > 2000
        sides = {name: make(SOLVERS[name]) for name in names}
        if large:
            sides[DENSE] = absent("it would take minutes")
        return Case(
            panel=panel,
            x=n,
            sides=sides,
            args=(y0,),
            error=error,
            steps=lambda out: int(out[1]),
            goals=() if factor is None or large else (Goal(AUTO, DENSE, factor),),
            seconds=2.0,
        )

    # The goal is for the size that stands with it.
    problems = (
        ("Kvaerno5, Allen–Cahn", allen_cahn, (250, 500, 1000, 4000, 16000), 1000, 100),
        ("Kvaerno5, Brusselator", brusselator, (250, 500, 1000), 1000, 12),
        ("Kvaerno5, kinetics and diffusion", kinetics, (225, 450, 900), 900, 8),
    )
    for panel, problem, sizes, goal, factor in problems:
        tridiagonal = problem is allen_cahn
        for n in (30,) if quick else sizes:
            y0, end = start(problem, n)
            make = lambda solver, problem=problem, end=end: integrate(
                problem, end, solver
            )
            referee = SOLVERS[TAGGED if tridiagonal else DENSE]
            expected, _ = jax.jit(make(referee))(y0)
            names = (DENSE, AUTO, TAGGED) if tridiagonal else (DENSE, AUTO)
            yield case(
                panel, n, make, y0, distance(expected), factor if n == goal else None,
                names,
            )  # fmt: skip

    for n in (30,) if quick else (500, 1000, 2000, 8000, 32000):
        residual = lambda out: float(np.max(np.abs(boundary_value(out[0], None))))
        yield case(
            "optx.Newton, boundary-value problem", n, newton, jnp.zeros(n), residual,
            200 if n == 2000 else None,
        )  # fmt: skip
