"""Entries of the inverse, where the matrix has entries: down the tree, once."""

import functools as ft
from typing import NamedTuple

import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact

from ..product import matmul
from .numeric import Factors
from .symbolic import Symbolic


class _Plan(NamedTuple):
    """Of each group, where its first front is among all; where its fronts' boundaries
    are in their parents (-1: nowhere), and where these are. And of each entry, where
    its own place is among all."""

    starts: tuple[int, ...]
    maps: tuple[np.ndarray, ...]
    bases: tuple[np.ndarray, ...]
    entries: np.ndarray
    total: int


@ft.lru_cache(maxsize=64)
def _plan(symbolic: Symbolic) -> _Plan:
    fronts, groups = symbolic.fronts, symbolic.sweep.groups
    count = len(fronts.parents)
    base, width, top = (np.zeros(count, np.int64) for _ in range(3))
    starts, total = [], 0
    for group in groups:
        full = group.p + group.u
        flat = group.members.ravel()
        real = np.flatnonzero(flat >= 0)
        base[flat[real]] = total + real * full * full
        width[flat[real]], top[flat[real]] = full, group.p
        starts.append(total)
        total += flat.size * full * full
    maps, bases = [], []
    for group in groups:
        place = np.full((*group.members.shape, group.u), -1, np.int32)
        where = np.zeros((*group.members.shape, 2), np.int32)
        for s, b in np.argwhere(group.members >= 0):
            f = int(group.members[s, b])
            parent, boundary = int(fronts.parents[f]), fronts.boundary[f]
            if parent >= 0:
                place[s, b, : len(boundary)] = fronts.places(
                    parent, boundary, int(top[parent])
                )
                where[s, b] = base[parent], width[parent]
        maps.append(place)
        bases.append(where)
    pattern, n = symbolic.pattern, len(fronts.order)
    row_place, col_place = np.empty(n, np.int64), np.empty(n, np.int64)
    row_place[symbolic.row_order] = np.arange(n)
    col_place[symbolic.col_order] = np.arange(n)
    rows, cols = row_place[pattern.rows], col_place[pattern.cols]
    owner = np.repeat(np.arange(count), fronts.pivots)[np.minimum(rows, cols)]
    entries = np.zeros(len(rows), np.int32)
    order = np.argsort(owner, kind="stable")
    ends = np.searchsorted(owner[order], np.arange(count + 1))
    for f in range(count):
        mine = order[ends[f] : ends[f + 1]]
        i, j = (fronts.places(f, x[mine], int(top[f])) for x in (rows, cols))
        entries[mine] = base[f] + j * width[f] + i
    return _Plan(tuple(starts), tuple(maps), tuple(bases), entries, total)


def selected_inverse(
    symbolic: Symbolic, factors: Factors
) -> Inexact[Array, " entries"]:
    """(A⁻¹)ⱼᵢ for each entry (i, j) of the pattern: the gradient of log |det A|.

    Of a front with A⁻¹, L = C A⁻¹ and U = A⁻¹ B, the inverse has the blocks
    A⁻¹ + U Z L, -U Z; -Z L, Z, where Z is that of the boundary: the parent has it.

    Cost: O(flops) of `symbolic`, less than a factorisation.

    Erisman, Tinney: On computing certain elements of the inverse of a sparse matrix.
    Communications of the ACM 18, 1975, doi:10.1145/360680.360704
    """
    plan = _plan(symbolic)
    dtype = factors.values.dtype
    if len(plan.entries) == 0:
        return jnp.zeros((0,), dtype)
    every = jnp.zeros((plan.total,), dtype)
    groups = symbolic.sweep.groups
    for k in reversed(range(len(groups))):
        full = groups[k].p + groups[k].u
        steps, batch = groups[k].members.shape
        size = batch * full * full

        def step(every, x, start=plan.starts[k], size=size):
            s, place, base, blocks = x
            low, up = blocks.low, blocks.up
            i, j = place[:, :, None], place[:, None, :]
            there = (i >= 0) & (j >= 0)
            at = base[:, 0, None, None] + i * base[:, 1, None, None] + j
            at = jnp.where(there, at, 0)
            z = jnp.where(there, every.at[at].get(mode="promise_in_bounds"), 0)
            right = -matmul(up, z)
            left = -matmul(z, low)
            out = jnp.concatenate(
                [
                    jnp.concatenate(
                        [blocks.inverse - matmul(right, low), right], axis=2
                    ),
                    jnp.concatenate([left, z], axis=2),
                ],
                axis=1,
            )
            return lax.dynamic_update_slice_in_dim(
                every, out.reshape(-1), start + s * size, 0
            ), None

        x = (
            jnp.arange(steps, dtype=jnp.int32),
            jnp.asarray(plan.maps[k]),
            jnp.asarray(plan.bases[k]),
            factors.blocks[k],
        )
        every, _ = lax.scan(step, every, x, reverse=True)
    out = every.at[plan.entries].get(mode="promise_in_bounds")
    pattern = symbolic.pattern
    scale = factors.row_scale[pattern.rows] * factors.col_scale[pattern.cols]
    return out * scale.astype(dtype)
