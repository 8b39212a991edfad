"""Batches of small fits."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import scipy.optimize

import lineax_ext as lxe


def test_no_lane_circles():
    """Where the sum of squares is flat to rounding, steps become shorter."""
    t = np.linspace(0, 4, 50)
    cases = itertools.product(
        (0.3, 0.5, 1.0),
        (0.05, 0.1, 0.3),
        ((0.3, 5.3, 3.0, 2.2), (0.3, 3.7, 3.9, 1.7), (1.5, 4.3, 3.6, 2.7)),
    )
    data, starts = [], []
    for rate, amplitude, start in cases:
        data.append(2 * np.exp(-rate * t) + amplitude * np.sin(9 * t))
        starts.append(start)

    def residual(y, data, exp=np.exp):
        return y[0] * exp(-y[1] * t) + y[2] * exp(-y[3] * t) - data

    def fit(start, data):
        solver = lxe.LevenbergMarquardt(1e-8, 1e-8, scale="jacobian")
        fn = lambda y, data: residual(y, data, jnp.exp)
        sol = optx.least_squares(fn, solver, start, data, throw=False)
        return sol.value, sol.result == optx.RESULTS.successful, sol.stats["num_steps"]

    found, successful, steps = jax.jit(jax.vmap(fit))(*map(jnp.array, (starts, data)))
    assert np.all(successful)
    assert np.max(steps) < 100
    for y, b in zip(np.asarray(found), data):
        polished = scipy.optimize.least_squares(residual, y, args=(b,), method="lm")
        loss = 0.5 * np.sum(residual(y, b) ** 2)
        np.testing.assert_allclose(polished.cost, loss, rtol=1e-9)
