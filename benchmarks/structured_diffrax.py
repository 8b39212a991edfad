"""Gradients through diffrax in O(n): `structured`, next to diffrax as it is.

The gradient of a sum of squares of the final state with respect to a diffusivity and to
the initial state, through Kvaerno5 with adaptive steps and diffrax's default adjoint.
Both sides take the same steps.

- Allen–Cahn equation, tridiagonal; to n = 100,000, where the cost is linear in n;
- Brusselator, a dictionary of two arrays.

The error is the distance from the gradient of the plain side, relative to its largest
entry; where that one would take too long, from that with `TaggedLinearSolver`, whose
tridiagonal matrix is told; the algorithm is the same, so that this tests the pattern
alone. For the larger Brusselators there is no referee: they are compared with
themselves, and an error of 0 says nothing. Compile times, tracing included, are the
first call.
"""

from collections.abc import Callable, Iterator

import diffrax as dfx
import jax
import jax.numpy as jnp
import lineax as lx

import lineax_ext as lxe

from .automatic_structure import allen_cahn, brusselator, distance, laplacian, start
from .harness import absent, Case, Goal, Side


PLAIN, STRUCTURED = "Kvaerno5()", "structured(Kvaerno5())"
TAGGED = lxe.TaggedLinearSolver(lx.Tridiagonal(), lx.tridiagonal_tag)


def diffusing(problem: Callable):
    """`problem` with a little more diffusion, by `args`."""

    def term(t, y, args):
        more = jax.tree_util.tree_map(lambda x: args * laplacian(x), y)
        return jax.tree_util.tree_map(jnp.add, problem(t, y, None), more)

    return term


def gradient(problem: Callable, end: float, solver: dfx.AbstractSolver):
    def loss(y0, diffusion):
        solution = dfx.diffeqsolve(
            dfx.ODETerm(diffusing(problem)),
            solver,
            0.0,
            end,
            None,
            y0,
            diffusion,
            stepsize_controller=dfx.PIDController(rtol=1e-6, atol=1e-8),
            max_steps=256,
        )
        leaves = jax.tree_util.tree_leaves(solution.ys)
        return sum(jnp.mean(x**2) for x in leaves), solution.stats["num_steps"]

    return jax.grad(loss, argnums=(0, 1), has_aux=True)


def cases(quick: bool) -> Iterator[Case]:
    problems = (
        ("Allen–Cahn", allen_cahn, (60, 125, 250, 500, 1000, 10_000, 100_000), 250),
        ("Brusselator", brusselator, (60, 120, 240, 1000, 10_000), 120),
    )
    for name, problem, sizes, largest_plain in problems[: 1 if quick else None]:
        for n in (30,) if quick else sizes:
            y0, end = start(problem, n)
            args = (y0, jnp.asarray(1e-3))
            by = lambda solver, p=problem, end=end: gradient(p, end, solver)
            sides: dict[str, Side | Callable] = {
                PLAIN: by(dfx.Kvaerno5()),
                STRUCTURED: by(lxe.structured(dfx.Kvaerno5())),
            }
            referee = by(dfx.Kvaerno5())
            # Three calls of a minute each: once, for the goal.
            if n > largest_plain and not (problem is allen_cahn and n == 500):
                sides[PLAIN] = absent("it would take minutes")
                tridiagonal = problem is allen_cahn
                told = lxe.structured(dfx.Kvaerno5(), TAGGED)
                referee = by(told if tridiagonal else lxe.structured(dfx.Kvaerno5()))
            expected, _ = jax.jit(referee)(*args)
            yield Case(
                panel=f"gradient, Kvaerno5, {name}",
                x=n,
                sides=sides,
                args=args,
                error=distance(expected),
                steps=lambda out: int(out[1]),
                goals=(Goal(STRUCTURED, PLAIN, 200),) if n == 500 else (),
                seconds=2.0,
            )
