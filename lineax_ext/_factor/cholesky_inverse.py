"""The inverse of a positive definite matrix, from its Cholesky factor."""

import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from .product import matmul


def _block_size(n: int) -> int:
    # Of 60 to 300, at n = 300 to 2000. Ten blocks at most, for the time to compile.
    return max(100, -(-n // 10))


# Triangles of this size are left to LAPACK. (8 and 16, which OpenBLAS does not thread,
# are no faster: the Cholesky factorisation has woken its threads already.)
_LEAF = 32


def cholesky_inverse(factor: Inexact[Array, "n n"]) -> Inexact[Array, "n n"]:
    """A⁻¹ from the lower triangular L of A = L Lᴴ; LAPACK's `potri`, which JAX lacks.

    First W = L⁻¹, by columns of blocks, Wᵢⱼ = −Wᵢᵢ Σₖ Lᵢₖ Wₖⱼ; then A⁻¹ = Wᴴ W, of
    which block (i, j) is Σₖ Wₖᵢᴴ Wₖⱼ. It has the 2n³/3 operations and the rounding
    errors of `potri` (two triangular solves take 2n³), but nearly all of them in
    products of matrices, the one thing that XLA does as fast as the machine can.

    ??? cite "Reference"

        Du Croz, Higham, *Stability of methods for matrix inversion*, IMA J. Numer.
        Anal. 12 (1992), doi:10.1093/imanum/12.1.1.
    """
    n = factor.shape[0]
    count = max(1, -(-n // _block_size(n)))
    halvings, size = 0, -(-n // count)
    while size > _LEAF * 2**halvings:
        halvings += 1
    size = -(-size // 2**halvings) * 2**halvings
    # Padded by an identity.
    filled = jnp.arange(count * size) >= n
    factor = jnp.pad(factor, (0, count * size - n))
    factor = factor + jnp.diag(filled.astype(factor.dtype))

    at = [slice(i * size, (i + 1) * size) for i in range(count)]
    diagonal = _invert_triangles(jnp.stack([factor[i, i] for i in at]))
    columns = []  # of W, from the diagonal down
    for j in range(count):
        column = diagonal[j]
        for i in range(j + 1, count):
            row = factor[at[i], j * size : i * size]
            block = -matmul(diagonal[i], matmul(row, column))
            column = jnp.concatenate([column, block])
        columns.append(column)

    lower = [
        [
            _multiply_adjoint(columns[i], columns[j][(i - j) * size :])
            for j in range(i + 1)
        ]
        for i in range(count)
    ]
    upper = [
        [jnp.conj(lower[i][j].T) for i in range(j + 1, count)] for j in range(count)
    ]
    rows = [jnp.concatenate(a + b, axis=1) for a, b in zip(lower, upper)]
    return jnp.concatenate(rows)[:n, :n]


def _multiply_adjoint(a: Array, b: Array) -> Array:
    return matmul(jnp.conj(a.T), b)


def _invert_triangles(
    triangles: Inexact[Array, "batch size size"],
) -> Inexact[Array, "batch size size"]:
    """By halves, all of them at once."""
    size = triangles.shape[-1]
    if size <= _LEAF:
        eye = jnp.broadcast_to(jnp.eye(size, dtype=triangles.dtype), triangles.shape)
        return lax.linalg.triangular_solve(triangles, eye, left_side=True, lower=True)
    half = size // 2
    first, second = triangles[:, :half, :half], triangles[:, half:, half:]
    inverses = _invert_triangles(jnp.concatenate([first, second]))
    first, second = jnp.split(inverses, 2)
    corner = -matmul(second, matmul(triangles[:, half:, :half], first))
    top = jnp.concatenate([first, jnp.zeros_like(first)], axis=2)
    return jnp.concatenate([top, jnp.concatenate([corner, second], axis=2)], axis=1)
