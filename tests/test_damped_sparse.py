"""`DampedSparse`."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest
import scipy.optimize
import scipy.sparse as sp

import lineax_ext as lxe


def problem(seed=0):
    rng = np.random.default_rng(seed)
    matrix = sp.random_array((40, 15), density=0.15, rng=rng) + sp.eye_array(40, 15)
    matrix = sp.csr_array(matrix)
    matrix.sort_indices()
    return matrix, rng.normal(size=40)


@ft.partial(jax.jit, static_argnums=(1,))
def solved(values, pattern, b, damping, scale):
    operator = lxe.SparseMatrixLinearOperator(values, pattern)
    solution = lxe.damped_solve(
        operator, b, damping, lxe.DampedSparse(), scale=scale, throw=False
    )
    return solution.value, solution.result == lx.RESULTS.successful


@pytest.mark.parametrize("damping", (0.0, 1e-8, 0.3, 1e6))
def test_value(damping):
    matrix, b = problem()
    scale = np.geomspace(1e-3, 1e3, 15)
    x, good = solved(matrix.data, lxe.Pattern.from_scipy(matrix), b, damping, scale)
    stack = np.vstack([matrix.toarray(), np.sqrt(damping) * np.diag(scale)])
    expected = np.linalg.lstsq(stack, np.append(b, np.zeros(15)), rcond=None)[0]
    assert good
    assert np.max(np.abs(x - expected)) <= 1e-10 * np.max(np.abs(expected))


def test_fit():
    n = 30
    rng = np.random.default_rng(0)
    data = jnp.asarray(np.sin(np.linspace(0, 6, n)) + 0.05 * rng.normal(size=n))

    def residuals(u, data):
        return jnp.tanh(u) - data, 3 * jnp.diff(u, 2)

    referee = scipy.optimize.least_squares(
        lambda u: np.concatenate(residuals(u, data)),
        np.zeros(n),
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-15,
    )
    solver = lxe.LevenbergMarquardt(1e-9, 1e-9, linear_solver=lxe.DampedSparse())
    solution = optx.least_squares(residuals, solver, jnp.zeros(n), data)
    assert np.max(np.abs(solution.value - referee.x)) <= 1e-6


def test_singular():
    matrix, b = problem()
    matrix = sp.csr_array(sp.hstack([matrix, sp.csr_array((40, 1))]))
    pattern = lxe.Pattern.from_scipy(matrix)
    operator = lxe.SparseMatrixLinearOperator(jnp.asarray(matrix.data), pattern)
    with pytest.raises(eqx.EquinoxRuntimeError, match="singular"):
        lxe.damped_solve(operator, jnp.asarray(b), 0.0, lxe.DampedSparse())
