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
from helpers import slow

import lineax_ext as lxe
from lineax_ext._solver.damped_sparse import as_sparse


def problem():
    rng = np.random.default_rng(0)
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


@pytest.mark.parametrize("last", ("nothing", "sum", "difference"))
def test_rank_deficient_without_damping(last):
    # A chain of differences, whose null space is the constants; a dense row of ones
    # makes it regular, and one that sums to zero does not.
    n = 20
    chain = np.eye(n - 1, n) - np.eye(n - 1, n, 1)
    ends = np.where(np.arange(n) < n // 2, 1.0, -1.0)
    rows = {"nothing": chain[:0], "sum": np.ones((1, n)), "difference": ends[None]}
    matrix = np.concatenate([chain, rows[last]])
    at, to = np.nonzero(matrix)
    pattern = lxe.Pattern(at, to, matrix.shape)
    values = jnp.asarray(matrix[pattern.rows, pattern.cols])
    b = np.random.default_rng(0).normal(size=len(matrix))
    solution = lxe.damped_solve(
        lxe.SparseMatrixLinearOperator(values, pattern),
        jnp.asarray(b),
        0.0,
        lxe.DampedSparse(),
        throw=False,
    )
    regular = last == "sum"
    assert bool(solution.result == lx.RESULTS.successful) == regular
    if regular:
        expected = np.linalg.lstsq(matrix, b, rcond=None)[0]
        np.testing.assert_allclose(solution.value, expected, rtol=1e-11, atol=1e-12)


def test_steps_of_the_dense_solver():
    def residuals(y, _):
        return jnp.concatenate([10 * (y[1:] - y[:-1] ** 2), 1 - y[:-1]])

    def steps(linear_solver):
        solver = lxe.LevenbergMarquardt(1e-10, 1e-10, linear_solver=linear_solver)
        y0 = jnp.full(8, -1.2)
        fit = optx.least_squares(residuals, solver, y0, max_steps=5, throw=False)
        return fit.value

    sparse, dense = steps(lxe.DampedSparse()), steps(lxe.DampedQR())
    # A step is not corrected: some hundred ε, times the condition number squared.
    np.testing.assert_allclose(sparse, dense, rtol=1e-9)


@pytest.mark.parametrize("root_finder", (None, slow(optx.Newton(1e-10, 1e-10))))
def test_indirect(root_finder):
    def residuals(y, _):
        return jnp.concatenate([10 * (y[1:] - y[:-1] ** 2), 1 - y[:-1]])

    def steps(linear_solver):
        solver = lxe.IndirectLevenbergMarquardt(
            1e-10, 1e-10, linear_solver=linear_solver, root_finder=root_finder
        )
        y0 = jnp.full(8, -1.2)
        return optx.least_squares(residuals, solver, y0, max_steps=9, throw=False).value

    sparse, dense = steps(lxe.DampedSparse()), steps(lxe.DampedSVD())
    np.testing.assert_allclose(sparse, dense, rtol=1e-10)


def test_pattern():
    # An index array is an argument by the time that the solver sees the residuals.
    ends = np.array([[0, 1], [1, 2], [2, 3], [0, 3]])
    measured = jnp.array([1.0, 1.1, 0.9, 3.3])

    def residuals(y, measured):
        i, j = ends.T
        return y[j] - y[i] - measured, y[:1]

    y0 = jnp.zeros(4)
    pattern = lxe.infer_pattern(residuals, y0, measured)
    assert len(pattern) == 9
    solver = lxe.DampedSparse(pattern)
    levenberg_marquardt = lxe.LevenbergMarquardt(1e-10, 1e-10, linear_solver=solver)
    fit = optx.least_squares(residuals, levenberg_marquardt, y0, measured)
    assert fit.state.descent_state.problem.normal.pattern == pattern
    matrix = np.zeros((5, 4))
    matrix[np.arange(4), ends[:, 0]], matrix[np.arange(4), ends[:, 1]] = -1, 1
    matrix[4, 0] = 1
    expected = np.linalg.lstsq(matrix, np.append(measured, 0), rcond=None)[0]
    np.testing.assert_allclose(fit.value, expected, atol=1e-9)


def test_wrong_pattern():
    operator = lx.MatrixLinearOperator(jnp.ones((3, 2)))
    solver = lxe.DampedSparse(lxe.Pattern([0], [0], (2, 2)))
    with pytest.raises(ValueError, match="shape"):
        lxe.damped_solve(operator, jnp.ones(3), 1.0, solver)
    with pytest.raises(ValueError, match="str"):
        lxe.DampedSparse("pattern")  # pyright: ignore


@pytest.mark.parametrize("jac", (None, "bwd"))
def test_a_dense_row_beside_what_is_read_by_rows(jac):
    """It is in no sum of the others, which are read by rows where these are fewer."""

    def fn(y, _):
        z = y**2
        return jnp.concatenate([z.reshape(4, 40).sum(1), jnp.sum(z, keepdims=True)])

    y = np.random.default_rng(0).normal(size=160)
    operator = lx.JacobianLinearOperator(fn, jnp.asarray(y), jac=jac)
    expected = (
        2 * y * np.concatenate([np.kron(np.eye(4), np.ones(40)), np.ones((1, 160))])
    )
    found = as_sparse(operator, None).as_matrix()
    np.testing.assert_allclose(found, expected, rtol=1e-15)


@pytest.mark.parametrize(
    "dtype, damping",
    (
        (np.float64, 0.0),
        pytest.param(np.float64, 0.3, marks=pytest.mark.slow),
        pytest.param(np.complex128, 0.0, marks=pytest.mark.slow),
    ),
)
def test_dense_rows(dtype, damping):
    """Of a batch; without them nothing holds a chain of differences."""
    n, batch = 150, 2
    rng = np.random.default_rng(0)
    draw = rng.normal(size=(2, batch, 3, n))
    dense = 100 * (draw[0] + 1j * draw[1] if dtype == np.complex128 else draw[0])
    chain = np.broadcast_to(np.eye(n - 1, n) - np.eye(n - 1, n, 1), (batch, n - 1, n))
    matrix = np.concatenate([dense[:, :1], chain, dense[:, 1:]], axis=1)
    at, to = np.nonzero(matrix[0])
    pattern = lxe.Pattern(at, to, matrix.shape[1:])
    b = rng.normal(size=(batch, n + 2)).astype(dtype)

    def solved(values, b):
        operator = lxe.SparseMatrixLinearOperator(values, pattern)
        return lxe.damped_solve(operator, b, damping, lxe.DampedSparse()).value

    values = jnp.asarray(matrix[:, pattern.rows, pattern.cols])
    found = jax.jit(jax.vmap(solved))(values, jnp.asarray(b))
    root = np.broadcast_to(np.sqrt(damping) * np.eye(n), (batch, n, n))
    stacked = np.concatenate([matrix, root], axis=1)
    right = np.concatenate([b, np.zeros((batch, n))], axis=1)
    for x, a, c in zip(found, stacked, right):
        expected = np.linalg.lstsq(a, c, rcond=None)[0]
        np.testing.assert_allclose(x, expected, rtol=1e-9, atol=1e-11)
