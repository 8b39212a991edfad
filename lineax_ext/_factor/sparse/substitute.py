"""Up the tree of fronts from its leaves, and down again."""

import functools as ft

import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact

from .numeric import Factors
from .packed import Blocks
from .sweep import Group
from .symbolic import Symbolic


def substitute(
    symbolic: Symbolic,
    factors: Factors,
    b: Inexact[Array, "n columns"],
    transpose: bool = False,
) -> Inexact[Array, "n columns"]:
    """M⁻¹ b, or M⁻ᵀ b, of what was factorised.

    All unknowns are in one array, front by front, that every step changes in place.

    Cost: O(fill) a column.
    """
    row_scale, col_scale = factors.row_scale, factors.col_scale
    if transpose:
        row_scale, col_scale = col_scale, row_scale
    source, back = _slots(symbolic, transpose)
    b = b * row_scale[:, None].astype(b.dtype)
    shape = b.shape
    if shape[1] == 1:
        # With an axis of length one, XLA copies what goes into each product and what
        # comes out, and takes four times as long to compile it.
        b = b[:, 0]
    b = jnp.concatenate([b, jnp.zeros_like(b[:1])])
    x = b.at[source].get(mode="promise_in_bounds")
    groups = list(zip(symbolic.sweep.groups, factors.blocks))
    for group, blocks in groups:
        x = _stepped(_ascend, group, blocks, x, transpose)
    for group, blocks in reversed(groups):
        x = _stepped(_descend, group, blocks, x, transpose)
    x = x.at[back].get(mode="promise_in_bounds").reshape(shape)
    return x * col_scale[:, None].astype(x.dtype)


@ft.lru_cache(maxsize=128)
def _slots(symbolic: Symbolic, transpose: bool):
    """Of each slot the row of b, and of each row of x the slot.

    The last slot is zero, and that of places which a front does not have.
    """
    slots = symbolic.sweep.slots
    rows, cols = symbolic.row_order, symbolic.col_order
    if transpose:
        rows, cols = cols, rows
    source = np.full(symbolic.sweep.unknowns + 1, len(rows), np.int32)
    source[slots] = rows
    back = np.empty(len(cols), np.int32)
    back[cols] = slots
    return source, back


def _stepped(sweep, group: Group, blocks: Blocks, x, transpose: bool):
    """The group's steps, one after the other; upwards, if `sweep` is `_ascend`."""
    steps, batch = group.members.shape

    def step(x, given):
        s, rows, blocks = given
        start = group.slot + s * batch * group.p
        own = lax.dynamic_slice_in_dim(x, start, batch * group.p)
        blocked = own.reshape(batch, group.p, *own.shape[1:])
        blocked, x = sweep(blocks, blocked, rows, x, transpose)
        own = blocked.reshape(own.shape)
        return lax.dynamic_update_slice_in_dim(x, own, start, 0), None

    rows = jnp.asarray(group.rows)
    if steps == 1:
        return step(x, (0, rows[0], jax.tree_util.tree_map(lambda a: a[0], blocks)))[0]
    given = jnp.arange(steps, dtype=jnp.int32), rows, blocks
    return lax.scan(step, x, given, reverse=sweep is _descend)[0]


def _ascend(blocks: Blocks, own, rows, x, transpose: bool):
    """A⁻¹ b, and C A⁻¹ b is taken from what comes later; or Uᵀ b, and b stays."""
    p = own.shape[1]
    if transpose:
        change = _times(blocks.up.mT, own)
    elif blocks.columns.shape[1] == p:
        change = _times(blocks.low, own)
        own = _times(blocks.columns, own)
    else:
        both = _times(blocks.columns, own)
        own, change = both[:, :p], both[:, p:]
    return own, x.at[rows].add(-change, mode="promise_in_bounds")


def _descend(blocks: Blocks, own, rows, x, transpose: bool):
    """b - U x of what comes later; or A⁻ᵀ b - (C A⁻¹)ᵀ x."""
    above = x.at[rows].get(mode="promise_in_bounds")
    if not transpose:
        return own - _times(blocks.up, above), x
    if blocks.columns.shape[1] == own.shape[1]:
        change = _times(blocks.low.mT, above)
        return _times(blocks.columns.mT, own) - change, x
    both = jnp.concatenate([own, -above], axis=1)
    return _times(blocks.columns.mT, both), x


def _times(blocks: Inexact[Array, "batch m n"], x: Inexact[Array, "batch n ..."]):
    return lax.dot_general(
        blocks, x, (((2,), (1,)), ((0,), (0,))), precision=lax.Precision.HIGHEST
    )
