"""Small blocks on the diagonal, eliminated or inverted all at once."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from helpers import assert_close, normal

import lineax_ext as lxe
from lineax_ext._arrangement import arrange
from lineax_ext._factor.block_inverse import block_inverse
from lineax_ext._factor.small_lu import small_lu


COUNT = 7
TOLERANCE = {np.float32: 2e-5, np.float64: 1e-12, np.complex128: 1e-12}


@jax.jit
def solve(blocks, b):
    """Blocks and right-hand sides first, as NumPy has them; and of the transposes."""
    factor = small_lu if blocks.shape[1] <= 4 else block_inverse
    factors = factor(jnp.moveaxis(blocks, 0, 2))
    both = [factors.solve(b.T, transposed).T for transposed in (False, True)]
    return *both, factors.singular


def referee(blocks, b):
    blocks = np.asarray(blocks, np.result_type(blocks.dtype, np.float64))
    transposes = blocks.transpose(0, 2, 1)
    return [np.linalg.solve(a, b[..., None])[..., 0] for a in (blocks, transposes)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("k", (1, 2, 4, 5))
def test_regular(k, dtype):
    blocks, b = normal((COUNT, k, k), dtype), normal((COUNT, k), dtype, seed=1)
    blocks[0] = np.roll(np.eye(k), 1, axis=0)  # nothing without a pivot
    *found, singular = solve(blocks, b)
    assert not singular
    for x, expected in zip(found, referee(blocks, b), strict=True):
        assert_close(x, expected, 100 * TOLERANCE[dtype])


@pytest.mark.parametrize("k", (3, 5))
def test_badly_scaled(k):
    """No scaling of rows and columns matters, and neither does that of a neighbour."""
    rows, columns = 10.0 ** np.random.default_rng(0).integers(-60, 60, (2, COUNT, k))
    blocks, b = normal((COUNT, k, k)), normal((COUNT, k), seed=1)
    x, _, singular = solve(blocks * rows[:, :, None] * columns[:, None, :], b * rows)
    assert not singular
    assert_close(x * columns, referee(blocks, b)[0], 1e-10)


@pytest.mark.parametrize("k", (4, 8))
def test_backward_error_of_ill_conditioned_blocks(k):
    """As of substitution: an inverse alone is worse by the condition number."""
    i = np.arange(k) / k
    hilbert = 1 / (8 * i[:, None] + 8 * i + 1.0)  # of condition 1e10, if k = 8
    blocks = hilbert + 1e-9 * normal((COUNT, k, k))
    if k == 4:
        blocks[:, 3] = blocks[:, 0] + 1e-9 * normal((COUNT, k), seed=2)
    b = normal((COUNT, k), seed=1)
    b[0] = blocks[0] @ np.ones(k)
    *found, singular = solve(blocks, b)
    assert not singular
    for a, x in zip((blocks, blocks.transpose(0, 2, 1)), found, strict=True):
        residual = np.linalg.norm(np.einsum("nij,nj->ni", a, x) - b, axis=1)
        size = np.linalg.norm(a, axis=(1, 2)) * np.linalg.norm(x, axis=1)
        assert np.all(residual <= 1e-13 * size)


@pytest.mark.parametrize("k", (4, 5))
@pytest.mark.parametrize("bad", ("zero", "dependent", "nan", "inf"))
def test_singular(bad, k):
    blocks = normal((COUNT, k, k))
    if bad == "zero":
        blocks[3] = 0
    elif bad == "dependent":
        blocks[3, :, 2] = blocks[3, :, 0] - 3 * blocks[3, :, k - 1]
    else:
        blocks[3, 1, 2] = float(bad)
    assert solve(blocks, normal((COUNT, k)))[2]


@pytest.mark.parametrize("k, kind", ((3, "blocks"), (24, "blocks")))
def test_many_side_by_side(k, kind):
    """Components of two sizes, in no order: inverted, or factorised one by one."""
    count = 40
    sizes = np.where(np.arange(count) % 2 == 0, k, k - 1)
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(count), sizes))
    n = labels.size
    mask = labels[:, None] == labels
    matrix = np.where(mask, normal((n, n)), 0)
    pattern = lxe.Pattern(*np.nonzero(mask), (n, n))
    arrangement = arrange(pattern)
    assert arrangement.kind == kind

    operator = lxe.AutoStructuredLinearSolver(pattern=pattern)
    bs = normal((2, n), seed=1)

    @jax.jit
    @jax.vmap
    def run(b):
        function = lx.FunctionLinearOperator(
            lambda x: jnp.asarray(matrix) @ x, jax.ShapeDtypeStruct((n,), np.float64)
        )
        forward = lx.linear_solve(function, b, operator).value
        return forward, lx.linear_solve(function.T, b, operator).value

    for x, a in zip(run(bs), (matrix, matrix.T), strict=True):
        assert_close(x, np.linalg.solve(a, bs.T).T, 1e-9)
