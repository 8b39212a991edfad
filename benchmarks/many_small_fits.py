"""A batch of small fits, next to optimistix; and no lane of it goes to and fro.

Sums of two exponential functions, a exp(−b t) + c exp(−d t) with noise, fitted in one
`vmap`:

- a fixed number of steps (the tolerances are too tight to be met) of the
  `LevenbergMarquardt` of optimistix and of the one here, which take the same steps;
- `scale="jacobian"`, from poor starts, until all have ended. Steps are those of the
  lane that takes the most; the error is the share of the fits that have not ended by
  then. (A lane that goes to and fro would hold all others until the last step.)

The referee of the first is optimistix's answer: ‖y − y_ref‖ / ‖y_ref‖, the largest over
the lanes.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array, Float

import lineax_ext as lxe

from .harness import Case, Goal


def residual(y: Float[Array, "4"], args) -> Float[Array, " m"]:
    t, data = args
    return y[0] * jnp.exp(-y[1] * t) + y[2] * jnp.exp(-y[3] * t) - data


def data(lanes: int, m: int, rng) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The parameters, and what `residual` is to fit."""
    t = np.linspace(0, 4, m)
    low, high = (1, 0.3, 1, 1.5), (2, 0.6, 2, 3)
    y = rng.uniform(low, high, (lanes, 4))
    a, b, c, d = y.T[:, :, None]
    exact = a * np.exp(-b * t) + c * np.exp(-d * t)
    noise = 0.01 * rng.standard_normal((lanes, m))
    return y, (np.broadcast_to(t, (lanes, m)), exact + noise)


def fits(solver, steps: int):
    def one(y, args):
        sol = optx.least_squares(
            residual, solver, y, args, max_steps=steps, throw=False
        )
        late = sol.result == optx.RESULTS.nonlinear_max_steps_reached
        return sol.value, sol.stats["num_steps"], late

    return jax.vmap(one)


def cases(quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    theirs, ours = "optimistix", "lineax_ext"
    sizes = ((100, 20),) if quick else ((1000, 50), (1000, 200), (100, 1000))
    most = lambda out: int(np.max(out[1]))
    for lanes, m in sizes:
        y, args = data(lanes, m, rng)
        start = y * (1 + 0.3 * rng.standard_normal(y.shape))
        sides = {
            name: fits(package.LevenbergMarquardt(1e-30, 1e-30), 20)
            for name, package in ((theirs, optx), (ours, lxe))
        }
        reference = np.asarray(jax.jit(sides[theirs])(start, args)[0])

        def error(out, reference=reference) -> float:
            distances = np.linalg.norm(out[0] - reference, axis=1)
            return float(np.max(distances / np.linalg.norm(reference, axis=1)))

        yield Case(
            panel="twenty steps of a batch of fits of m×4",
            x=f"{lanes} of {m}×4",
            xlabel="",
            sides=sides,
            args=jax.tree.map(jnp.asarray, (start, args)),
            error=error,
            tolerance=1e-6,
            steps=most,
            goals=(Goal(ours, theirs, 2),),
        )

    lanes = 100 if quick else 1000
    _, args = data(lanes, 50, rng)
    start = rng.uniform((0, -1, 0, -1), (4, 6, 4, 6), (lanes, 4))
    solver = lxe.LevenbergMarquardt(1e-8, 1e-8, scale="jacobian")
    yield Case(
        panel='scale="jacobian", from poor starts, to the end',
        x=f"{lanes} of 50×4",
        xlabel="",
        sides={ours: fits(solver, 256)},
        args=jax.tree.map(jnp.asarray, (start, args)),
        error=lambda out: float(np.mean(out[2])),
        tolerance=0.0,
        steps=most,
    )
