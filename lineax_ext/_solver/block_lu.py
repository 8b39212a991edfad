"""Elimination of a block-tridiagonal matrix, pivoted across two block rows."""

from collections.abc import Callable

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Inexact

from .._structure.blocks import Blocks
from .householder import matmul


class BlockLU(eqx.Module):
    """The factors of A = S R, S diagonal and R block-tridiagonal."""

    scale: Inexact[Array, "N k"]
    rows: Inexact[Array, "N k 3*k"]
    forward: Inexact[Array, "N 2*k 2*k"]
    backward: Inexact[Array, "N 2*k k"]
    singular: Bool[Array, ""]

    def solve(self, b: Inexact[Array, "N k"]) -> Inexact[Array, "N k"]:
        """A⁻¹ b."""
        return _refined(self._substitute, self._multiply, b / self.scale)

    def solve_adjoint(self, c: Inexact[Array, "N k"]) -> Inexact[Array, "N k"]:
        """A⁻ᴴ c."""
        z = _refined(self._substitute_adjoint, self._multiply_adjoint, c)
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


def _refined(
    substitute: Callable[[Array], Array], multiply: Callable[[Array], Array], b: Array
) -> Array:
    """`substitute(b)`, corrected while its residual is too large."""
    # The rows are of size one, so this is a backward error.
    tolerance = 64 * jnp.finfo(b.dtype).eps

    def unfinished(state):
        x, residual, count = state
        large = _norm(residual) > tolerance * _norm(x)
        return large & (count < 3)

    def correct(state):
        x, residual, count = state
        x = x + substitute(residual)
        return x, b - multiply(x), count + 1

    x = substitute(b)
    return lax.while_loop(unfinished, correct, (x, b - multiply(x), 0))[0]


def _norm(x: Array) -> Array:
    return jnp.sqrt(jnp.sum((x * jnp.conj(x)).real))


def block_lu(blocks: Blocks) -> BlockLU:
    """Gaussian elimination with partial pivoting among the 2k rows of each step."""
    diagonal, lower, upper = blocks
    k = diagonal.shape[1]
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

    first = jnp.concatenate([rows[0, :, k:], zeros[0]], axis=1)
    # One more block row than there is, of zeros: no pivot is taken from it.
    below = jnp.concatenate([rows[1:], jnp.zeros_like(rows[:1])])

    def step(carry, row):
        stack, place = _eliminate(jnp.concatenate([carry, row]))
        after = jnp.concatenate([stack[k:, k:], zeros[0]], axis=1)
        return after, (stack[:, :k], stack[:k, k:].T, place)

    _, (inverse, backward, place) = lax.scan(step, first, below)
    eye = jnp.broadcast_to(jnp.eye(2 * k, k, -k, dtype=rows.dtype), inverse.shape)
    forward = jnp.concatenate([inverse.mT, eye.mT], axis=1)
    forward = jnp.take_along_axis(
        forward, place[:, :, None], axis=1, mode="promise_in_bounds"
    )

    magnitude = jnp.max(jnp.abs(rows), axis=1).reshape(-1, 3, k)
    columns = magnitude[:, 1]
    columns = columns.at[:-1].max(magnitude[1:, 0]).at[1:].max(magnitude[:-1, 2])
    independence = columns * jnp.max(jnp.abs(inverse[:, :k]), axis=2)
    eps = jnp.finfo(rows.dtype).eps
    singular = ~jnp.all(eps * columns.size * independence < 1)
    return BlockLU(scale, rows, forward, backward, singular)


def _eliminate(
    stack: Inexact[Array, "2*k 3*k"],
) -> tuple[Inexact[Array, "2*k 3*k"], Array]:
    """Gauss–Jordan elimination of the first k columns, in place."""
    k = stack.shape[0] // 2
    row = lax.broadcasted_iota(jnp.int32, (2 * k, 1), 0)
    column = lax.broadcasted_iota(jnp.int32, (1, 3 * k), 1)

    def body(j, state):
        stack, place = state
        row_of = lambda x, i: lax.dynamic_slice_in_dim(x, i, 1, axis=0)
        factor = lax.dynamic_slice_in_dim(stack, j, 1, axis=1)
        candidates = jnp.where(row >= j, jnp.abs(factor), -1)
        p = lax.argmax(candidates[:, 0], 0, jnp.int32)
        pivot_row = jnp.where(column == j, 1, row_of(stack, p)) / row_of(factor, p)
        factor = jnp.where(row == p, row_of(factor, j), factor)
        rest = jnp.where(row == p, row_of(stack, j), stack)
        rest = jnp.where(column == j, 0, rest)
        stack = jnp.where(row == j, pivot_row, rest - factor * pivot_row)
        place = jnp.where(place == p, j, jnp.where(place == j, p, place))
        return stack, place

    return lax.fori_loop(jnp.int32(0), jnp.int32(k), body, (stack, row[:, 0]))
