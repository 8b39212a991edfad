"""Many small matrices, inverted all at once."""

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Inexact, Int

from .refine import refined


class BlockInverse(eqx.Module):
    """The inverses of matrices whose rows were divided by `scale`.

    The matrices lie along the last axis: small products are then elementwise, which is
    what a CPU does best with blocks of this size.
    """

    scale: Inexact[Array, "k count"]
    blocks: Inexact[Array, "k k count"]
    inverse: Inexact[Array, "k k count"]
    singular: Bool[Array, ""]

    def solve(
        self, b: Inexact[Array, "k count"], transposed: bool
    ) -> Inexact[Array, "k count"]:
        """A⁻¹ b, or A⁻ᵀ b, of each."""
        axis = 0 if transposed else 1
        multiply = lambda matrix: lambda x: _multiply(matrix, x, axis)
        b = b if transposed else b / self.scale
        x = refined(multiply(self.inverse), multiply(self.blocks), b, axis=0)
        return x / self.scale if transposed else x


def _multiply(matrix: Array, x: Array, axis: int) -> Array:
    return jnp.sum(matrix * jnp.expand_dims(x, 1 - axis), axis)


# In Gauss–Jordan elimination a loop of so few steps is written out.
_UNROLLED = 4


def block_inverse(blocks: Inexact[Array, "k k count"]) -> BlockInverse:
    """Gauss–Jordan elimination with row pivoting, O(k³) each.

    Source: Golub, Van Loan, *Matrix Computations*, 4th ed., §3.4 (2013).
    """
    k, _, _ = blocks.shape
    scale = jnp.max(jnp.abs(blocks), axis=1)
    scale = jnp.where(scale == 0, 1, scale).astype(blocks.dtype)
    blocks = blocks / scale[:, None]
    place = jnp.broadcast_to(lax.broadcasted_iota(jnp.int32, (k, 1), 0), scale.shape)
    if k <= _UNROLLED:
        state = blocks, place
        for j in range(k):
            state = _eliminate(j, state)
    else:
        state = lax.fori_loop(0, k, _eliminate, (blocks, place))
    inverse, place = state
    # Column i belongs to the row that came to be row i.
    column = lax.broadcasted_iota(jnp.int32, (1, 1, k, 1), 2)
    belongs = place[None, :, None] == column
    inverse = jnp.sum(jnp.where(belongs, inverse[:, :, None], 0), axis=1)

    # Row j of the inverse is 1/d long if column j is d away from the span of the other
    # ones.
    lengths = jnp.max(jnp.abs(inverse), axis=1)
    columns = jnp.max(jnp.abs(blocks), axis=0)
    dependence = jnp.finfo(blocks.dtype).eps * k
    singular = ~jnp.all(dependence * columns * lengths < 1)
    return BlockInverse(scale, blocks, inverse, singular)


def _eliminate(
    j: Int[Array, ""] | int, state: tuple[Array, Array]
) -> tuple[Inexact[Array, "k k count"], Int[Array, "k count"]]:
    """Step j, in place: column j then holds what has become of that of the identity."""
    stack, place = state
    row = lax.broadcasted_iota(jnp.int32, (stack.shape[0], 1), 0)
    here = row == j
    at = lambda x, axis: lax.dynamic_index_in_dim(x, j, axis, keepdims=False)

    factor = at(stack, 1)
    candidates = jnp.where(row >= j, jnp.abs(factor), -1)
    pivot = row == lax.argmax(candidates, 0, jnp.int32)[None]
    chosen = lambda x, mask: jnp.sum(jnp.where(mask, x, 0), axis=0, dtype=x.dtype)
    pivot_row = jnp.where(here, 1, chosen(stack, pivot[:, None]))
    pivot_row = pivot_row / chosen(factor, pivot)[None]
    # Rows j and that of the pivot change places.
    factor = jnp.where(pivot, at(factor, 0)[None], factor)
    rest = jnp.where(pivot[:, None], at(stack, 0)[None], stack)
    rest = jnp.where(here[None], 0, rest) - factor[:, None] * pivot_row[None]
    stack = jnp.where(here[:, None], pivot_row[None], rest)
    moved = jnp.where(pivot, at(place, 0)[None], place)
    return stack, jnp.where(here, chosen(place, pivot)[None], moved)
