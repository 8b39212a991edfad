"""`SparseLU` and `SparseCholesky`, against SciPy and NumPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse as sp
from helpers import assert_close, directional, normal, slow

import lineax_ext as lxe


LU, CHOLESKY = lxe.SparseLU(), lxe.SparseCholesky()
DEFINITE, NEGATIVE = lx.positive_semidefinite_tag, lx.negative_semidefinite_tag


def grid(g, dtype=np.float64, seed=0):
    """Five points, unsymmetric, none of them dominant."""
    line = sp.diags_array(
        [np.ones(g - 1), np.ones(g), np.ones(g - 1)], offsets=(-1, 0, 1)
    )
    eye = sp.eye_array(g)
    pattern = lxe.Pattern.from_scipy(sp.kron(line, eye) + sp.kron(eye, line))
    values = normal((len(pattern),), dtype, seed)
    return pattern, values


def dense(pattern, values):
    out = np.zeros(pattern.shape, np.asarray(values).dtype)
    out[pattern.rows, pattern.cols] = values
    return out


def definite_values(pattern, values):
    """Of B Bᴴ + 1, cut to the pattern, and made to dominate its diagonal."""
    matrix = dense(pattern, values)
    matrix = (matrix + matrix.conj().T) / 2
    matrix += np.diag(np.abs(matrix).sum(1) + 1)
    return matrix[pattern.rows, pattern.cols]


PATTERN, VALUES = grid(7)
N = PATTERN.shape[0]
SPD = definite_values(PATTERN, VALUES)
CASES = {
    "lu": (LU, VALUES, ()),
    "cholesky": (CHOLESKY, SPD, DEFINITE),
    "negative": (CHOLESKY, -SPD, NEGATIVE),
}


# A negative matrix is turned by its sign alone.
@pytest.mark.parametrize("name", ("lu", slow("cholesky")))
def test_all_orientations_and_batches(name):
    """Transposed, conjugated, `vmap` of values and of vectors, in one program."""
    solver, values, tags = CASES[name]
    phases = np.exp(1j * 0.3 * np.where(PATTERN.rows < PATTERN.cols, 1, -1))
    values = values * np.where(PATTERN.rows == PATTERN.cols, 1, phases)
    many = np.stack([values, 2 * values])
    bs = normal((2, 3, N), np.complex128)

    @jax.jit
    @jax.vmap
    def run(values, bs):
        operator = lxe.SparseMatrixLinearOperator(values, PATTERN, tags)
        state = solver.init(operator, {})
        transpose, _ = solver.transpose(state, {})
        states = state, transpose, solver.conj(state, {})[0]
        states = *states, solver.conj(transpose, {})[0]
        solve = lambda state: lambda b: solver.compute(state, b, {})[0]
        return [jax.vmap(solve(state))(bs) for state in states]

    a = np.stack([dense(PATTERN, values) for values in many])
    at = a.transpose(0, 2, 1)
    for x, matrix in zip(run(many, bs), (a, at, a.conj(), at.conj()), strict=True):
        expected = np.linalg.solve(matrix[:, None], bs[..., None])[..., 0]
        assert_close(x, expected, 1e-10)


@pytest.mark.parametrize("name", ("lu", "negative"))
def test_derivatives(name):
    solver, values, tags = CASES[name]
    b, v, direction = (
        normal((N,)),
        normal((N,), seed=1),
        normal((len(PATTERN),), seed=2),
    )
    if tags != ():
        symmetric = dense(PATTERN, direction)
        direction = (symmetric + symmetric.T)[PATTERN.rows, PATTERN.cols]

    def value(t, solve):
        return v @ solve(values + t * direction, (1 + t) * b)

    def solve(values, b):
        operator = lxe.SparseMatrixLinearOperator(values, PATTERN, tags)
        return lx.linear_solve(operator, b, solver).value

    def referee(values, b):
        return np.linalg.solve(dense(PATTERN, values), b)

    expected = directional(lambda t: value(t, referee))
    both = jax.jit(lambda t: (jax.grad(value)(t, solve), jax.jacfwd(value)(t, solve)))
    for found in both(0.0):
        assert_close(found, expected, 1e-7)


def test_functions():
    """Their patterns are found, and their entries are read by colours."""
    laplacian = lambda y: sum(
        jnp.roll(y, step, axis) for step in (1, -1) for axis in (0, 1)
    )
    fn = lambda y, _: {"y": y["y"] ** 3 + 5 * y["y"] - laplacian(y["y"])}
    y = {"y": jnp.asarray(normal((6, 7)))}
    operator = lx.JacobianLinearOperator(fn, y)
    b = {"y": jnp.asarray(normal((6, 7), seed=1))}
    x = jax.jit(lambda b: lx.linear_solve(operator, b, LU).value["y"])(b)
    ring = lambda n: np.roll(np.eye(n), 1, axis=0) + np.roll(np.eye(n), -1, axis=0)
    neighbours = np.kron(ring(6), np.eye(7)) + np.kron(np.eye(6), ring(7))
    matrix = np.diag(3 * np.ravel(y["y"]) ** 2 + 5) - neighbours
    expected = np.linalg.solve(matrix, b["y"].reshape(-1)).reshape(6, 7)
    assert_close(x, expected, 1e-11)


#
# What cannot be solved
#


@jax.jit
def _result(values, b):
    operator = lxe.SparseMatrixLinearOperator(values, PATTERN)
    return lx.linear_solve(operator, b, LU, throw=False).result == lx.RESULTS.singular


@pytest.mark.parametrize("bad", ("zeros", "dependent", "nan", "inf"))
def test_singular(bad):
    values = VALUES.copy()
    if bad == "zeros":
        values[PATTERN.rows == 20] = 0
    elif bad == "dependent":
        # All rows add up to nothing.
        on = PATTERN.rows == PATTERN.cols
        total = np.bincount(PATTERN.cols, VALUES, N)
        values[on] -= total[PATTERN.cols[on]]
    else:
        values[40] = float(bad)
    assert _result(values, normal((N,)))
    assert not _result(VALUES, normal((N,)))


@pytest.mark.parametrize("solver, tags", ((LU, ()), (CHOLESKY, DEFINITE)))
def test_empty(solver, tags):
    pattern = lxe.Pattern([], [], (0, 0))
    sparse = lxe.SparseMatrixLinearOperator(jnp.zeros(0), pattern, tags)
    struct = jax.ShapeDtypeStruct((0,), np.float64)
    for operator in (sparse, lx.FunctionLinearOperator(lambda x: x, struct, tags)):
        solution = lx.linear_solve(operator, np.zeros(0), solver)
        assert solution.value.shape == (0,)
        assert solution.result == lx.RESULTS.successful


def test_not_definite():
    operator = lxe.SparseMatrixLinearOperator(-jnp.asarray(SPD), PATTERN, DEFINITE)
    solution = lx.linear_solve(operator, normal((N,)), CHOLESKY, throw=False)
    assert solution.result == lx.RESULTS.singular


def test_errors():
    tall = lxe.Pattern([0, 1, 2], [0, 1, 1], (3, 2))
    operator = lxe.SparseMatrixLinearOperator(jnp.ones(3), tall)
    with pytest.raises(ValueError, match=r"`SparseLU`.*\(3, 2\), which is not square"):
        lx.linear_solve(operator, np.ones(3), LU)
    hollow = lxe.Pattern([0, 1, 2], [0, 1, 1], (3, 3))
    operator = lxe.SparseMatrixLinearOperator(jnp.ones(3), hollow)
    with pytest.raises(ValueError, match="Every matrix of .* is singular"):
        lx.linear_solve(operator, np.ones(3), LU)
    operator = lxe.SparseMatrixLinearOperator(jnp.asarray(SPD), PATTERN)
    with pytest.raises(ValueError, match="`SparseCholesky`.*tagged positive"):
        lx.linear_solve(operator, np.ones(N), CHOLESKY)


#
# Determinants
#


@pytest.mark.parametrize("name", CASES)
def test_determinants(name):
    _, values, tags = CASES[name]
    b = normal((N,))
    operator = lambda values: lxe.SparseMatrixLinearOperator(values, PATTERN, tags)

    @jax.jit
    def run(values):
        slogdet = lambda values: lxe.slogdet(operator(values))
        (sign, log), gradient = (
            slogdet(values),
            jax.grad(lambda v: slogdet(v)[1])(values),
        )
        return sign, log, gradient

    sign, log, gradient = run(values)
    matrix = dense(PATTERN, values)
    assert_close(np.array([sign, log]), np.array(np.linalg.slogdet(matrix)), 1e-12)
    inverse = np.linalg.inv(matrix)
    assert_close(gradient, inverse[PATTERN.cols, PATTERN.rows], 1e-10)

    if name == "cholesky":
        quad = lambda v: sum(lxe.inv_quad_logdet(operator(v), b))
        gradient = jax.jit(jax.grad(quad))(values)
        x = np.linalg.solve(matrix, b)
        expected = inverse.T - np.outer(x, x)
        assert_close(gradient, expected[PATTERN.rows, PATTERN.cols], 1e-10)


def test_second_derivative_of_a_determinant():
    direction = normal((len(PATTERN),), seed=2)

    def log(t):
        operator = lxe.SparseMatrixLinearOperator(VALUES + t * direction, PATTERN)
        return lxe.slogdet(operator)[1]

    # d² log det A = −tr(A⁻¹ dA A⁻¹ dA)
    step = np.linalg.solve(dense(PATTERN, VALUES), dense(PATTERN, direction))
    assert_close(jax.jit(jax.hessian(log))(0.0), -np.trace(step @ step), 1e-9)


def test_determinant_of_a_singular_matrix():
    values = np.where(PATTERN.rows == 20, 0, VALUES)
    operator = lxe.SparseMatrixLinearOperator(jnp.asarray(values), PATTERN)
    sign, log = eqx.filter_jit(lxe.slogdet)(operator)
    assert sign == 0 and log == -np.inf


#
# Who chooses it
#


def test_chosen_where_it_pays():
    def kind(pattern):
        def init(values):
            operator = lxe.SparseMatrixLinearOperator(values, pattern)
            return lxe.AutoStructuredLinearSolver().init(operator, {})

        return eqx.filter_eval_shape(init, jnp.ones(len(pattern))).arrangement.kind

    assert kind(grid(60)[0]) == "sparse"
    assert kind(grid(8)[0]) != "sparse"
