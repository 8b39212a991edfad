"""Triangles of many narrow matrices at once."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
import scipy.optimize

import lineax_ext as lxe
from lineax_ext._factor.lanes import triangularise
from lineax_ext._factor.triangular_stack import condense, solve_condensed


def _random(rng, shape, dtype):
    x = rng.standard_normal(shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        x = x + 1j * rng.standard_normal(shape)
    return x.astype(dtype)


@pytest.mark.parametrize("m, n", ((3, 3), (20, 4), (60, 1), (20, 8)))
@pytest.mark.parametrize("dtype", (np.float64, np.float32, np.complex128))
def test_triangle(m, n, dtype):
    a = _random(np.random.default_rng(0), (256, n + 1, m), dtype)
    a[0] *= 1e-200 if dtype == np.float64 else 1e-20
    a[1] *= 1e200 if dtype == np.float64 else 1e20
    a[2, 0] = 0
    found = np.asarray(jax.jit(jax.vmap(triangularise))(jnp.asarray(a)))
    assert found.shape == (256, n + 1, n)
    scale = np.abs(a).max((1, 2), keepdims=True)
    a, found = a / scale, found / scale
    eps = np.finfo(dtype).eps
    assert np.all(np.triu(found[:, :n], 1) == 0)
    # AᴴA = RᴴR and Aᴴb = Rᴴc, of columns of length √m or so.
    expected = np.conj(a[:, :n]) @ a.swapaxes(1, 2)
    gram = np.conj(found[:, :n]) @ found.swapaxes(1, 2)
    assert np.max(np.abs(gram - expected)) < 20 * m * eps


def test_damped():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((256, 30, 4)), rng.standard_normal((256, 30))
    # Badly scaled, rank-deficient, and √λ on either side of the matrix.
    a[1] *= 1e-12
    a[2, :, 1] = a[2, :, 0]
    root = np.logspace(-3, 9, 256)
    solve = lambda a, b, root: solve_condensed(*condense(a, b), root)
    found = jax.jit(jax.vmap(solve))(a, b, root)
    for x, ai, bi, ri in zip(np.asarray(found), a, b, root):
        u, s, vt = np.linalg.svd(ai, full_matrices=False)
        expected = vt.T @ (s / (s**2 + ri**2) * (u.T @ bi))
        assert np.linalg.norm(x - expected) < 1e-9 * np.linalg.norm(expected)


def test_vmap_of_vmap():
    a = np.random.default_rng(2).standard_normal((3, 256, 4, 9))
    found = np.asarray(jax.jit(jax.vmap(jax.vmap(triangularise)))(a))
    r = np.linalg.qr(a[..., :3, :].swapaxes(-1, -2), mode="r")
    assert (
        np.max(np.abs(np.abs(found[..., :3, :].swapaxes(-1, -2)) - np.abs(r))) < 1e-13
    )


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
