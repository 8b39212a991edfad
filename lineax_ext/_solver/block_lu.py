"""LU of a block-tridiagonal matrix, pivoted across two block rows."""

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Inexact

from .householder import matmul


class BlockLU(eqx.Module):
    """The factors of A, as returned by `block_lu`.

    Step i of the elimination takes the k rows that the step before left, and the next
    block row. `forward[i]` is L⁻¹ P of these 2k rows; `backward[i]` is
    [U⁻¹, −U⁻¹ V], for the rows [U, V] of the factor over the block columns i, i+1, i+2.
    """

    forward: Inexact[Array, "N 2*k 2*k"]
    backward: Inexact[Array, "N k 3*k"]
    singular: Bool[Array, ""]

    def solve(self, b: Inexact[Array, "N k c"]) -> Inexact[Array, "N k c"]:
        """A⁻¹ b."""
        k = b.shape[1]
        below = jnp.concatenate([b[1:], jnp.zeros_like(b[:1])])

        def descend(carry, step):
            matrix, row = step
            out = matmul(matrix, jnp.concatenate([carry, row]))
            return out[k:], out[:k]

        def ascend(carry, step):
            matrix, row = step
            x = matmul(matrix, jnp.concatenate([row, carry]))
            return jnp.concatenate([x, carry[:k]]), x

        _, y = lax.scan(descend, b[0], (self.forward, below))
        zeros = jnp.zeros((2 * k, b.shape[2]), b.dtype)
        return lax.scan(ascend, zeros, (self.backward, y), reverse=True)[1]

    def solve_adjoint(self, c: Inexact[Array, "N k c"]) -> Inexact[Array, "N k c"]:
        """A⁻ᴴ c: the same steps, each transposed, in the opposite order."""
        k = c.shape[1]

        def descend(carry, step):
            matrix, row = step
            out = matmul(jnp.conj(matrix.T), carry[:k] + row)
            after = jnp.concatenate([carry[k:], jnp.zeros_like(row)])
            return after + out[k:], out[:k]

        def ascend(carry, step):
            matrix, row = step
            out = matmul(jnp.conj(matrix.T), jnp.concatenate([row, carry]))
            return out[:k], out[k:]

        zeros = jnp.zeros((2 * k, c.shape[2]), c.dtype)
        _, y = lax.scan(descend, zeros, (self.backward, c))
        first, below = lax.scan(ascend, zeros[:k], (self.forward, y), reverse=True)
        return jnp.concatenate([first[None], below[:-1]])


def block_lu(
    diagonal: Inexact[Array, "N k k"],
    lower_diagonal: Inexact[Array, "N-1 k k"],
    upper_diagonal: Inexact[Array, "N-1 k k"],
) -> BlockLU:
    """Gaussian elimination with partial pivoting among the 2k rows of each step."""
    k = diagonal.shape[1]
    zeros = jnp.zeros_like(diagonal[:1])
    # One more block row than there is, of zeros: no pivot is taken from it.
    rows = jnp.concatenate(
        [
            jnp.concatenate([lower_diagonal, zeros]),
            jnp.concatenate([diagonal[1:], zeros]),
            jnp.concatenate([upper_diagonal[1:], zeros, zeros])[: len(diagonal)],
        ],
        axis=2,
    )
    first = jnp.concatenate(
        [diagonal[0], jnp.concatenate([upper_diagonal, zeros])[0], zeros[0]], axis=1
    )

    def step(carry, row):
        stack = jnp.concatenate([carry, row])
        factors, _, permutation = lax.linalg.lu(stack[:, :k])
        right = stack[permutation, k:]
        v = _solve_unit_lower(factors[:k], right[:k])
        left = right[k:] - matmul(factors[k:], v)
        carry = jnp.concatenate([left, zeros[0]], axis=1)
        return carry, (factors, permutation, v)

    _, (factors, permutation, v) = lax.scan(step, first, rows)
    top, bottom = factors[:, :k], factors[:, k:]
    eye = jnp.broadcast_to(jnp.eye(k, dtype=diagonal.dtype), top.shape)
    l_inverse = _solve_unit_lower(top, eye)
    u_inverse = lax.linalg.triangular_solve(top, eye, left_side=True, lower=False)
    forward = jnp.concatenate(
        [
            jnp.concatenate([l_inverse, jnp.zeros_like(eye)], axis=2),
            jnp.concatenate([-matmul(bottom, l_inverse), eye], axis=2),
        ],
        axis=1,
    )
    inverse_permutation = jnp.argsort(permutation, axis=1)
    forward = jnp.take_along_axis(forward, inverse_permutation[:, None, :], axis=2)
    backward = jnp.concatenate([u_inverse, -matmul(u_inverse, v)], axis=2)

    pivots = jnp.abs(jnp.diagonal(top, axis1=1, axis2=2))
    columns = jnp.max(jnp.abs(jnp.triu(top)), axis=1)
    eps = jnp.finfo(pivots.dtype).eps
    regular = (pivots > eps * pivots.size * columns) & jnp.isfinite(columns)
    return BlockLU(forward, backward, ~jnp.all(regular))


def _solve_unit_lower(matrix: Array, right: Array) -> Array:
    return lax.linalg.triangular_solve(
        matrix, right, left_side=True, lower=True, unit_diagonal=True
    )
