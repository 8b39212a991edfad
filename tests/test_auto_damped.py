"""`AutoDampedSolver`: the choice, and that it changes nothing but the time."""

from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest
import scipy.optimize
from helpers import assert_close, directional, matrix_operator, normal, slow

import lineax_ext as lxe


AUTO = lxe.AutoDampedSolver()
N = 100


def chain(u, data):
    return jnp.tanh(u) - data, 3 * jnp.diff(u, 2)


DATA = np.sin(np.linspace(0, 6, N))


def jacobian(n):
    return lx.JacobianLinearOperator(chain, jnp.zeros(n), jnp.zeros(n))


def matrix(n):
    """That of `chain` at zero."""
    return np.concatenate([np.eye(n), 3 * np.diff(np.eye(n), 2, axis=0)])


def test_choice():
    assert AUTO.chosen(jacobian(N)) == lxe.DampedSparse(
        lxe.infer_pattern(chain, jnp.zeros(N), jnp.zeros(N))
    )
    dense = lambda u, _: jnp.sin(jnp.outer(jnp.arange(N + 50.0), u)).sum(1) + jnp.sum(u)
    for operator in (
        lx.JacobianLinearOperator(dense, jnp.zeros(N)),
        matrix_operator(matrix(N)),
        # Of a wide one the least-norm solution is wanted.
        lx.JacobianLinearOperator(lambda u, _: jnp.diff(u), jnp.zeros(N)),
    ):
        assert AUTO.chosen(operator) == lxe.DampedQR()


def test_nothing_is_looked_for_in_a_small_one(monkeypatch):
    def fail(*args):
        raise AssertionError

    monkeypatch.setattr("lineax_ext._solver.auto_damped.detect", fail)
    assert AUTO.chosen(jacobian(60)) == lxe.DampedQR()
    with pytest.raises(AssertionError):
        AUTO.chosen(jacobian(N))


def test_damped_solve():
    """Values, and derivatives in the damping and the vector, under `jit` and `vmap`."""
    a, scale = matrix(N), np.geomspace(0.5, 2, N)
    b = normal((2, len(a)))
    split = lambda b: (b[:N], b[N:])
    operator = jacobian(N)

    @jax.jit
    def solve(b, damping):
        fn = lambda b: lxe.damped_solve(operator, split(b), damping, AUTO, scale=scale)
        return jax.vmap(lambda b: fn(b).value)(b)

    def expected(b, damping):
        stack = np.concatenate([a, np.sqrt(damping) * np.diag(scale)])
        right = np.concatenate([b, np.zeros((len(b), N))], axis=1)
        return np.linalg.lstsq(stack, right.T, rcond=None)[0].T

    for damping in (0.0, 1e-3, 10.0):
        assert_close(solve(b, damping), expected(b, damping), 1e-11)
    weights = normal((2, N), seed=1)
    loss = lambda b, damping: jnp.sum(weights * solve(b, damping))
    by_b, by_damping = jax.jit(jax.grad(loss, (0, 1)))(b, 0.3)
    find = lambda b, damping: np.sum(weights * expected(b, damping))
    assert_close(by_damping, directional(lambda t: find(b, 0.3 + t)), 1e-8)
    change = normal(b.shape, seed=2)
    assert_close(np.vdot(by_b, change), find(change, 0.3), 1e-9)


SOLVERS = {
    "plain": lxe.LevenbergMarquardt(1e-10, 1e-10),
    "scaled": lxe.LevenbergMarquardt(1e-10, 1e-10, scale="jacobian"),
    "indirect": lxe.IndirectLevenbergMarquardt(1e-10, 1e-10, linear_solver=AUTO),
}


@pytest.mark.parametrize(
    "solver", [x if k == "plain" else slow(x) for k, x in SOLVERS.items()]
)
def test_fits(solver):
    assert solver.descent.linear_solver == AUTO
    data = np.stack([DATA, 0.5 * DATA[::-1]])

    @jax.jit
    def fit(data):
        fn = lambda data: optx.least_squares(chain, solver, jnp.zeros(N), data).value
        return jax.vmap(fn)(data)

    def least(data):
        jac = lambda u: np.concatenate([np.diag(1 / np.cosh(u) ** 2), matrix(N)[N:]])
        flat = lambda u: np.concatenate([np.tanh(u) - data, 3 * np.diff(u, 2)])
        tight = dict.fromkeys(("xtol", "ftol", "gtol"), 1e-15)
        solve: Any = scipy.optimize.least_squares
        return solve(flat, np.zeros(N), jac, **tight).x

    for found, given in zip(fit(jnp.asarray(data)), data):
        assert_close(found, least(given), 1e-6)


def test_errors():
    with pytest.raises(ValueError, match="`AutoDampedSolver.*str"):
        lxe.AutoDampedSolver("pattern")  # pyright: ignore
    solver = lxe.AutoDampedSolver(lxe.Pattern([0], [0], (2, 2)))
    with pytest.raises(ValueError, match="`AutoDampedSolver.*shape"):
        lxe.damped_solve(matrix_operator(matrix(4)), jnp.ones(6), 1.0, solver)
    state = lxe.DampedSVD().init(matrix_operator(matrix(4)), {})
    with pytest.raises(ValueError, match="DampedSVD"):
        AUTO.damp(state, 1.0)  # pyright: ignore


def test_a_small_jacobian_that_is_sparse():
    # Small enough for its entries to be kept, and factorised as a sparse matrix.
    def rosenbrock(y, _):
        return 10 * (y[1::2] - y[::2] ** 2), 1 - y[::2]

    solver = lxe.LevenbergMarquardt(1e-10, 1e-10)
    start = jnp.tile(jnp.array([-1.2, 1.0]), 75)
    solve = lambda y: optx.least_squares(rosenbrock, solver, y).value
    assert_close(jax.jit(solve)(start), np.ones(150), 1e-8)


def test_constants_without_values():
    # To optimistix's question for a structure, an index array is a shape.
    index = np.arange(0, 120, 2)[:, None]

    def residuals(y, _):
        return y.at[jnp.asarray(index)[:, 0]].multiply(2.0) - 1

    solver = lxe.LevenbergMarquardt(1e-10, 1e-10)
    solve = lambda y: optx.least_squares(residuals, solver, y).value
    expected = np.where(np.arange(120) % 2, 1.0, 0.5)
    assert_close(jax.jit(solve)(jnp.zeros(120)), expected, 1e-8)
