"""Elimination of a block-tridiagonal matrix, pivoted across two block rows."""

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Inexact, Int

from .band import Blocks
from .product import matmul
from .refine import refined


class BlockLU(eqx.Module):
    """The factors of A = S R, as returned by `block_lu`.

    S is diagonal, and R, whose block rows are `rows`, has rows of size one. Step i of
    the elimination is two products with small matrices, kept transposed since a product
    Mᵀ v is the faster one on a CPU:

    (yᵢ, cᵢ₊₁) = Fᵢ (cᵢ, bᵢ₊₁) with c₀ = b₀, and then, from the last block to the first,
    xᵢ = yᵢ − Bᵢ (xᵢ₊₁, xᵢ₊₂).
    """

    scale: Inexact[Array, "N k"]
    rows: Inexact[Array, "N k 3*k"]
    forward: Inexact[Array, "N 2*k 2*k"]
    backward: Inexact[Array, "N 2*k k"]
    singular: Bool[Array, ""]

    def solve(self, b: Inexact[Array, "N k"]) -> Inexact[Array, "N k"]:
        """A⁻¹ b."""
        return refined(self._substitute, self._multiply, b / self.scale)

    def solve_adjoint(self, c: Inexact[Array, "N k"]) -> Inexact[Array, "N k"]:
        """A⁻ᴴ c."""
        z = refined(self._substitute_adjoint, self._multiply_adjoint, c)
        return z / self.scale

    def _substitute(self, b: Array) -> Array:
        k = b.shape[1]

        def descend(carry, step):
            matrix, row = step
            out = matmul(matrix.T, jnp.concatenate([carry, row]))
            return out[k:], out[:k]

        def ascend(carry, step):
            matrix, row = step
            x = row - matmul(matrix.T, carry)
            return jnp.concatenate([x, carry[:k]]), x

        below = jnp.concatenate([b[1:], jnp.zeros_like(b[:1])])
        _, y = lax.scan(descend, b[0], (self.forward, below))
        zeros = jnp.zeros((2 * k,), b.dtype)
        return lax.scan(ascend, zeros, (self.backward, y), reverse=True)[1]

    def _substitute_adjoint(self, c: Array) -> Array:
        """The same steps, each transposed, in the opposite order."""
        k = c.shape[1]

        def descend(carry, step):
            matrix, row = step
            y = row + carry[:k]
            out = jnp.concatenate([carry[k:], jnp.zeros_like(y)])
            return out - matmul(jnp.conj(matrix), y), y

        def ascend(carry, step):
            matrix, row = step
            out = matmul(jnp.conj(matrix), jnp.concatenate([row, carry]))
            return out[:k], out[k:]

        zeros = jnp.zeros((2 * k,), c.dtype)
        _, y = lax.scan(descend, zeros, (self.backward, c))
        first, below = lax.scan(ascend, zeros[:k], (self.forward, y), reverse=True)
        return jnp.concatenate([first[None], below[:-1]])

    def _multiply(self, x: Array) -> Array:
        zero = jnp.zeros_like(x[:1])
        padded = jnp.concatenate([zero, x, zero])
        near = jnp.concatenate([padded[:-2], x, padded[2:]], axis=1)
        return matmul(self.rows, near[..., None])[..., 0]

    def _multiply_adjoint(self, x: Array) -> Array:
        k = x.shape[1]
        out = matmul(jnp.conj(self.rows.mT), x[..., None])[..., 0]
        below, here, above = out[:, :k], out[:, k : 2 * k], out[:, 2 * k :]
        return here.at[:-1].add(below[1:]).at[1:].add(above[:-1])


def block_lu(blocks: Blocks) -> BlockLU:
    """Gauss–Jordan elimination of one block column after the other.

    Step i has 2k rows: the k that the step before left over, with entries in the block
    columns i and i+1, and block row i+1. k pivots, each the largest in its column, turn
    them into k rows that give xᵢ and k that are free of it.

    The 2k×k panels are eliminated a column at a time, in a loop. LAPACK's `getrf` and
    `trsm`, called for each, took 2.5 times as long at k = 4, as long at k = 32, and a
    quarter of the time at k = 128; but at k = 24 and 48 a hundred times as long, when
    their threads got into the way of XLA's.
    """
    diagonal, lower, upper = blocks
    count, k, _ = diagonal.shape
    zeros = jnp.zeros_like(diagonal[:1])
    rows = jnp.concatenate(
        [
            jnp.concatenate([zeros, lower]),
            diagonal,
            jnp.concatenate([upper, zeros]),
        ],
        axis=2,
    )
    scale = jnp.max(jnp.abs(rows), axis=2)
    scale = jnp.where(scale == 0, 1, scale).astype(rows.dtype)
    rows = rows / scale[:, :, None]

    def step(carry, row):
        stack, place = _eliminate(jnp.concatenate([carry, row]))
        after = jnp.concatenate([stack[k:, k:], zeros[0]], axis=1)
        return after, (stack[:, :k], stack[:k, k:].T, place)

    first = jnp.concatenate([rows[0, :, k:], zeros[0]], axis=1)
    # One more block row than there is, of zeros: no pivot is taken from it.
    below = jnp.concatenate([rows[1:], jnp.zeros_like(rows[:1])])
    _, (inverse, backward, place) = lax.scan(step, first, below)

    # F = [inverse, (0; 1)] P, where P brings row i of the stack to `place[i]`.
    eye = jnp.broadcast_to(jnp.eye(k, 2 * k, k, dtype=rows.dtype), (count, k, 2 * k))
    forward = jnp.concatenate([inverse.mT, eye], axis=1)
    forward = jnp.take_along_axis(
        forward, place[:, :, None], axis=1, mode="promise_in_bounds"
    )

    # Row j of the inverse of the pivot rows is 1/d long if column j is d away from the
    # span of the other ones.
    lengths = jnp.max(jnp.abs(inverse[:, :k]), axis=2)
    below, here, above = jnp.split(jnp.max(jnp.abs(rows), axis=1), 3, axis=1)
    below = jnp.concatenate([below[1:], here[-1:]])
    above = jnp.concatenate([here[:1], above[:-1]])
    columns = jnp.maximum(here, jnp.maximum(below, above))
    dependence = jnp.finfo(rows.dtype).eps * columns.size
    singular = ~jnp.all(dependence * columns * lengths < 1)
    return BlockLU(scale, rows, forward, backward, singular)


def _eliminate(
    stack: Inexact[Array, "2*k 3*k"],
) -> tuple[Inexact[Array, "2*k 3*k"], Int[Array, " 2*k"]]:
    """Gauss–Jordan elimination of the first k columns, in place.

    Column j, once it is eliminated, holds what has become of column j of the identity.
    Returns also where each row went.

    This loop is nearly all of the time of a factorisation. What it carries was chosen
    by measurement: to carry the pivots as well doubles the time.
    """
    k = stack.shape[0] // 2
    row = lax.broadcasted_iota(jnp.int32, (2 * k, 1), 0)
    column = lax.broadcasted_iota(jnp.int32, (1, 3 * k), 1)

    def row_of(x, i):
        return lax.dynamic_slice_in_dim(x, i, 1, axis=0)

    def body(j, state):
        stack, place = state
        factor = lax.dynamic_slice_in_dim(stack, j, 1, axis=1)
        candidates = jnp.where(row >= j, jnp.abs(factor), -1)
        p = lax.argmax(candidates[:, 0], 0, jnp.int32)
        pivot_row = jnp.where(column == j, 1, row_of(stack, p)) / row_of(factor, p)
        # Rows j and p change places.
        factor = jnp.where(row == p, row_of(factor, j), factor)
        rest = jnp.where(row == p, row_of(stack, j), stack)
        rest = jnp.where(column == j, 0, rest)
        stack = jnp.where(row == j, pivot_row, rest - factor * pivot_row)
        place = jnp.where(place == p, j, jnp.where(place == j, p, place))
        return stack, place

    return lax.fori_loop(jnp.int32(0), jnp.int32(k), body, (stack, row[:, 0]))
