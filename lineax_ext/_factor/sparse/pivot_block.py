"""Inverses of pivot blocks: Gauss–Jordan elimination, batched, without LAPACK."""

import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, Int, Real


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

    What the loop carries is one array: with an array for each of what it knows it had
    more than twice as many kernels to be compiled.

    **Returns:** the inverses; and of each column, the row that it was the pivot of, or
    -1, and the pivot, or 1.
    """
    c, p, _ = blocks.shape
    dtype = blocks.dtype
    iota = lambda shape, axis: lax.broadcasted_iota(jnp.int32, shape, axis)
    column, local = iota((c, p), 1), iota((1, p + 2, 1), 1)
    lead = iota((c, p + 2), 0) * ((p + 2) * p) + iota((c, p + 2), 1) * p

    def step(j, panel):
        row = lax.dynamic_slice_in_dim(panel, j, 1, axis=1)
        if pivoted:
            unused = panel[:, p].real < 0
            magnitude = jnp.where(unused, jnp.abs(row[:, 0]), -1)
            at = lax.argmax(magnitude, 1, jnp.int32)[:, None]
            taken = panel.reshape(-1).at[lead + at].get(mode="promise_in_bounds")
            taken, hot = taken[:, :, None], (column == at)[:, None, :]
        else:
            taken = lax.dynamic_slice_in_dim(panel, j, 1, axis=2)
            hot = (column == j)[:, None, :]
        pivot = lax.dynamic_slice_in_dim(taken, j, 1, axis=1)
        length = jnp.abs(pivot)
        unit = jnp.where(length > 0, pivot / length.astype(dtype), 1)
        pivot = jnp.where(length < least, unit * least.astype(dtype), pivot)
        taken = jnp.where(local == j, 1, taken) / pivot
        mark = jnp.where(local == p, j.astype(dtype), pivot)
        taken = jnp.where(local >= p, mark, taken)
        factor = jnp.where(local >= p, 0, taken) * row
        rest = jnp.where(local == j, 0, panel) - factor
        return jnp.where(hot, taken, rest)

    none = jnp.broadcast_to(jnp.array([[-1], [1]], dtype), (c, 2, p))
    out = jnp.concatenate([blocks, none], axis=1)
    out = lax.fori_loop(jnp.int32(0), most, step, out)
    out, marks = out[:, :p], out[:, p:]
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
