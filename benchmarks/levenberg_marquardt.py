"""A Levenberg–Marquardt step costs one Jacobian and one factorisation, or neither.

A fixed number of steps (the tolerances are too tight to be met) of optimistix's solvers
and of those with the same names here, from the same start:

- `LevenbergMarquardt`: networks of tanh units fitted to data (tall), and the extended
  Rosenbrock function (square). Both sides take the same steps;
- `IndirectLevenbergMarquardt`: a network of tanh units. The steps agree to the
  tolerance of the inner root find, a hundredth;
- tiny problems, compiling included: the time of the first call.

The referee of a direct solve is optimistix's answer: ‖y − y_ref‖ / ‖y_ref‖. That of an
indirect one is the sum of squares: how much larger it is than the one optimistix gets.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array, Float

import lineax_ext as lxe

from .harness import Case, Goal, Side


def network(y: Float[Array, " n"], args) -> Float[Array, " m"]:
    """One hidden layer of (n − 1)/5 units, three inputs, less the target."""
    inputs, target = args
    layers = y[:-1].reshape(5, -1)
    hidden = jnp.tanh(inputs @ layers[:3] + layers[3])
    return hidden @ layers[4] + y[-1] - target


def rosenbrock(y: Float[Array, " n"], args) -> Float[Array, " n"]:
    odd, even = y[::2], y[1::2]
    return jnp.concatenate([10 * (even - odd**2), 1 - odd])


def solve(fn: Callable, solver, steps: int):
    def run(y, args):
        sol = optx.least_squares(fn, solver, y, args, max_steps=steps, throw=False)
        return sol.value, sol.stats["num_steps"]

    return run


def with_compiling(fn) -> Side:
    def first_call(*args):
        jax.clear_caches()
        return jax.block_until_ready(jax.jit(fn)(*args))

    return Side(first_call, host=True)


def cases(quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    theirs, ours = "optimistix", "lineax_ext"

    def case(panel, x, xlabel, fn, y, args, name, steps, factor, direct=True):
        solvers = [getattr(package, name)(1e-30, 1e-30) for package in (optx, lxe)]
        runs = [solve(fn, solver, steps) for solver in solvers]
        reference, _ = jax.jit(runs[0])(y, args)
        loss = lambda y: float(np.sum(np.asarray(fn(y, args)) ** 2))

        def error(out) -> float:
            if not direct:
                return loss(out[0]) / loss(reference) - 1
            distance = np.linalg.norm(out[0] - reference)
            return float(distance / np.linalg.norm(reference))

        return Case(
            panel=panel,
            x=x,
            xlabel=xlabel,
            sides=dict(zip((theirs, ours), runs)),
            args=(y, args),
            error=error,
            tolerance=1e-6 if direct else 1.0,
            steps=lambda out: int(out[1]),
            goals=() if factor is None else (Goal(ours, theirs, factor),),
        )

    def fit(m, n):
        inputs = rng.uniform(-1, 1, (m, 3))
        target = np.sin(4 * inputs[:, 0]) * np.cos(3 * inputs[:, 1]) + inputs[:, 2]
        y = rng.standard_normal(n)
        return jnp.asarray(y), (jnp.asarray(inputs), jnp.asarray(target))

    sizes = ((200, 21),) if quick else ((10_000, 101), (2_000, 201), (1_000, 51))
    for m, n in sizes:
        y, args = fit(m, n)
        yield case(
            "LevenbergMarquardt, tanh network", f"{m}×{n}", "", network, y, args,
            "LevenbergMarquardt", 20, None if m == 1_000 else 1.5,
        )  # fmt: skip

    n = 20 if quick else 150
    y = jnp.tile(jnp.array([-1.2, 1.0]), n // 2)
    yield case(
        "LevenbergMarquardt, extended Rosenbrock", f"{n}×{n}", "", rosenbrock, y, None,
        "LevenbergMarquardt", 20, 1.3,
    )  # fmt: skip

    m, n = (100, 11) if quick else (1_000, 51)
    y, args = fit(m, n)
    yield case(
        "IndirectLevenbergMarquardt, tanh network", f"{m}×{n}", "", network, y, args,
        "IndirectLevenbergMarquardt", 20, 8, direct=False,
    )  # fmt: skip

    for fn, m, n in ((rosenbrock, 2, 2), (rosenbrock, 10, 10), (network, 30, 6)):
        if fn is rosenbrock:
            y, args = jnp.tile(jnp.array([-1.2, 1.0]), n // 2), None
        else:
            y, args = fit(m, n)
        direct = case(
            "LevenbergMarquardt, the first call, compiling included", f"{m}×{n}", "",
            fn, y, args, "LevenbergMarquardt", 20, 0.95,
        )  # fmt: skip
        sides = {name: with_compiling(run) for name, run in direct.sides.items()}
        yield Case(**{**vars(direct), "sides": sides})
        panel = "LevenbergMarquardt, a compiled call"
        yield Case(**{**vars(direct), "panel": panel, "goals": ()})
