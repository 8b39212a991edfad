"""slogdet, logdet and inv_quad_logdet, with NumPy and LAPACK as referees."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.linalg
from helpers import (
    assert_close,
    directional,
    equations,
    function_operator,
    gradient,
    in_turn,
    jacobian_operator,
    matrix_operator,
    normal,
    over_double_dtypes,
    pytree_jacobian_operator,
    pytree_operator,
    slow,
    tolerance,
    unflatten,
    well_conditioned,
)
from operators import banded, dense_path_fails

import lineax_ext as lxe


N = 5
BLOCKS = 3
PSD = lx.positive_semidefinite_tag


def general(n=N, dtype=np.float64, seed=0):
    """With a positive determinant, where that can be."""
    matrix = well_conditioned((n, n), dtype, seed)
    if n > 0 and np.linalg.det(matrix).real < 0:
        matrix[0] *= -1
    return matrix


def definite(n=N, dtype=np.float64, seed=0):
    root = well_conditioned((n, n), dtype, seed)
    return root @ root.conj().T + np.eye(n, dtype=dtype)


def tridiagonal(dtype=np.float64, n=N, seed=0):
    """With a zero on the diagonal: elimination has to pivot."""
    matrix = banded((n, n), 1, 1, dtype, seed)
    matrix[0, 0] = 0
    return matrix if n == 0 or np.linalg.det(matrix).real > 0 else -matrix


def tridiagonal_operator(matrix, tags=()):
    diagonals = [np.diagonal(matrix, offset) for offset in (0, -1, 1)]
    operator = lx.TridiagonalLinearOperator(*map(jnp.asarray, diagonals))
    return lx.TaggedLinearOperator(operator, tags) if tags else operator


def block_tridiagonal_operator(x):
    """Of the blocks of size two that are on the three diagonals."""
    blocks = x.reshape(BLOCKS, 2, BLOCKS, 2).swapaxes(1, 2)
    at = jnp.arange(BLOCKS)
    return lxe.BlockTridiagonalLinearOperator(
        blocks[at, at], blocks[at[1:], at[:-1]], blocks[at[:-1], at[1:]]
    )


def block_band(x):
    blocks = np.arange(2 * BLOCKS) // 2
    near = np.abs(blocks[:, None] - blocks[None]) <= 1
    return x * near.astype(x.dtype)


def block_tridiagonal(dtype):
    """With a block of zeros first: pivots come from the next block row."""
    matrix = block_band(normal((2 * BLOCKS,) * 2, dtype))
    matrix[:2, :2] = 0
    return block_tridiagonal_operator(jnp.asarray(matrix)), matrix


def definite_tridiagonal(dtype):
    lower = np.tril(banded((N, N), 1, 0, dtype), -1)
    return lower + lower.conj().T + 5 * np.eye(N, dtype=dtype)


def composed(dtype):
    first, second = general(N, dtype), general(N, dtype, 1)
    return matrix_operator(first) @ jacobian_operator(second), first @ second


def oblong(dtype):
    """Square, of factors that are not."""
    matrix = well_conditioned((N, N + 2), dtype)
    operator = matrix_operator(matrix) @ matrix_operator(matrix.conj().T)
    return lx.TaggedLinearOperator(operator, PSD), matrix @ matrix.conj().T


def scaled(dtype):
    matrix = definite(N, dtype)
    operator = -(matrix_operator(matrix, PSD) * 2.0) / -0.5
    return lx.TaggedLinearOperator(operator, PSD), 4 * matrix


def pair(make_operator, matrix, tags=()):
    return make_operator(matrix, tags), matrix


def identity(dtype):
    operator = lx.IdentityLinearOperator(jax.ShapeDtypeStruct((N,), dtype))
    return operator, np.eye(N, dtype=dtype)


def summed(dtype):
    parts = [definite(N, dtype, seed) for seed in (0, 1)]
    return matrix_operator(parts[0], PSD) + function_operator(parts[1], PSD), sum(parts)


def diagonal(dtype):
    entries = np.abs(normal((N,))).astype(dtype)
    return lx.DiagonalLinearOperator(jnp.asarray(entries)), np.diag(entries)


def tagged(make_matrix, *tags):
    """A tag outside, around a Jacobian."""

    def make(dtype):
        matrix = make_matrix(dtype)
        return lx.TaggedLinearOperator(jacobian_operator(matrix), tags), matrix

    return make


def triangle(dtype):
    return np.tril(general(N, dtype)) * np.sign(np.diagonal(general(N))).astype(dtype)


STRUCTURED = {
    "diagonal": diagonal,
    "identity": identity,
    "tridiagonal": lambda dtype: pair(tridiagonal_operator, tridiagonal(dtype)),
    "block-tridiagonal": block_tridiagonal,
    "definite tridiagonal": lambda dtype: pair(
        tridiagonal_operator, definite_tridiagonal(dtype), PSD
    ),
    "tagged diagonal": tagged(lambda dtype: diagonal(dtype)[1], lx.diagonal_tag),
    "tagged tridiagonal": tagged(tridiagonal, lx.tridiagonal_tag),
}
OPERATORS = STRUCTURED | {
    "lower triangular": tagged(triangle, lx.lower_triangular_tag),
    "upper triangular": tagged(lambda d: triangle(d).T, lx.upper_triangular_tag),
    "matrix": lambda dtype: pair(matrix_operator, general(N, dtype)),
    "definite": lambda dtype: pair(matrix_operator, definite(N, dtype), PSD),
    "negative": lambda dtype: pair(
        matrix_operator, -definite(N, dtype), lx.negative_semidefinite_tag
    ),
    "definite function": lambda dtype: pair(function_operator, definite(N, dtype), PSD),
    "pytree": lambda dtype: pair(pytree_operator, general(N, dtype)),
    "pytree jacobian": lambda dtype: pair(pytree_jacobian_operator, general(N, dtype)),
    "tagged": tagged(lambda dtype: definite(N, dtype), PSD),
    "composed": composed,
    "oblong": oblong,
    "scaled": scaled,
    "sum": summed,
}


def expected_terms(operator, matrix, b):
    """The quadratic form, and log det as the docstring has it."""
    matrix = matrix.astype(np.promote_types(matrix.dtype, np.float64))
    quad = np.vdot(b, np.linalg.solve(matrix, b))
    sign, logdet = np.linalg.slogdet(matrix)
    if lx.is_positive_semidefinite(operator):
        return quad.real, logdet
    if np.iscomplexobj(matrix):
        return quad, logdet + 1j * np.angle(sign)
    return (quad, logdet) if sign > 0 else (np.nan, np.nan)


@in_turn("name, dtype", OPERATORS, (np.float32, np.float64, np.complex128))
def test_values(name, dtype):
    operator, matrix = OPERATORS[name](dtype)
    b = normal(matrix.shape[:1], dtype, 7)
    vector = unflatten(b, operator.out_structure())

    @eqx.filter_jit
    def run(operator, vector):
        found = lxe.inv_quad_logdet(operator, vector, throw=False)
        return lxe.slogdet(operator), found, lxe.logdet(operator, throw=False)

    (sign, logabsdet), terms_found, log = run(operator, vector)
    rtol = 100 * tolerance(dtype)
    for found, expected in zip(
        (sign, logabsdet), np.linalg.slogdet(np.asarray(matrix, np.complex128))
    ):
        assert abs(complex(found) - expected) <= rtol * (1 + abs(expected))
    assert logabsdet.dtype == np.finfo(dtype).dtype and sign.dtype == dtype
    terms = expected_terms(operator, matrix, b)
    for value, expected in zip(terms_found, terms):
        assert np.isrealobj(value) == np.isrealobj(expected)
        error = complex(value) - expected
        if np.iscomplexobj(expected):  # rounding decides between −π and π
            error -= 2j * np.pi * np.round(error.imag / (2 * np.pi))
        assert abs(error) <= rtol * (1 + abs(expected)) or (
            np.isnan(expected) and np.isnan(value)
        )
    assert_close(np.nan_to_num(log), np.nan_to_num(terms_found[1]), rtol)


def hermitian(x):
    return (x + x.conj().T) / 2


def band(x):
    return x * (np.tri(N, k=1) - np.tri(N, k=-2)).astype(x.dtype)


def tag_outside(*tags):
    return lambda x: lx.TaggedLinearOperator(jacobian_operator(x), tags)


# How to make an operator of a matrix, which is first made to have the structure, and
# what matrix it then has.
DERIVED = {
    "matrix": (lambda x: x, matrix_operator, lambda x: x),
    "definite": (hermitian, lambda x: matrix_operator(x, PSD), lambda x: x),
    "tridiagonal": (
        band,
        lambda x: lx.TridiagonalLinearOperator(*map(x.diagonal, (0, -1, 1))),
        lambda x: x,
    ),
    "block-tridiagonal": (block_band, block_tridiagonal_operator, lambda x: x),
    "product": (
        lambda x: x,
        lambda x: (matrix_operator(x) @ jacobian_operator(x)) * x[0, 0],
        lambda x: x[0, 0] * x @ x,
    ),
    "diagonal": (
        lambda x: x * np.eye(N),
        lambda x: lx.DiagonalLinearOperator(x.diagonal()),
        lambda x: x,
    ),
    "negative": (
        hermitian,
        lambda x: matrix_operator(-x, lx.negative_semidefinite_tag),
        lambda x: -x,
    ),
    "tagged tridiagonal": (band, tag_outside(lx.tridiagonal_tag), lambda x: x),
    "triangular": (
        lambda x: x * np.tri(N),
        tag_outside(lx.lower_triangular_tag),
        lambda x: x,
    ),
}
# Of those in complex, too, one of the two without `--slow`; and none of those that
# take long and take the path of others.
COMPLEX = ("matrix",)
REAL = ("definite", "tridiagonal", "product", "block-tridiagonal")
LONG = ("negative", "tagged tridiagonal")


@pytest.mark.parametrize(
    "name, dtype",
    [
        (slow if name in COMPLEX + LONG else pytest.param)(name, np.float64)
        for name in DERIVED
    ]
    + [
        (pytest.param if name in COMPLEX else slow)(name, np.complex128)
        for name in COMPLEX + REAL
    ],
)
def test_derivatives(name, dtype):
    """First and second, forward and reverse and all orders of them, by differences."""
    project, make_operator, as_matrix = DERIVED[name]
    n = 2 * BLOCKS if name in ("block-tridiagonal", "negative") else N
    x, v, b = definite(n, dtype), normal((n, n), dtype, 2), normal((n,), dtype, 7)
    x[0, 0] += 1

    def weigh(quad, sign, logabsdet):
        # A sign of modulus one is free to turn if it is complex.
        return quad.real - 2 * quad.imag + 3 * logabsdet + sign.real + 0.5 * sign.imag

    @jax.jit
    def derivatives(x, v):
        def value(x):
            operator = make_operator(project(x))
            quad, _ = lxe.inv_quad_logdet(operator, b, throw=False)
            return weigh(quad, *lxe.slogdet(operator))

        grad = jax.grad(value)
        along = lambda g: jnp.sum((g * v).real)
        jvp = lambda x: jax.jvp(value, (x,), (v,))[1]
        first, forward_over_reverse = jax.jvp(grad, (x,), (v,))
        tangent, reverse_over_forward = jax.value_and_grad(jvp)(x)
        reverse_over_reverse = jax.grad(lambda x: along(grad(x)))(x)
        second = forward_over_reverse, reverse_over_forward, reverse_over_reverse
        return first, tangent, second

    def reference(x):
        matrix = as_matrix(project(x))
        return weigh(np.vdot(b, np.linalg.solve(matrix, b)), *np.linalg.slogdet(matrix))

    first = gradient(reference, x)
    second = directional(lambda t: gradient(reference, x + t * v))
    found, tangent, products = derivatives(x, v)
    assert_close(found, first, 1e-8)
    assert_close(tangent, np.sum((first * v).real), 1e-8)
    for product in products:
        assert_close(product, second, 1e-6)


@over_double_dtypes
@pytest.mark.parametrize("n", (slow(40), 130, 300))
def test_gradient_is_the_inverse(n, dtype):
    """At sizes at which the inverse is put together from blocks."""
    matrix, b = definite(n, dtype), normal((n,), dtype)
    inverse = np.linalg.inv(matrix)
    x = inverse @ b

    def terms(matrix, b):
        return lxe.inv_quad_logdet(matrix_operator(matrix, PSD), b)

    (quad, logdet), pullback = jax.vjp(terms, matrix, b)
    one, zero = jnp.ones(()), jnp.zeros(())
    # In JAX's convention a gradient is the conjugate of that of C as R².
    assert_close(pullback((zero, one))[0], inverse.T, 1e-12)
    assert_close(pullback((one, zero))[0], -np.outer(x, x.conj()).conj(), 1e-11)
    assert_close(pullback((one, zero))[1], 2 * x.conj(), 1e-12)
    assert_close(quad, np.vdot(b, x).real, 1e-12)
    assert_close(logdet, np.linalg.slogdet(matrix)[1], 1e-12)


def test_gradient_by_differences():
    matrix, b = general(), normal((N,), seed=3)

    def value(matrix, b):
        return b @ np.linalg.solve(matrix, b) + np.linalg.slogdet(matrix)[1]

    found = jax.grad(
        lambda matrix, b: sum(lxe.inv_quad_logdet(matrix_operator(matrix), b)), (0, 1)
    )(matrix, b)
    assert_close(found[0], gradient(lambda x: value(x, b), matrix), 1e-8)
    assert_close(found[1], gradient(lambda x: value(matrix, x), b), 1e-8)


@pytest.mark.parametrize("n", (60, 300))
def test_ill_conditioned_kernel(n):
    """Scaling the kernel by c multiplies the determinant by cⁿ: tr(A⁻¹ A) = n."""
    x = np.linspace(0, 1, n)
    kernel = np.exp(-((x[:, None] - x[None]) ** 2) / 0.02) + 1e-10 * np.eye(n)
    fn = lambda c: lxe.logdet(matrix_operator(c * jnp.asarray(kernel), PSD))
    assert_close(jax.grad(fn)(1.0), np.asarray(float(n)), 1e-4)


@pytest.mark.parametrize("tags", ((), PSD), ids=("LU", "Cholesky"))
def test_one_factorisation(tags):
    # Value, both gradients, and a Hessian product on top.
    def value(matrix, b):
        operator = matrix_operator(matrix, tags)
        return sum(lxe.inv_quad_logdet(operator, b, throw=False))

    grad = jax.value_and_grad(value, (0, 1))
    matrix, b = definite(100), normal((100,))
    names = lambda fn, *args: [
        eqn.primitive.name for eqn in equations(jax.make_jaxpr(fn)(*args).jaxpr)
    ]
    for fn in (
        lambda: names(value, matrix, b),
        lambda: names(grad, matrix, b),
        lambda: names(lambda m, b: jax.jvp(grad, (m, b), (m, b)), matrix, b),
    ):
        assert sum(name in ("cholesky", "lu") for name in fn()) == 1
    # A solve and its transpose; the inverse is for derivatives alone.
    assert names(value, matrix, b).count("triangular_solve") == 4


def test_vmap():
    matrices = np.stack([definite(N, seed=seed) for seed in range(3)])
    vectors = normal((2, N))

    def terms(matrix, b):
        return lxe.inv_quad_logdet(matrix_operator(matrix, PSD), b)

    over_vectors = jax.vmap(terms, (None, 0))
    for found, expected in zip(
        jax.jit(jax.vmap(over_vectors, (0, None)))(matrices, vectors),
        (
            np.einsum("bi,mij,bj->mb", vectors, np.linalg.inv(matrices), vectors),
            np.repeat(np.linalg.slogdet(matrices)[1][:, None], 2, 1),
        ),
    ):
        assert_close(found, expected, 1e-12)
    grads = jax.vmap(jax.grad(lambda m, b: terms(m, b)[1]), (0, None))
    assert_close(grads(matrices, vectors[0]), np.linalg.inv(matrices), 1e-12)


def test_vmap_of_tridiagonals():
    matrices = np.stack([tridiagonal(seed=seed) for seed in range(3)])
    fn = lambda matrix: lxe.slogdet(
        lx.TridiagonalLinearOperator(*[jnp.diagonal(matrix, i) for i in (0, -1, 1)])
    )
    for found, expected in zip(jax.vmap(fn)(matrices), np.linalg.slogdet(matrices)):
        assert_close(found, expected, 1e-12)


def test_vmap_of_sparse_matrices():
    # Pivots of the second are raised, and of these three it alone is singular.
    rng = np.random.default_rng(0)
    matrices = rng.standard_normal((3, 8, 8)) * (rng.random((8, 8)) < 0.4)
    matrices = matrices + 4 * np.eye(8)
    matrices[1, 3] = 0
    pattern = lxe.Pattern(*np.nonzero(matrices[0]), (8, 8))
    values = jnp.asarray(matrices[:, pattern.rows, pattern.cols])

    def fn(values):
        return lxe.slogdet(lxe.SparseMatrixLinearOperator(values, pattern))

    signs, logabsdets = jax.jit(jax.vmap(fn))(values)
    expected = np.linalg.slogdet(matrices)
    np.testing.assert_allclose(signs, expected[0])
    np.testing.assert_allclose(logabsdets, expected[1], rtol=1e-12)
    grad = jax.jit(jax.vmap(jax.grad(lambda values: fn(values)[1])))(values[::2])
    for found, matrix in zip(grad, matrices[::2]):
        inverse = np.linalg.inv(matrix).T[pattern.rows, pattern.cols]
        np.testing.assert_allclose(found, inverse, rtol=1e-10, atol=1e-12)


#
# Tridiagonal, large
#


def test_large_tridiagonal():
    n = 100_000
    rng = np.random.default_rng(0)
    diagonals = [rng.standard_normal(k) for k in (n, n - 1, n - 1)]
    lapack = scipy.linalg.lapack
    pivots = lapack.dgttrf(diagonals[1], diagonals[0], diagonals[2])[1]

    def value(*diagonals):
        return lxe.slogdet(lx.TridiagonalLinearOperator(*diagonals))[1]

    fn = jax.jit(jax.value_and_grad(value, (0, 1, 2)))
    compiled = fn.lower(*diagonals).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 200 * n
    found, gradients = compiled(*diagonals)
    assert_close(found, np.sum(np.log(np.abs(pivots))), 1e-13)
    columns = np.array([1, 777, n // 2, n - 2])
    units = np.zeros((n, columns.size))
    units[columns, np.arange(columns.size)] = 1
    solved = lapack.dgtsv(diagonals[1], diagonals[0], diagonals[2], units)[3]
    for gradient_, offset in zip(gradients, (0, -1, 1)):
        expected = solved[columns + offset, np.arange(columns.size)]
        assert_close(gradient_[columns + min(offset, 0)], expected, 1e-10)


@pytest.mark.parametrize("make", STRUCTURED.values(), ids=STRUCTURED)
def test_structure_is_used(make):
    operator, matrix = make(np.float64)
    b = unflatten(np.ones(len(matrix)), operator.out_structure())
    with dense_path_fails():
        eqx.filter_eval_shape(lxe.slogdet, operator)
        eqx.filter_eval_shape(lxe.inv_quad_logdet, operator, b)


def test_small_ratios_do_not_underflow():
    operator = lx.TridiagonalLinearOperator(
        jnp.full((5,), 1e-170), jnp.zeros(4), jnp.ones(4)
    )
    value, grad = jax.value_and_grad(lambda op: lxe.slogdet(op)[1])(operator)
    assert_close(value, np.asarray(5 * np.log(1e-170)), 1e-14)
    assert_close(grad.diagonal, np.full((5,), 1e170), 1e-12)


def test_scales_do_not_overflow():
    # Rows from 1e-250 to 1e250, whose products are beyond the range.
    rows = np.geomspace(1e-250, 1e250, 60)
    matrix = banded((60, 60), 1, 1)
    _, found = lxe.slogdet(tridiagonal_operator(matrix * rows[:, None]))
    expected = np.linalg.slogdet(matrix)[1] + np.sum(np.log(rows))
    assert abs(found - expected) < 1e-11


#
# Singular, false, degenerate
#


def singular_operators():
    """Exactly, so that rounding does not hide it."""
    ones = np.ones((4, 4))
    yield "LU", matrix_operator(ones)
    yield "Cholesky", matrix_operator(ones, PSD)
    yield "zero", matrix_operator(0 * ones, PSD)
    laplacian = np.diag([1.0, 2, 2, 1]) - np.eye(4, k=1) - np.eye(4, k=-1)
    yield "tridiagonal", tridiagonal_operator(laplacian)
    yield "definite tridiagonal", tridiagonal_operator(laplacian, PSD)
    blocks = np.zeros((6, 6))
    blocks[:2, 2:4] = blocks[2:4, :2] = np.eye(2)
    yield "block-tridiagonal", block_tridiagonal_operator(jnp.asarray(blocks))
    yield "diagonal", lx.DiagonalLinearOperator(jnp.array([1.0, 0, 2]))
    yield "product", matrix_operator(ones) @ matrix_operator(ones)


@eqx.filter_jit
def all_three(operator, b):
    terms = lxe.inv_quad_logdet(operator, b, throw=False)
    return lxe.slogdet(operator), lxe.logdet(operator, throw=False), terms


@pytest.mark.parametrize(
    "operator", [pytest.param(op, id=name) for name, op in singular_operators()]
)
def test_singular(operator):
    b = jnp.ones(operator.in_size())
    (sign, logabsdet), log, (quad, logdet) = all_three(operator, b)
    assert sign == 0 and logabsdet == log == logdet == -np.inf
    assert np.isnan(quad)


@pytest.mark.parametrize(
    "operator",
    [
        (pytest.param if name in ("Cholesky", "tridiagonal") else slow)(op, id=name)
        for name, op in singular_operators()
    ],
)
def test_singular_throws(operator):
    """Of a quadratic form alone: the logarithm has its value, −∞."""
    with pytest.raises(eqx.EquinoxRuntimeError, match="singular"):
        lxe.inv_quad_logdet(operator, jnp.ones(operator.in_size()))
    assert lxe.logdet(operator) == -np.inf


def falsely_tagged():
    matrix = definite()
    matrix[2, 2] -= 20
    matrix[3, 3] -= 20  # an even number of negative eigenvalues
    yield "Cholesky", matrix_operator(matrix, PSD)
    yield (
        "diagonal",
        lx.TaggedLinearOperator(
            lx.DiagonalLinearOperator(jnp.array([1.0, -1, -1])), PSD
        ),
    )
    tri = np.diag([1.0, -1, -1, 1])
    yield "tridiagonal", tridiagonal_operator(tri, PSD)
    yield "negation", lx.TaggedLinearOperator(-matrix_operator(np.eye(4), PSD), PSD)
    negative = lx.TaggedLinearOperator(
        matrix_operator(np.diag([-1.0, 1, 1])) * 2.0, lx.negative_semidefinite_tag
    )
    yield "negative", negative
    yield "nan", matrix_operator(np.full((3, 3), np.nan), PSD)


FALSELY_TAGGED = dict(falsely_tagged())


@pytest.mark.parametrize("name", FALSELY_TAGGED)
def test_false_tag(name):
    operator = FALSELY_TAGGED[name]
    found = all_three(operator, jnp.ones(operator.in_size()))
    assert all(np.isnan(x) for x in jax.tree.leaves(found))


@in_turn(
    "name, fn",
    FALSELY_TAGGED,
    (
        lambda op, b: lxe.logdet(op),
        lambda op, b: jax.grad(lambda op: lxe.logdet(op))(op),
        lambda op, b: lxe.inv_quad_logdet(op, b)[0],
    ),
)
def test_false_tag_throws(name, fn):
    operator = FALSELY_TAGGED[name]
    with pytest.raises(eqx.EquinoxRuntimeError, match="semidefinite"):
        eqx.filter_jit(fn)(operator, jnp.ones(operator.in_size()))


def test_false_tag_in_a_batch():
    # The good ones keep their value, and only then are eigenvalues looked for.
    matrices = np.stack([np.eye(3), np.ones((3, 3)), np.diag([1.0, -1, -1])])
    fn = jax.vmap(lambda x: lxe.slogdet(matrix_operator(x, PSD)))
    sign, logabsdet = fn(matrices)
    np.testing.assert_array_equal(sign, [1, 0, np.nan])
    np.testing.assert_array_equal(logabsdet, [0, -np.inf, np.nan])
    jaxpr = jax.make_jaxpr(fn)(matrices).jaxpr
    outside = {eqn.primitive.name for eqn in jaxpr.eqns}
    assert "eigh" not in outside
    assert any(
        eqn.primitive.name == "cond" and eqn.invars[0].aval.shape == ()
        for eqn in equations(jaxpr)
    )


def test_negative_determinant():
    matrix = np.diag([1.0, -2.0, 3.0])
    sign, logabsdet = lxe.slogdet(matrix_operator(matrix))
    assert sign == -1
    assert_close(logabsdet, np.log(6), 1e-15)
    assert np.isnan(lxe.logdet(matrix_operator(matrix), throw=False))
    grad = jax.grad(lambda x: lxe.logdet(matrix_operator(x), throw=False))(matrix)
    assert np.all(np.isnan(np.diagonal(grad)))
    with pytest.raises(eqx.EquinoxRuntimeError, match="negative"):
        lxe.logdet(matrix_operator(matrix))


@pytest.mark.parametrize(
    "make",
    (
        lambda d: lx.TridiagonalLinearOperator(d, 0.1 * d[1:], 0.2 * d[1:]),
        lambda d: lx.MatrixLinearOperator(jnp.diag(d), lx.upper_triangular_tag),
        lambda d: lxe.BlockTridiagonalLinearOperator(
            d[:, None, None], 0.1 * d[1:, None, None], 0.2 * d[1:, None, None]
        ),
    ),
)
def test_derivative_of_what_is_invalid(make):
    """nan, as asked for, and not an error of the solver that meets it."""

    def loss(d):
        return sum(lxe.inv_quad_logdet(make(d), jnp.ones(3), throw=False))

    grads = jax.jit(jax.vmap(jax.grad(loss)))(np.array([[1.0, -2, 3], [1, 2, 3]]))
    assert np.all(np.isnan(grads[0]))
    assert_close(grads[1], gradient(loss, np.array([1.0, 2, 3])), 1e-8)


@over_double_dtypes
@pytest.mark.parametrize("n", (0, 1))
@pytest.mark.parametrize(
    "make",
    (
        lambda x: matrix_operator(x),
        lambda x: matrix_operator(x, PSD),
        lambda x: lx.DiagonalLinearOperator(jnp.diagonal(x)),
        lambda x: lx.TaggedLinearOperator(matrix_operator(x), lx.tridiagonal_tag),
    ),
)
def test_sizes(make, n, dtype):
    matrix, b = np.full((n, n), 3, dtype), np.full((n,), 2, dtype)
    operator = make(jnp.asarray(matrix))
    sign, logabsdet = lxe.slogdet(operator)
    assert sign == 1
    assert_close(logabsdet, np.asarray(n * np.log(3)), 1e-15)
    quad, logdet = lxe.inv_quad_logdet(operator, b)
    assert_close(quad, np.asarray(n * 4 / 3), 1e-15)
    assert_close(logdet.real, np.asarray(n * np.log(3)), 1e-15)


#
# What users hand in
#


def test_own_rule():
    """A class with a rule of its own, by itself and inside of others."""
    matrix = general()

    class Known(lx.MatrixLinearOperator):
        pass

    calls = []

    @lxe.slogdet.register(Known)
    def _(operator):
        calls.append(operator)
        return jnp.array(1.0), jnp.array(0.25)

    b = normal((N,))
    known = Known(jnp.asarray(matrix))
    assert lxe.slogdet(known)[1] == lxe.logdet(known) == 0.25
    quad, logdet = lxe.inv_quad_logdet(known, b)
    assert logdet == 0.25
    assert_close(quad, b @ np.linalg.solve(matrix, b), 1e-12)
    assert_close(lxe.slogdet(known @ known * 2.0)[1], 0.5 + N * np.log(2), 1e-15)
    tagged = lx.TaggedLinearOperator(known, PSD)
    assert lxe.logdet(tagged) == 0.25
    assert len(calls) == 6


@pytest.mark.parametrize("tags", ((), lx.tridiagonal_tag, lx.lower_triangular_tag))
def test_mixed_dtypes(tags):
    """In float64 and out of a function that mixes, exact in float32."""
    scale = jnp.arange(1.0, 5.0)

    def fn(x, args):
        y = scale * x
        return y[:2].astype(np.float32), y[2:]

    operator = lx.JacobianLinearOperator(fn, jnp.ones(4), None, tags)
    b = jnp.ones(2, np.float32), jnp.ones(2)
    quad, logdet = lxe.inv_quad_logdet(operator, b)
    assert_close(quad, np.sum(1 / np.arange(1.0, 5.0)), 1e-6)
    assert_close(logdet, np.log(24.0), 1e-6)


def test_refused():
    wide = matrix_operator(normal((2, 3)))
    for fn in (lxe.slogdet, lxe.logdet, lambda op: lxe.inv_quad_logdet(op, None)):
        with pytest.raises(ValueError, match="square operator; found one of 2 rows"):
            fn(wide)
        with pytest.raises(ValueError, match="needs a `lineax.AbstractLinearOperator`"):
            fn(np.eye(2))
    square = matrix_operator(np.eye(2))
    with pytest.raises(ValueError, match="of a complex scalar and a real operator"):
        lxe.slogdet(square * 2j)
    for vector in (jnp.ones(3), {"a": jnp.ones(2)}, jnp.full((2,), 1j)):
        with pytest.raises(ValueError, match="structure of the operator's output"):
            lxe.inv_quad_logdet(square, vector)
