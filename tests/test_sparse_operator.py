"""Sparse matrices, against SciPy and closed forms."""

import jax
import jax.experimental.sparse as jsparse
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse as sp
from helpers import assert_close, equations, normal, over_dtypes
from operators import diagonals

import lineax_ext as lxe
from lineax_ext._arrangement import arrange, Entries
from lineax_ext._factor.sparse_product import entry_products, sparse_product
from lineax_ext._structure.detect import detect
from lineax_ext._structure.known import known_entries, known_pattern


def random(shape, dtype=np.float64, density=0.2, seed=0):
    """With an empty row, and a dense row and a dense column, where there is room."""
    rng = np.random.default_rng((seed, *shape))
    keep = rng.random(shape) < density
    if min(shape) > 3:
        keep[2], keep[:, 3] = True, True
        keep[0] = False
    return sp.csr_array(np.where(keep, normal(shape, dtype, seed), 0))


def sparse_operator(matrix, tags=()):
    matrix = sp.csr_array(matrix)
    matrix.sort_indices()
    pattern = lxe.Pattern.from_scipy(matrix)
    return lxe.SparseMatrixLinearOperator(jnp.asarray(matrix.data), pattern, tags)


def eps(dtype):
    return 20 * np.finfo(dtype).eps


mv = jax.jit(lambda operator, x: operator.mv(x))

SHAPES = ((0, 0), (0, 2), (3, 0), (1, 1), (12, 12), (40, 7), (7, 40))
over_shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@over_shapes
@over_dtypes
def test_against_scipy(shape, dtype):
    matrix = random(shape, dtype)
    operator = sparse_operator(matrix)
    dense = matrix.toarray()
    assert operator.in_structure() == jax.ShapeDtypeStruct(shape[1:], dtype)
    assert operator.out_structure() == jax.ShapeDtypeStruct(shape[:1], dtype)
    for op, expected in (
        (operator, matrix),
        (operator.T, sp.csr_array(matrix.T)),
        (lx.conj(operator), matrix.conj()),
    ):
        x = normal(op.in_structure().shape, dtype)
        assert_close(mv(op, jnp.asarray(x)), expected @ x, eps(dtype))
        assert_close(op.as_matrix(), expected.toarray(), 0)
    assert_close(lx.diagonal(operator), np.diagonal(dense), 0)
    for found, expected in zip(lx.tridiagonal(operator), diagonals(dense)):
        assert_close(found, expected, 0)


@over_dtypes
def test_products_with_columns(dtype):
    matrix = random((12, 7), dtype)
    operator = sparse_operator(matrix)
    x, y = normal((7, 2, 3), dtype), normal((12, 2, 3), dtype)
    out = sparse_product(operator.values, operator.pattern, jnp.asarray(x))
    assert_close(out, np.einsum("ij,jkl->ikl", matrix.toarray(), x), eps(dtype))
    out = sparse_product(operator.values, operator.pattern, jnp.asarray(y), True)
    assert_close(out, np.einsum("ij,ikl->jkl", matrix.toarray(), y), eps(dtype))
    out = entry_products(jnp.asarray(y), jnp.asarray(x), operator.pattern)
    expected = np.einsum("ikl,jkl->ij", y, x)
    rows, cols = operator.pattern.rows, operator.pattern.cols
    assert_close(out, expected[rows, cols], eps(dtype))


def test_a_dense_row_is_not_paid_by_the_others():
    n = 1000
    matrix = sp.lil_array(np.triu(np.tril(np.ones((n, n)), 1), -1))
    matrix[n // 2] = 1
    matrix = sp.csr_array(matrix)
    operator = sparse_operator(matrix)
    for op in (operator, operator.T):
        memory = mv.lower(op, jnp.ones(n)).compile().memory_analysis()
        assert memory is not None
        assert memory.temp_size_in_bytes <= 100 * len(operator.pattern)
        x = normal((n,))
        expected = (matrix if op is operator else matrix.T) @ x
        assert_close(op.mv(jnp.asarray(x)), expected, 1e-14)


#
# Derivatives and batches
#


@pytest.mark.parametrize("dtype", (np.float64, np.complex128))
def test_derivatives(dtype):
    matrix = random((6, 5), dtype, 0.4)
    operator = sparse_operator(matrix)
    pattern, values = operator.pattern, operator.values
    rows, cols = pattern.rows, pattern.cols
    x, dx = normal((5,), dtype, 1), normal((5,), dtype, 2)
    dv, y = normal(values.shape, dtype, 3), normal((6,), dtype, 4)
    tangent = sp.csr_array((dv, (rows, cols)), matrix.shape)

    def apply(values, x):
        return lxe.SparseMatrixLinearOperator(values, pattern).mv(x)

    @jax.jit
    def derivatives(values, x):
        _, vjp = jax.vjp(apply, values, x)
        return jax.jvp(apply, (values, x), (dv, dx)), vjp(y)

    (out, dout), (values_bar, x_bar) = derivatives(values, x)
    assert_close(out, matrix @ x, 1e-14)
    assert_close(dout, matrix @ dx + tangent @ x, 1e-14)
    assert_close(values_bar, y[rows] * x[cols], 1e-14)
    assert_close(x_bar, matrix.T @ y, 1e-14)

    # The derivative of the gradient, forward and reverse: xᵀ Aᵀ A x / 2 is quadratic in
    # each of both. (Real: JAX's gradients of complex functions are not holomorphic.)
    if dtype == np.float64:
        half = lambda v, x: jnp.sum(apply(v, x) ** 2) / 2
        gradient = jax.grad(half, (0, 1))
        hvp = lambda v, x: jax.jvp(gradient, (v, x), (dv, dx))[1]
        inner = lambda v, x: sum(
            map(jnp.vdot, gradient(v, x), (jnp.asarray(dv), jnp.asarray(dx)))
        )
        a, da = matrix, tangent
        dr = a @ dx + da @ x
        expected_values = dr[rows] * x[cols] + (a @ x)[rows] * dx[cols]
        expected_x = a.T @ dr + da.T @ (a @ x)
        both = jax.jit(lambda v, x: (hvp(v, x), jax.grad(inner, (0, 1))(v, x)))
        for found in both(values, x):
            assert_close(found[0], expected_values, 1e-13)
            assert_close(found[1], expected_x, 1e-13)


def test_no_derivative_scatters():
    band = np.triu(np.tril(np.ones((12, 12)), 1), -1)
    operator = sparse_operator(band)

    def half(values, x):
        out = lxe.SparseMatrixLinearOperator(values, operator.pattern).mv(x)
        return jnp.sum(out**2) / 2

    gradient = jax.jit(jax.grad(half, (0, 1)))
    program = gradient.lower(operator.values, jnp.ones(12)).as_text()
    assert "stablehlo.gather" in program and "scatter" not in program


def test_vmap_over_values_and_vectors():
    matrix = random((6, 5))
    operator = sparse_operator(matrix)
    pattern = operator.pattern
    values, xs = normal((3, len(pattern))), normal((2, 5))
    dense = np.zeros((3, 6, 5))
    dense[:, pattern.rows, pattern.cols] = values
    values, xs = jnp.asarray(values), jnp.asarray(xs)

    def apply(values, x):
        return lxe.SparseMatrixLinearOperator(values, pattern).mv(x)

    over_vectors = jax.vmap(apply, (None, 0))

    def gradient(values, x):
        return jax.grad(lambda *args: jnp.sum(apply(*args) ** 2) / 2, (0, 1))(values, x)

    @jax.jit
    def run(one, values, xs):
        return (
            over_vectors(one, xs),
            jax.vmap(over_vectors, (0, None))(values, xs),
            jax.vmap(jax.vmap(apply, (0, None)), (None, 0), 1)(values, xs),
            jax.vmap(apply)(values[:2], xs),
            jax.vmap(jax.vmap(gradient, (None, 0)), (0, None))(values, xs),
        )

    vectors, vectors_inside, values_inside, both, (dv, dx) = run(
        operator.values, values, xs
    )
    assert_close(vectors, np.asarray(xs) @ matrix.T, 1e-14)
    assert_close(vectors_inside, np.einsum("vij,xj->vxi", dense, xs), 1e-14)
    assert_close(values_inside, np.einsum("vij,xj->vxi", dense, xs), 1e-14)
    assert_close(both, np.einsum("vij,vj->vi", dense[:2], xs), 1e-14)
    out = np.einsum("vij,xj->vxi", dense, xs)
    assert_close(dx, np.einsum("vij,vxi->vxj", dense, out), 1e-14)
    expected = np.einsum("vxi,xj->vxij", out, xs)[..., pattern.rows, pattern.cols]
    assert_close(dv, expected, 1e-14)
    (dx,) = jax.linear_transpose(lambda x: over_vectors(operator.values, x), xs)(out[0])
    assert_close(dx, out[0] @ matrix, 1e-14)


def test_a_batch_of_vectors_is_one_product():
    operator = sparse_operator(random((12, 12)))
    jaxpr = jax.make_jaxpr(jax.vmap(operator.mv))(jnp.ones((5, 12)))
    products = [e for e in equations(jaxpr.jaxpr) if "sparse" in e.primitive.name]
    (shape,) = [eqn.outvars[0].aval.shape for eqn in products]
    assert shape == (12, 1, 5)


#
# Structure and solvers
#


def test_pattern_as_a_tag():
    lower = sp.csr_array(np.tril(np.ones((4, 4))))
    band = np.triu(np.tril(np.ones((4, 4)), 1))
    functions = (
        lx.is_diagonal,
        lx.is_tridiagonal,
        lx.is_lower_triangular,
        lx.is_upper_triangular,
        lx.is_symmetric,
    )
    for matrix, tags, expected in (
        (np.eye(4), (), (1, 1, 1, 1, 1)),
        (band, (), (0, 1, 0, 1, 0)),
        (lower, (), (0, 0, 1, 0, 0)),
        (lower.T, (), (0, 0, 0, 1, 0)),
        (np.ones((4, 4)), (), (0, 0, 0, 0, 0)),
        (np.ones((4, 4)), lx.symmetric_tag, (0, 0, 0, 0, 1)),
        (np.ones((4, 4)), lx.positive_semidefinite_tag, (0, 0, 0, 0, 1)),
        (np.ones((4, 4)), lx.lower_triangular_tag, (0, 0, 1, 0, 0)),
        (np.ones((4, 4)), lx.diagonal_tag, (1, 1, 1, 1, 1)),
        (np.eye(4)[:3], (), (0, 0, 0, 0, 0)),
    ):
        operator = sparse_operator(matrix, tags)
        found = tuple(int(fn(operator)) for fn in functions)
        assert found == expected, (matrix, tags)
        if lx.is_symmetric(operator):
            assert operator.T is operator
    operator = sparse_operator(lower, lx.lower_triangular_tag)
    assert operator.transpose().tags == frozenset([lx.upper_triangular_tag])
    complex_operator = sparse_operator(
        np.full((2, 2), 1j), lx.negative_semidefinite_tag
    )
    assert not lx.is_symmetric(complex_operator)


@pytest.mark.parametrize(
    "band, solver",
    (
        ((0, 0), lx.Diagonal()),
        ((0, 0), lx.AutoLinearSolver(True)),
        ((1, 1), lx.Tridiagonal()),
        ((0, 1), lx.Tridiagonal()),
        ((6, 0), lx.Triangular()),
        ((0, 6), lx.Triangular()),
        ((2, 2), lx.LU()),
        ((2, 2), lx.GMRES(1e-13, 1e-13)),
        ((2, 2), lxe.QRMultiply()),
        ((2, 2), lxe.AutoStructuredLinearSolver()),
        ((1, 1), lxe.AutoStructuredLinearSolver()),
    ),
    ids=lambda x: type(x).__name__ if not isinstance(x, tuple) else str(x),
)
def test_solvers(band, solver):
    lower, upper = band
    dense = np.triu(np.tril(normal((7, 7)), upper), -lower) + 4 * np.eye(7)
    operator, b = sparse_operator(dense), normal((7,))

    def solve(values, b):
        op = lxe.SparseMatrixLinearOperator(values, operator.pattern)
        return lx.linear_solve(op, b, solver).value

    y = normal((7,), seed=1)

    @jax.jit
    def run(values, b):
        x, vjp = jax.vjp(solve, values, b)
        return x, vjp(y)

    x, (values_bar, b_bar) = run(operator.values, b)
    assert_close(x, np.linalg.solve(dense, b), 1e-11)
    expected = np.linalg.solve(dense.T, y)
    assert_close(b_bar, expected, 1e-11)
    rows, cols = operator.pattern.rows, operator.pattern.cols
    assert_close(values_bar, -expected[rows] * np.asarray(x)[cols], 1e-11)


def test_sums_and_products():
    a, b = random((6, 6)), random((6, 6), seed=1)
    x = normal((6,))
    sum_ = 2 * sparse_operator(a) + sparse_operator(b) / 4
    assert_close(sum_.mv(jnp.asarray(x)), 2 * a @ x + b @ x / 4, 1e-14)
    assert_close(lx.diagonal(sum_), (2 * a + b / 4).diagonal(), 1e-14)
    product = sparse_operator(a) @ sparse_operator(b).T
    assert_close(product.as_matrix(), (a @ b.T).toarray(), 1e-14)


def test_what_is_known_is_not_looked_for():
    blocks = sp.block_diag([normal((3, 3), seed=k) for k in range(20)], format="csr")
    operator = sparse_operator(blocks)
    tagged = lx.TaggedLinearOperator(operator, lx.symmetric_tag)
    pattern = operator.pattern
    for op in (operator, tagged):
        assert known_pattern(op) == detect(op) == pattern
        assert known_entries(op, pattern) is operator.values
        entries = Entries(op, pattern)
        assert_close(entries.matrix(), blocks.toarray(), 0)
        assert_close(entries.laid_out(np.arange(len(pattern))), operator.values, 0)
    plain = lx.MatrixLinearOperator(jnp.eye(2))
    assert known_pattern(plain) is None
    assert known_entries(plain, pattern) is None

    for kind, matrix in (
        ("blocks", blocks.toarray()),
        ("band", np.triu(np.tril(normal((96, 96)), 2), -2) + 4 * np.eye(96)),
        ("triangular", np.tril(normal((96, 96)), -30) + 4 * np.eye(96)),
    ):
        other, b = sparse_operator(matrix), normal((len(matrix),))
        assert arrange(other.pattern).kind == kind
        x = lx.linear_solve(other, b, lxe.AutoStructuredLinearSolver()).value
        assert_close(x, np.linalg.solve(matrix, b), 1e-11)

    # Entries of another pattern: those that are missing are zero.
    full = lxe.Pattern.from_scipy(sp.csr_array(np.ones((60, 60))))
    assert_close(known_entries(operator, full), blocks.toarray().reshape(-1), 0)


@pytest.mark.parametrize("half_bandwidth", (0, 1))
def test_entries_at_hand_are_not_applied_for(half_bandwidth, monkeypatch):
    matrix = np.tril(np.triu(normal((9, 9)), -half_bandwidth), 1) + 4 * np.eye(9)
    matrix = matrix if half_bandwidth else np.diag(np.diagonal(matrix))
    operator, b = sparse_operator(matrix), normal((9,))
    solver = lxe.AutoStructuredLinearSolver()
    monkeypatch.setattr(lxe.SparseMatrixLinearOperator, "mv", None)
    state = solver.init(operator, {})
    x, *_ = solver.compute(state, jnp.asarray(b), {})
    assert_close(x, np.linalg.solve(matrix, b), 1e-13)


#
# What is given
#


def test_from_bcoo():
    indices = jnp.array([[2, 1], [0, 0], [2, 1], [3, 3], [1, 2], [3, 0]])
    data = normal((6,))
    matrix = lambda data: jsparse.BCOO((data, indices), shape=(3, 3))
    expected = np.zeros((3, 3))
    expected[[2, 0, 1], [1, 0, 2]] = data[0] + data[2], data[1], data[4]
    operator = lxe.SparseMatrixLinearOperator.from_bcoo(
        matrix(jnp.asarray(data)), lx.symmetric_tag
    )
    assert operator.tags == frozenset([lx.symmetric_tag])
    assert len(operator.pattern) == 3
    assert_close(operator.as_matrix(), expected, 1e-15)

    weights = normal((3,), seed=1)

    def scalar(data):
        operator = lxe.SparseMatrixLinearOperator.from_bcoo(matrix(data))
        return jnp.vdot(jnp.asarray(weights), operator.values)

    gradient = jax.jit(jax.grad(scalar))(jnp.asarray(data))
    w = weights  # in the order (0, 0), (1, 2), (2, 1)
    assert_close(gradient, np.array([w[2], w[0], w[2], 0, w[1], 0]), 0)

    # Without duplicates, in any order; and nothing at all.
    dense = random((5, 4)).toarray()
    bcoo = jsparse.BCOO.fromdense(jnp.asarray(dense.T)).T
    operator = lxe.SparseMatrixLinearOperator.from_bcoo(bcoo)
    assert_close(operator.as_matrix(), dense, 0)
    empty = jsparse.BCOO.fromdense(jnp.zeros((2, 3)))
    assert len(lxe.SparseMatrixLinearOperator.from_bcoo(empty).pattern) == 0


def test_what_bcoo_may_not_be():
    def bcoo_of(data, indices, shape):
        indices = jnp.zeros(indices, np.int32)
        return jsparse.BCOO((jnp.ones(data), indices), shape=shape)

    for bcoo in (
        bcoo_of((1,), (1, 3), (2, 3, 4)),
        bcoo_of((3, 1), (3, 1, 1), (3, 4)),  # a batch of rows
        bcoo_of((1, 4), (1, 1), (3, 4)),  # dense rows
    ):
        with pytest.raises(ValueError, match="without batch and dense axes"):
            lxe.SparseMatrixLinearOperator.from_bcoo(bcoo)
    with pytest.raises(ValueError, match="traced indices"):
        jax.jit(lambda a: lxe.SparseMatrixLinearOperator.from_bcoo(a).values)(
            bcoo_of((1,), (1, 2), (3, 4))
        )


@pytest.mark.parametrize("shape", ((3,), (1,), (), (2, 1)), ids=str)
def test_wrong_values(shape):
    pattern = lxe.Pattern([0, 1], [0, 1], (2, 2))
    with pytest.raises(ValueError, match="`SparseMatrixLinearOperator` needs `values`"):
        lxe.SparseMatrixLinearOperator(jnp.ones(shape), pattern)


def test_integers_become_floats():
    operator = lxe.SparseMatrixLinearOperator(
        jnp.arange(2), lxe.Pattern([0, 1], [0, 1], (2, 2))
    )
    assert operator.values.dtype == jnp.float64


def test_equal_patterns_share_a_program():
    traces = []

    @jax.jit
    def apply(operator, x):
        traces.append(None)
        return operator.mv(x)

    matrix = random((6, 6))
    for factor in (1, 2):
        out = apply(sparse_operator(factor * matrix), jnp.ones(6))
        assert_close(out, factor * matrix @ np.ones(6), 1e-14)
    assert len(traces) == 1


def test_pattern_of_products():
    """A function that multiplies by a sparse matrix has the pattern of it."""
    matrix = random((7, 5))
    operator = sparse_operator(matrix)
    one = lambda y, _: operator.mv(jnp.sin(y))
    assert lxe.infer_pattern(one, jnp.ones(5)) == operator.pattern
    back = lambda y, _: operator.T.mv(y) + sparse_operator(matrix.T).mv(y**2)
    assert lxe.infer_pattern(back, jnp.ones(7)) == operator.pattern.T
    # A batch of vectors: blocks side by side.
    batch = lambda y, _: jax.vmap(operator.mv)(y)
    expected = sp.kron(sp.eye(3), operator.pattern.to_scipy())
    expected = lxe.Pattern.from_scipy(expected)
    assert lxe.infer_pattern(batch, jnp.ones((3, 5))) == expected
    # The values as unknowns, and their derivative.
    pattern, x = operator.pattern, jnp.asarray(normal((5,)))
    of_values = lambda v, _: lxe.SparseMatrixLinearOperator(v, pattern).mv(x)
    entries = np.arange(len(pattern))
    expected = lxe.Pattern(pattern.rows, entries, (7, len(pattern)))
    assert lxe.infer_pattern(of_values, operator.values) == expected
    loss = lambda y: jnp.sum(of_values(y, None) ** 2)
    found = lxe.infer_pattern(lambda v, _: jax.grad(loss)(v), operator.values)
    shared = pattern.rows[:, None] == pattern.rows
    assert found == lxe.Pattern(*np.nonzero(shared), shared.shape)
