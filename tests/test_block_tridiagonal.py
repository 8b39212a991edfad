"""What block-tridiagonal systems alone have: pivoting, bands, edges, and their cost."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from helpers import (
    assert_close,
    block_tridiagonal_operator,
    equations,
    matrix_operator,
    normal,
    over_double_dtypes,
    turned,
)
from operators import banded

import lineax_ext as lxe
from lineax_ext._factor.band import block_size, pack_band


SOLVER = lxe.BlockTridiagonal()


def random_matrix(count, k, dtype=np.float64, seed=0):
    near = np.abs(np.subtract.outer(np.arange(count), np.arange(count))) <= 1
    size = count * k
    return normal((size, size), dtype, seed) * np.kron(near, np.ones((k, k)))


def blocks_of(matrix, k):
    count = len(matrix) // k
    return matrix.reshape(count, k, count, k).swapaxes(1, 2)


#
# Matrices on which elimination without pivoting, or with pivots from the diagonal
# blocks alone, breaks down or loses all digits
#


def zero_diagonal(count, k, dtype):
    """Zeros, and next to them orthogonal blocks; regular for an even `count`."""
    matrix = np.zeros((count * k, count * k), dtype)
    blocks = blocks_of(matrix, k)
    for i in range(count - 1):
        for at in ((i, i + 1), (i + 1, i)):
            blocks[at] = np.linalg.qr(normal((k, k), dtype, 3 * i + at[0]))[0]
    return matrix


def singular_leading_blocks(count, k, dtype):
    matrix = random_matrix(count, k, dtype)
    blocks = blocks_of(matrix, k)
    blocks[0, 0] = 0
    blocks[count // 2, count // 2, :, 0] = blocks[count // 2, count // 2, :, -1]
    return matrix


def scales(size, seed):
    return 10 ** np.random.default_rng(seed).uniform(-6, 6, size)


def scaled_rows(count, k, dtype):
    return scales(count * k, 0)[:, None] * random_matrix(count, k, dtype)


def scaled_columns(count, k, dtype):
    return random_matrix(count, k, dtype) * scales(count * k, 0)


def scaled_both(count, k, dtype):
    return scales(count * k, 1)[:, None] * scaled_columns(count, k, dtype)


def dependent_panel(count, k, dtype):
    """Two columns of the first panel differ by 1e-8: so far off are its inverses."""
    matrix = random_matrix(count, k, dtype)
    if k > 1:
        change = 1e-8 * matrix[: 2 * k, 1]
        matrix[: 2 * k, 1] = matrix[: 2 * k, 0] + change
    return matrix


MATRICES = (
    random_matrix,
    zero_diagonal,
    singular_leading_blocks,
    scaled_rows,
    scaled_columns,
    scaled_both,
    dependent_panel,
)


@pytest.mark.parametrize("count, k", ((40, 1), (30, 4), (12, 9)))
@over_double_dtypes
def test_backward_error(count, k, dtype):
    matrices = np.stack([make(count, k, dtype) for make in MATRICES])
    transposes, x = matrices.swapaxes(1, 2), normal((count * k,), dtype)
    # Right-hand sides whose solution is moderate, and others whose solution is large.
    vectors = np.stack([matrices @ x, transposes @ x, np.tile(x, (len(matrices), 1))])

    @jax.jit
    @jax.vmap
    def run(matrix, vectors):
        state = SOLVER.init(block_tridiagonal_operator(matrix, k), {})
        transpose, _ = SOLVER.transpose(state, {})
        states = state, transpose, state
        out = [SOLVER.compute(s, v, {})[:2] for s, v in zip(states, vectors)]
        return [value for value, _ in out], [result for _, result in out]

    xs, results = run(jnp.asarray(matrices), jnp.asarray(vectors.swapaxes(0, 1)))
    norm = np.linalg.norm
    for a, b, x, result in zip(
        (matrices, transposes, matrices), vectors, map(np.asarray, xs), results
    ):
        assert np.all(result == lx.RESULTS.successful)
        residuals = norm(np.einsum("bij,bj->bi", a, x) - b, axis=1)
        errors = residuals / (norm(a, 2, axis=(1, 2)) * norm(x, axis=1))
        assert np.all(errors < 1e-14), errors


def test_float32():
    matrix = singular_leading_blocks(20, 3, np.float32)
    x = normal((60,), np.float32)
    solve = eqx.filter_jit(lambda op, b: lx.linear_solve(op, b, SOLVER).value)
    out = np.asarray(solve(block_tridiagonal_operator(matrix, 3), matrix @ x), float)
    residual = np.linalg.norm(matrix.astype(float) @ out - matrix @ x)
    assert residual < 1e-6 * np.linalg.norm(matrix, 2) * np.linalg.norm(out)


def test_scaling_of_columns_is_harmless():
    scale = scales(24, 0)
    matrix, b = random_matrix(8, 3), normal((24,))
    expected = np.linalg.solve(matrix, b) / scale
    solve = eqx.filter_jit(lambda op: lx.linear_solve(op, b, SOLVER).value)
    out = solve(block_tridiagonal_operator(matrix * scale, 3))
    assert_close(out / expected, np.ones(24), 1e-10)


#
# Singular
#


def diffusion(n, left):
    """−(c u′)′ with no flux at the right end, and none at the left if `left` is 0."""
    c = np.exp(normal((n + 1,)))
    c[-1], c[0] = 0, c[0] * left
    return np.diag(c[1:] + c[:-1]) - np.diag(c[1:-1], 1) - np.diag(c[1:-1], -1)


@pytest.mark.parametrize("k", (1, 4))
def test_singular_in_the_last_pivot_alone(k):
    # The rounding errors of 600 steps stand where the last pivot should be zero.
    n = 600
    solve = eqx.filter_jit(lambda op, b: lx.linear_solve(op, b, SOLVER, throw=False))
    solution = solve(block_tridiagonal_operator(diffusion(n, 0), k), normal((n,)))
    assert solution.result == lx.RESULTS.singular
    matrix, b = diffusion(n, 1), normal((n,))
    solution = solve(block_tridiagonal_operator(matrix, k), b)
    assert solution.result == lx.RESULTS.successful
    assert_close(solution.value, np.linalg.solve(matrix, b), 1e-10)


#
# Sizes, and what is refused
#


@pytest.mark.parametrize("count, k", ((0, 0), (0, 3), (3, 0), (1, 1), (2, 1), (1, 3)))
@over_double_dtypes
def test_sizes_0_and_1(count, k, dtype):
    size = count * k
    matrix, b = random_matrix(count, k, dtype), normal((size,), dtype)
    blocks = blocks_of(matrix, k) if size > 0 else np.zeros((count, count, k, k), dtype)
    i = np.arange(count)
    bands = blocks[i, i], blocks[i[1:], i[:-1]], blocks[i[:-1], i[1:]]

    @jax.jit
    def run(bands, b):
        operator = lxe.BlockTridiagonalLinearOperator(*bands)
        transpose, _, adjoint = turned(SOLVER, operator)
        solutions = (
            lx.linear_solve(operator, b, SOLVER).value,
            SOLVER.compute(transpose, b, {})[0],
            SOLVER.compute(adjoint, b, {})[0],
        )
        diagonals = lx.diagonal(operator), *lx.tridiagonal(operator)
        return operator.as_matrix(), operator.mv(b), diagonals, solutions

    found, product, diagonals, solutions = run(bands, b)
    assert_close(found, matrix, 0)
    assert_close(product, matrix @ b, 1e-15)
    for diagonal, offset in zip(diagonals, (0, 0, -1, 1)):
        assert_close(diagonal, np.diagonal(matrix, offset) if size > 0 else b, 0)
    for solution, a in zip(solutions, (matrix, matrix.T, matrix.conj().T)):
        assert_close(solution, np.linalg.solve(a, b), 1e-13)


@pytest.mark.parametrize(
    "shapes",
    (
        ((3, 2, 2), (3, 2, 2), (2, 2, 2)),
        ((3, 2, 2), (2, 2, 2), (2, 2, 3)),
        ((3, 2, 1), (2, 2, 1), (2, 2, 1)),
        ((6,), (5,), (5,)),
    ),
)
def test_wrong_shapes(shapes):
    with pytest.raises(ValueError, match="`BlockTridiagonalLinearOperator` needs"):
        lxe.BlockTridiagonalLinearOperator(*map(jnp.ones, shapes))


def test_other_operators_are_refused():
    with pytest.raises(
        ValueError, match="`BlockTridiagonal` .* `MatrixLinearOperator`"
    ):
        lx.linear_solve(matrix_operator(np.eye(4)), jnp.ones(4), SOLVER)


def test_tags_and_dtypes():
    matrix = random_matrix(3, 2)
    symmetric = block_tridiagonal_operator(matrix + matrix.T, 2, lx.symmetric_tag)
    assert lx.is_symmetric(symmetric) and symmetric.T is symmetric
    lower = block_tridiagonal_operator(np.tril(matrix), 2, lx.lower_triangular_tag)
    assert lx.is_upper_triangular(lower.T) and not lx.is_lower_triangular(lower.T)
    semidefinite = lx.positive_semidefinite_tag
    for a, real in ((np.eye(4), True), (np.eye(4) * (1 + 0j), False)):
        operator = block_tridiagonal_operator(a, 2, semidefinite)
        assert lx.is_symmetric(operator) is real
    tagged = lx.TaggedLinearOperator(block_tridiagonal_operator(matrix, 2), ())
    b = normal((6,))
    out = lx.linear_solve(tagged, b, SOLVER).value
    assert_close(out, np.linalg.solve(matrix, b), 1e-12)
    integers = jnp.ones((2, 1, 1), int), jnp.zeros((1, 1, 1)), jnp.zeros((1, 1, 1))
    assert lxe.BlockTridiagonalLinearOperator(*integers).in_structure().dtype == float


#
# Cost
#


def big_operator(count, k):
    sizes = count, count - 1, count - 1
    return lxe.BlockTridiagonalLinearOperator(
        *(jnp.ones((size, k, k)) + jnp.eye(k) for size in sizes)
    )


def test_program_does_not_grow():
    def size(count):
        fn = lambda op, b: lx.linear_solve(op, b, SOLVER).value
        with jax.numpy_rank_promotion("allow"):
            operator = big_operator(count, 3)
        jaxpr = jax.make_jaxpr(fn)(operator, jnp.ones(count * 3))
        return sum(1 for _ in equations(jaxpr.jaxpr))

    assert size(5) == size(500)


def test_memory():
    count, k = 2000, 4
    with jax.numpy_rank_promotion("allow"):
        operator = big_operator(count, k)
    fn = lambda op, b: lx.linear_solve(op, b, SOLVER, throw=False).value
    compiled = jax.jit(fn).lower(operator, jnp.ones(count * k)).compile()
    # The dense matrix alone would be 8 (N k)² = 512 MB.
    assert compiled.memory_analysis().temp_size_in_bytes < 60 * 8 * count * k**2


@pytest.mark.parametrize("nested", (False, True), ids=("one vmap", "nested vmap"))
def test_factor_is_not_copied(nested):
    count, k, lead = 6, 3, (4, 5) if nested else (20,)
    operator = block_tridiagonal_operator(random_matrix(count, k), k)
    state = SOLVER.init(operator, {})
    for turn in (state, *turned(SOLVER, operator)):
        fn = lambda b, state=turn: SOLVER.compute(state, b, {})[0]
        for _ in lead:
            fn = jax.vmap(fn)
        jaxpr = jax.make_jaxpr(fn)(jnp.zeros((*lead, count * k))).jaxpr
        # The largest are the neighbours (xᵢ₋₁, xᵢ, xᵢ₊₁) of all right-hand sides.
        largest = max(var.aval.size for eqn in equations(jaxpr) for var in eqn.outvars)
        assert largest <= 20 * 3 * count * k


#
# Bands
#


@pytest.mark.parametrize(
    "n, lower, upper, k",
    (
        (7, 1, 2, 2),
        (8, 2, 0, 3),
        (5, 0, 1, 4),
        (9, 4, 3, 4),
        (3, 2, 2, 2),
        (1, 0, 0, 1),
    ),
)
def test_pack_band(n, lower, upper, k):
    matrix = banded((n, n), lower, upper)
    band = {d: np.diagonal(matrix, d) for d in range(-lower, upper + 1)}
    pack = lambda band: lxe.BlockTridiagonalLinearOperator(*pack_band(band, n, k))
    packed = jax.jit(lambda band: pack(band).as_matrix())(band)
    padding = len(packed) - n
    assert 0 <= padding < k
    expected = np.block(
        [[matrix, np.zeros((n, padding))], [np.zeros((padding, n)), np.eye(padding)]]
    )
    assert_close(packed, expected, 0)


def test_pack_band_with_gaps():
    # The five-point Laplacian on a grid of 3×4.
    n = 12
    ones = lambda d: jnp.ones(n - abs(d))
    band = {0: -4 * ones(0), 3: ones(3), -3: ones(-3), 1: 2 * ones(1)}
    packed = lxe.BlockTridiagonalLinearOperator(*pack_band(band, n, 4)).as_matrix()
    expected = -4 * np.eye(n) + np.eye(n, k=3) + np.eye(n, k=-3) + 2 * np.eye(n, k=1)
    assert_close(packed, expected, 0)
    with pytest.raises(ValueError, match="-3 to 3 does not fit into blocks of size 2"):
        pack_band(band, n, 2)


def test_block_size():
    assert all(block_size(half) >= max(half, 1) for half in range(40))
