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
    kept = []
    for group, blocks in groups:
        x, own = _ascend(group, blocks, x, transpose)
        kept.append(own)
    for (group, blocks), own in zip(groups[::-1], kept[::-1]):
        x = _descend(group, blocks, own, x, transpose)
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


def _ascend(group: Group, blocks: Blocks, x, transpose: bool):
    """C A⁻¹ b is taken from what comes later, and A⁻¹ b is returned; or Uᵀ b, and b."""
    steps, batch = group.members.shape
    rows, size = group.rows, batch * group.p
    together = not transpose and blocks.columns.shape[2] > group.p
    if together:
        # Own places are not read any more. With a copy of what goes to the others, of
        # each product, a solve took a fifth longer to compile.
        own = group.slot + np.arange(steps * size, dtype=np.int32)
        rows = np.concatenate([own.reshape(steps, batch, group.p), rows], axis=2)

    def step(x, given):
        s, rows, blocks = given
        own = lax.dynamic_slice_in_dim(x, group.slot + s * size, size)
        own = own.reshape(batch, group.p, *own.shape[1:])
        if together:
            change = _times(blocks.columns, own)
            own = change[:, : group.p]
        elif transpose:
            change = _times(blocks.up.mT, own)
        else:
            change, own = _times(blocks.low, own), _times(blocks.columns, own)
        return x.at[rows].subtract(change, mode="promise_in_bounds"), own

    return _stepped(step, x, rows, blocks)


def _descend(group: Group, blocks: Blocks, own, x, transpose: bool):
    """A⁻¹ b - U x of what comes later; or A⁻ᵀ b - (C A⁻¹)ᵀ x."""
    size = group.members.shape[1] * group.p

    def step(x, given):
        s, rows, blocks, own = given
        above = x.at[rows].get(mode="promise_in_bounds")
        if not transpose:
            own = own - _times(blocks.up, above)
        elif blocks.columns.shape[1] == group.p:
            own = _times(blocks.columns.mT, own) - _times(blocks.low.mT, above)
        else:
            both = jnp.concatenate([own, -above], axis=1)
            own = _times(blocks.columns.mT, both)
        own = own.reshape(size, *own.shape[2:])
        return lax.dynamic_update_slice_in_dim(x, own, group.slot + s * size, 0), None

    return _stepped(step, x, group.rows, blocks, own, reverse=True)[0]


def _stepped(step, x, rows: np.ndarray, *given, reverse: bool = False):
    """A group's steps, one after the other; each is given its number, its rows, and its
    part of what else is given."""
    steps = len(rows)
    if steps == 1:
        first = jax.tree_util.tree_map(lambda a: a[0], given)
        x, out = step(x, (0, rows[0], *first))
        return x, jax.tree_util.tree_map(lambda a: a[None], out)
    given = jnp.arange(steps, dtype=jnp.int32), jnp.asarray(rows), *given
    return lax.scan(step, x, given, reverse=reverse)


def _times(blocks: Inexact[Array, "batch m n"], x: Inexact[Array, "batch n ..."]):
    return lax.dot_general(
        blocks, x, (((2,), (1,)), ((0,), (0,))), precision=lax.Precision.HIGHEST
    )
