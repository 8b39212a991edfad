"""Inverses of pivot blocks: Gauss–Jordan elimination, batched, without LAPACK."""

import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, Int, Real

from ..product import matmul


def invert(
    blocks: Inexact[Array, "c p p"],
    most: Int[Array, ""],
    least: Real[Array, ""],
    pivoted: bool,
) -> tuple[Inexact[Array, "c p p"], Inexact[Array, "c 2 p"]]:
    """A⁻¹ of each block, of which the first `most` columns are eliminated; the others
    have to be those of the identity.

    In row k the largest entry in an unused column is the pivot; if not `pivoted`, that
    on the diagonal. Columns do not change places, but are marked with k: a permutation
    at the end is one gather. A pivot smaller than `least` is raised to it.

    Rows are eliminated by panels. The loop over the rows of a panel touches the panel
    alone; the other rows follow by a product. What it carries is one array, and it has
    six kernels: with an array for each of what it knows there were fifteen, and it took
    twice as long to compile.

    **Returns:** the inverses; and of each column, the row that it was the pivot of, or
    -1, and the pivot, or 1.
    """
    c, p, _ = blocks.shape
    dtype = blocks.dtype
    size = p if p <= 32 else 16
    iota = lambda shape, axis: lax.broadcasted_iota(jnp.int32, shape, axis)
    column, local = iota((c, p), 1), iota((1, size + 2, 1), 1)
    lead = iota((c, size + 2), 0) * ((size + 2) * p) + iota((c, size + 2), 1) * p

    def step(j, state):
        panel, start = state
        row = lax.dynamic_slice_in_dim(panel, j, 1, axis=1)
        if pivoted:
            unused = panel[:, size].real < 0
            magnitude = jnp.where(unused, jnp.abs(row[:, 0]), -1)
            at = lax.argmax(magnitude, 1, jnp.int32)[:, None]
            taken = panel.reshape(-1).at[lead + at].get(mode="promise_in_bounds")
            taken, hot = taken[:, :, None], (column == at)[:, None, :]
        else:
            taken = lax.dynamic_slice_in_dim(panel, start + j, 1, axis=2)
            hot = (column == start + j)[:, None, :]
        pivot = lax.dynamic_slice_in_dim(taken, j, 1, axis=1)
        length = jnp.abs(pivot)
        unit = jnp.where(length > 0, pivot / length.astype(dtype), 1)
        pivot = jnp.where(length < least, unit * least.astype(dtype), pivot)
        taken = jnp.where(local == j, 1, taken) / pivot
        mark = jnp.where(local == size, (start + j).astype(dtype), pivot)
        taken = jnp.where(local >= size, mark, taken)
        factor = jnp.where(local >= size, 0, taken) * row
        rest = jnp.where(local == j, 0, panel) - factor
        return jnp.where(hot, taken, rest), start

    none = jnp.broadcast_to(jnp.array([[-1], [1]], dtype), (c, 2, p))
    zero = jnp.int32(0)
    if size == p:
        start = jnp.concatenate([blocks, none], axis=1)
        out, _ = lax.fori_loop(zero, most, step, (start, zero))
        out, marks = out[:, :size], out[:, size:]
    else:
        rows = local[:, :size]

        def eliminate(k, state):
            out, marks = state
            start = k * size
            panel = lax.dynamic_slice_in_dim(out, start, size, axis=1)
            panel = jnp.concatenate([panel, marks], axis=1)
            steps = jnp.minimum(most - start, size)
            panel, _ = lax.fori_loop(zero, steps, step, (panel, start))
            panel, marks = panel[:, :size], panel[:, size:]
            # The columns that were pivots in this panel, in the order of its rows.
            rank = marks[:, :1].real.astype(jnp.int32)
            at = jnp.min(jnp.where(rank == start + rows, column[:, None], p - 1), 2)
            taken = jnp.take_along_axis(
                out, at[:, None, :], axis=2, mode="promise_in_bounds"
            )
            taken = jnp.where(rows.mT < steps, taken, 0)
            out = jnp.where(rank >= start, 0, out) + matmul(taken, panel)
            return lax.dynamic_update_slice_in_dim(out, panel, start, axis=1), marks

        panels = (most + (size - 1)) // size
        out, marks = lax.fori_loop(zero, panels, eliminate, (blocks, none))
    if not pivoted:
        return out, marks
    rank = ranks(marks)
    # Row k of `out` belongs to the column that was its pivot.
    place = rank[:, None, :] == column[:, :, None]
    chosen = jnp.min(jnp.where(place, column[:, None, :], p - 1), axis=2)
    flat = iota((c, p, p), 0) * (p * p) + rank[:, :, None] * p + chosen[:, None, :]
    return out.reshape(-1).at[flat].get(mode="promise_in_bounds"), marks


def ranks(marks: Inexact[Array, "*batch 2 p"]) -> Int[Array, "*batch p"]:
    """The permutation of the pivots: that of the identity is its own."""
    rank = marks[..., 0, :].real.astype(jnp.int32)
    return jnp.where(rank < 0, jnp.arange(rank.shape[-1], dtype=jnp.int32), rank)


def signs(marks: Inexact[Array, "*batch 2 p"]) -> Real[Array, " *batch"]:
    """+1 or -1, that of the permutation."""
    rank = ranks(marks)
    before = jnp.arange(rank.shape[-1])
    later = before[:, None] < before[None]
    later = jnp.broadcast_to(later, (*rank.shape, rank.shape[-1]))
    later = later & (rank[..., :, None] > rank[..., None, :])
    odd = jnp.sum(later, axis=(-2, -1)) % 2
    return (1 - 2 * odd).astype(marks.real.dtype)
