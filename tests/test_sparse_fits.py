"""Fits by `DampedSparse` where something is missing, twice there, or degenerate."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest
import scipy.optimize
from helpers import assert_close, directional, equations, slow

import lineax_ext as lxe


def fitted(residuals, y0, args=None, *, rtol=1e-10, adjoint=None, **kwargs):
    solver = lxe.LevenbergMarquardt(
        rtol, rtol, linear_solver=lxe.DampedSparse(), **kwargs
    )
    adjoint = optx.ImplicitAdjoint() if adjoint is None else adjoint
    return optx.least_squares(
        residuals, solver, y0, args, throw=False, max_steps=100, adjoint=adjoint
    )


def least(residuals, y0, args=None):
    """Half the least sum of squares, by SciPy."""

    def flat(y):
        leaves = jax.tree.leaves(residuals(jnp.asarray(y).reshape(y0.shape), args))
        return np.concatenate([np.ravel(x) for x in leaves])

    tight = dict.fromkeys(("xtol", "ftol", "gtol"), 1e-15)
    return scipy.optimize.least_squares(flat, np.ravel(y0), **tight).cost


def half_square(residuals, y, args=None):
    leaves = jax.tree.leaves(residuals(y, args))
    return 0.5 * sum(float(np.sum(np.abs(x) ** 2)) for x in leaves)


def poses(y, measured):
    """A closed loop of poses (x, y, θ), which nothing holds where it is."""
    ahead = jnp.roll(y, -1, axis=0)
    c, s = jnp.cos(y[:, 2]), jnp.sin(y[:, 2])
    step, turn = ahead - y, ahead[:, 2] - y[:, 2] - measured[:, 2]
    return jnp.stack(
        [
            c * step[:, 0] + s * step[:, 1] - measured[:, 0],
            c * step[:, 1] - s * step[:, 0] - measured[:, 1],
            jnp.arctan2(jnp.sin(turn), jnp.cos(turn)),
        ],
        axis=1,
    )


@pytest.mark.parametrize("scale", (None, slow("jacobian")))
def test_without_an_anchor(scale):
    rng = np.random.default_rng(0)
    count = 8
    measured = np.tile([1.0, 0.0, 2 * np.pi / count], (count, 1))
    measured = jnp.asarray(measured + 0.05 * rng.normal(size=(count, 3)))
    angle = 2 * np.pi * np.arange(count) / count
    y0 = np.stack([np.sin(angle), 1 - np.cos(angle), angle], 1)
    y0 = jnp.asarray(y0 + 0.1 * rng.normal(size=y0.shape))
    fit = fitted(poses, y0, measured, scale=scale)
    assert fit.result == optx.RESULTS.successful
    found, expected = (
        half_square(poses, fit.value, measured),
        least(poses, y0, measured),
    )
    assert abs(found - expected) <= 1e-9 * expected


def degenerate(y, _):
    """Unknown 2 is nowhere, a row is zero, one is there twice, and m < n but for it."""
    first = jnp.exp(y[0]) + y[1] - 2
    return first, first, 0 * y[3], y[3] * y[4] - 1


@pytest.mark.parametrize("scale", (slow(None), "jacobian"))
def test_degenerate(scale):
    y0 = jnp.array([0.5, 0.5, 7.0, 2.0, 1.0])
    fit = fitted(degenerate, y0, scale=scale)
    assert fit.result == optx.RESULTS.successful
    assert half_square(degenerate, fit.value) <= 1e-18
    assert fit.value[2] == 7


@pytest.mark.parametrize("scale", (None, slow("jacobian")))
def test_one_unknown(scale):
    residuals = lambda y, _: (y - 2, 0.5 * y**2)
    fit = fitted(residuals, jnp.array([1.0]), scale=scale)
    # y − 2 + y³ / 2 = 0
    roots = np.roots([0.5, 0, 1, -2])
    (expected,) = roots[np.abs(roots.imag) < 1e-9].real
    assert_close(fit.value, np.array([expected]), 1e-8)


def test_nan_at_a_trial_point():
    # The first step leaves the domain; it is rejected, not taken.
    residuals = lambda y, _: jnp.log(y) - jnp.array([1.0, -2.0, 0.5])
    y0, expected = jnp.full(3, 10.0), np.exp([1.0, -2.0, 0.5])
    assert np.any(np.asarray(y0 - y0 * residuals(y0, None)) < 0)
    fit = fitted(residuals, y0, scale="jacobian")
    assert fit.result == optx.RESULTS.successful
    assert_close(fit.value, expected, 1e-8)


def test_float32():
    residuals = lambda u, data: (jnp.tanh(u) - data, 3 * jnp.diff(u, 2))
    data = np.sin(np.linspace(0, 6, 30)).astype(np.float32)
    fit = fitted(residuals, jnp.zeros(30, jnp.float32), jnp.asarray(data), rtol=1e-4)
    assert fit.value.dtype == np.float32 and fit.result == optx.RESULTS.successful
    expected = least(residuals, np.zeros(30), data.astype(np.float64))
    wide = np.asarray(fit.value, np.float64), data.astype(np.float64)
    found = half_square(residuals, *wide)
    assert abs(found - expected) <= 1e-4 * expected


@pytest.mark.filterwarnings("ignore:Complex support in Optimistix")
def test_complex():
    residuals = lambda z, data: (z**2 - data, 0.1 * (z[1:] - z[:-1]))
    data = jnp.asarray(np.exp(1j * np.linspace(0, 1, 6)) + 0.1j)
    z0 = jnp.full(6, 1 + 0.3j, jnp.complex128)
    fit = fitted(residuals, z0, data)

    def split(y, _):
        z = jax.lax.complex(y[:6], y[6:])
        return [f(x) for x in residuals(z, data) for f in (jnp.real, jnp.imag)]

    y0 = np.concatenate([z0.real, z0.imag])
    expected = least(split, y0)
    assert abs(half_square(residuals, fit.value, data) - expected) <= 1e-9 * expected


def with_a_sum(u, data):
    """Each residual of its own, and one of all unknowns."""
    return jnp.tanh(u) - data, 0.5 * jnp.diff(u), jnp.sum(u) * jnp.ones(1) - 3


def test_a_dense_row():
    n = 120
    data = jnp.asarray(0.5 * np.sin(np.linspace(0, 6, n)))
    fit = fitted(with_a_sum, jnp.zeros(n), data)
    assert fit.result == optx.RESULTS.successful
    expected = least(with_a_sum, np.zeros(n), data)
    found = half_square(with_a_sum, fit.value, data)
    assert abs(found - expected) <= 1e-9 * expected


@pytest.mark.parametrize("jac", (slow("fwd"), "bwd"))
def test_a_dense_row_of_an_operator(jac):
    n = 100
    at, data = jnp.linspace(-1, 1, n), jnp.zeros(n)
    b = with_a_sum(at, data)

    @jax.jit
    def solve(at, b):
        operator = lx.JacobianLinearOperator(with_a_sum, at, data, jac=jac)
        return lxe.damped_solve(operator, b, 0.1, lxe.DampedSparse()).value

    x = solve(at, b)
    matrix = np.concatenate(
        [
            np.diag(1 / np.cosh(at) ** 2),
            0.5 * np.diff(np.eye(n), axis=0),
            np.ones((1, n)),
        ]
    )
    stack = np.concatenate([matrix, np.sqrt(0.1) * np.eye(n)])
    right = np.concatenate([*b, np.zeros(n)])
    assert_close(x, np.linalg.lstsq(stack, right, rcond=None)[0], 1e-11)


def test_a_dense_row_is_no_dense_matrix():
    n = 400
    run = lambda u, data: fitted(with_a_sum, u, data).value
    jaxpr = jax.make_jaxpr(run)(jnp.zeros(n), jnp.zeros(n))
    sizes = [v.aval.size for e in equations(jaxpr.jaxpr) for v in e.outvars]
    assert max(sizes) < n**2 / 4


def test_flat_to_rounding():
    # Residuals are differences of larger numbers: at the end nothing but rounding
    # decides whether a step is downhill, and up to 29 were taken.
    rng = np.random.default_rng(0)
    truth = 300 + np.cumsum(rng.normal(size=40))
    apart = np.diff(truth) + 0.05 * rng.normal(size=39)
    seen = truth + 0.3 * rng.normal(size=40)

    def residuals(u, _):
        return 20 * (jnp.diff(u) - apart), jnp.arctan(u - seen), 0.01 * jnp.sin(u)

    fit = lambda u: fitted(residuals, u, rtol=1e-9).stats["num_steps"]
    starts = truth + 0.5 * rng.normal(size=(12, 40))
    assert np.max(jax.jit(jax.vmap(fit))(starts)) <= 16


#
# Derivatives and batches of fits
#


N = 100  # below 64 a dense matrix is the fastest


def spline(u, data):
    return jnp.exp(u) - data, 2 * jnp.diff(u, 2)


DATA = np.exp(np.sin(np.linspace(0, 6, N)))


def smooth(data):
    # The Hessian of half the sum of squares: its pattern is found, as that of J is.
    adjoint = optx.ImplicitAdjoint(lxe.AutoStructuredLinearSolver())
    return fitted(spline, jnp.zeros(N), data, rtol=1e-12, adjoint=adjoint).value


def test_derivatives():
    rng = np.random.default_rng(0)
    direction, weights = rng.normal(size=(2, N))

    def loss(data):
        return jnp.sum(weights * smooth(data))

    loss, data = jax.jit(jax.value_and_grad(loss)), jnp.asarray(DATA)
    _, gradient = loss(data)
    expected = directional(lambda t: float(loss(data + t * direction)[0]))
    assert abs(np.vdot(gradient, direction) - expected) <= 1e-6 * abs(expected)
    _, tangent = jax.jit(lambda x, v: jax.jvp(smooth, (x,), (v,)))(
        data, jnp.asarray(direction)
    )
    assert_close(np.vdot(weights, tangent), np.vdot(gradient, direction), 1e-9)


def test_derivatives_make_no_dense_matrix():
    data = jnp.asarray(DATA)
    jaxpr = jax.make_jaxpr(jax.grad(lambda data: jnp.sum(smooth(data))))(data)
    sizes = [v.aval.size for e in equations(jaxpr.jaxpr) for v in e.outvars]
    assert max(sizes) < N**2


def test_vmap():
    data = jnp.asarray(np.stack([DATA, DATA[::-1], DATA + 0.3]))
    together = jax.jit(jax.vmap(smooth))(data)

    def least(data):
        u = np.log(data)
        for _ in range(30):  # Gauss and Newton
            jacobian = np.concatenate([np.diag(np.exp(u)), bend])
            residuals = np.concatenate([np.exp(u) - data, bend @ u])
            u = u - np.linalg.lstsq(jacobian, residuals, rcond=None)[0]
        return u

    bend = 2 * np.diff(np.eye(N), 2, axis=0)
    for x, given in zip(together, data):
        assert_close(x, least(given), 1e-9)


def test_the_hessian_of_a_graph():
    # The index array is an argument inside of optimistix: the pattern is told twice.
    ends = np.array([[0, 1], [1, 2], [2, 3], [3, 4], [0, 4]])

    def residuals(y, measured):
        i, j = ends.T
        return jnp.sin(y[j] - y[i]) - measured, y[:1]

    y0, measured = jnp.zeros(5), jnp.array([0.1, 0.2, 0.1, 0.3, 0.5])
    pattern = lxe.infer_pattern(residuals, y0, measured)
    hessian = lxe.AutoStructuredLinearSolver(pattern=pattern.gram)
    solver = lxe.LevenbergMarquardt(
        1e-12, 1e-12, linear_solver=lxe.DampedSparse(pattern)
    )

    @jax.jit
    def last(measured):
        return optx.least_squares(
            residuals, solver, y0, measured, adjoint=optx.ImplicitAdjoint(hessian)
        ).value[-1]

    gradient = jax.grad(last)(measured)
    direction = np.array([1.0, -2.0, 0.5, 0.3, 1.0])
    expected = directional(lambda t: float(last(measured + t * direction)))
    assert abs(np.vdot(gradient, direction) - expected) <= 1e-7
