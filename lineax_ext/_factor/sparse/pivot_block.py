"""Inverses of pivot blocks: Gauss–Jordan elimination, batched, without LAPACK."""

from typing import NamedTuple

import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Inexact, Int, Real

from ..._solver.householder import matmul


class PivotBlock(NamedTuple):
    """`pivots`, in no order, and `sign`, that of their permutation, are those of the
    determinant."""

    inverse: Inexact[Array, "c p p"]
    pivots: Inexact[Array, "c p"]
    sign: Real[Array, " c"]
    raised: Bool[Array, ""]


def invert(
    blocks: Inexact[Array, "c p p"], most: Int[Array, ""], least: Real[Array, ""]
) -> PivotBlock:
    """A⁻¹ of each block, of which the first `most` columns are eliminated; the others
    have to be those of the identity.

    In row k the largest entry in an unused column is the pivot. Columns do not change
    places, but are marked with k: a permutation at the end is one gather, and in a step
    it would be two. A pivot smaller than `least` is raised to it.

    Rows are eliminated by panels. The loop over the rows of a panel touches the panel
    alone; the other rows follow by a product.
    """
    c, p, _ = blocks.shape
    size = p if p <= 32 else 16
    real = jnp.finfo(blocks.dtype).dtype
    column = lax.broadcasted_iota(jnp.int32, (c, p), 1)
    local = lax.broadcasted_iota(jnp.int32, (1, size, 1), 1)

    def step(j, state):
        panel, rank, pivots, raised, start = state
        row = lax.dynamic_slice_in_dim(panel, j, 1, axis=1)[:, 0]
        magnitude = jnp.where(rank < p, -1, jnp.abs(row))
        largest = jnp.max(magnitude, axis=1, keepdims=True)
        at = jnp.min(jnp.where(magnitude == largest, column, p - 1), 1, keepdims=True)
        hot = column == at
        pivot = jnp.take_along_axis(row, at, axis=1, mode="promise_in_bounds")
        small = largest < least
        unit = jnp.where(largest > 0, pivot / largest.astype(pivot.dtype), 1)
        pivot = jnp.where(small, unit * least.astype(pivot.dtype), pivot)
        taken = jnp.take_along_axis(
            panel, at[:, None, :], axis=2, mode="promise_in_bounds"
        )
        taken = jnp.where(local == j, 1, taken) / pivot[:, :, None]
        rest = jnp.where(local == j, 0, panel) - taken * row[:, None, :]
        panel = jnp.where(hot[:, None, :], taken, rest)
        rank = jnp.where(hot, start + j, rank)
        pivots = jnp.where(hot, pivot, pivots)
        return panel, rank, pivots, raised | jnp.any(small), start

    rank = jnp.full((c, p), p, jnp.int32)
    pivots = jnp.ones((c, p), blocks.dtype)
    raised = jnp.array(False)
    zero = jnp.int32(0)
    if size == p:
        out, rank, pivots, raised, _ = lax.fori_loop(
            zero, most, step, (blocks, rank, pivots, raised, zero)
        )
    else:

        def eliminate(k, state):
            out, rank, pivots, raised = state
            start = k * size
            panel = lax.dynamic_slice_in_dim(out, start, size, axis=1)
            steps = jnp.minimum(most - start, size)
            before = rank
            panel, rank, pivots, raised, _ = lax.fori_loop(
                zero, steps, step, (panel, rank, pivots, raised, start)
            )
            # The columns that were pivots in this panel, in the order of its rows. One
            # that is not reached, beyond `most`, is of the identity: it is its own.
            own = jnp.where(rank < p, rank, column)
            rows = start + lax.broadcasted_iota(jnp.int32, (1, size, 1), 1)
            chosen = (own[:, None, :] == rows) & (local < steps)
            at = jnp.min(jnp.where(chosen, column[:, None, :], p - 1), axis=2)
            new = (rank < p) & (before == p)
            taken = jnp.take_along_axis(
                out, at[:, None, :], axis=2, mode="promise_in_bounds"
            )
            taken = jnp.where(local.mT < steps, taken, 0)
            out = jnp.where(new[:, None, :], 0, out) + matmul(taken, panel)
            out = lax.dynamic_update_slice_in_dim(out, panel, start, axis=1)
            return out, rank, pivots, raised

        panels = (most + (size - 1)) // size
        out, rank, pivots, raised = lax.fori_loop(
            zero, panels, eliminate, (blocks, rank, pivots, raised)
        )
    rank = jnp.where(rank < p, rank, column)
    # Row k of `out` belongs to the column that was its pivot.
    place = rank[:, None, :] == column[:, :, None]
    chosen = jnp.min(jnp.where(place, column[:, None, :], p - 1), axis=2)
    flat = rank[:, :, None] * p + chosen[:, None, :]
    inverse = jnp.take_along_axis(
        out.reshape(c, p * p), flat.reshape(c, p * p), axis=1, mode="promise_in_bounds"
    ).reshape(c, p, p)
    later = column[:, None, :] > column[:, :, None]
    inversions = jnp.sum(later & (rank[:, None, :] < rank[:, :, None]), axis=(1, 2))
    sign = jnp.where(inversions % 2 == 0, 1, -1).astype(real)
    return PivotBlock(inverse, pivots, sign, raised)
