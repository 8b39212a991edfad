"""Up the tree of fronts from its leaves, and down again."""

import functools as ft

import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact

from ..product import matmul
from .numeric import Factors
from .schedule import Class
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
    plan = symbolic.schedule
    row_scale, col_scale = factors.row_scale, factors.col_scale
    if transpose:
        row_scale, col_scale = col_scale, row_scale
    source, back = _slots(symbolic, transpose)
    b = b * row_scale[:, None].astype(b.dtype)
    b = jnp.concatenate([b, jnp.zeros((1, b.shape[1]), b.dtype)])
    x = b.at[source].get(mode="promise_in_bounds")
    fronts = list(zip(plan.classes, factors.down, factors.up))
    for kind, down, up in fronts:
        x = _ascend(kind, down, up, x, transpose)
    for kind, down, up in reversed(fronts):
        x = _descend(kind, down, up, x, transpose)
    x = x.at[back].get(mode="promise_in_bounds")
    return x * col_scale[:, None].astype(x.dtype)


@ft.lru_cache(maxsize=128)
def _slots(symbolic: Symbolic, transpose: bool):
    """Of each slot the row of b, and of each row of x the slot.

    The last slot is zero, and that of places which a front does not have.
    """
    slots = symbolic.schedule.slots
    rows, cols = symbolic.row_order, symbolic.col_order
    if transpose:
        rows, cols = cols, rows
    source = np.full(symbolic.schedule.unknowns + 1, len(rows), np.int32)
    source[slots] = rows
    back = np.empty(len(cols), np.int32)
    back[cols] = slots
    return source, back


def _ascend(kind: Class, down, up, x, transpose: bool):
    p, batch = kind.p, kind.batch

    def step(x, given):
        s, rows, down, up = given
        start = kind.slot + s * batch * p
        b = lax.dynamic_slice_in_dim(x, start, batch * p).reshape(batch, p, -1)
        if transpose:
            change = matmul(up.mT, b)
        else:
            product = matmul(down, b)
            x = lax.dynamic_update_slice_in_dim(
                x, product[:, :p].reshape(batch * p, -1), start, 0
            )
            change = product[:, p:]
        return x.at[rows].add(-change, mode="promise_in_bounds"), None

    return lax.scan(step, x, _given(kind, down, up))[0]


def _descend(kind: Class, down, up, x, transpose: bool):
    p, batch = kind.p, kind.batch

    def step(x, given):
        s, rows, down, up = given
        start = kind.slot + s * batch * p
        b = lax.dynamic_slice_in_dim(x, start, batch * p).reshape(batch, p, -1)
        above = x.at[rows].get(mode="promise_in_bounds")
        if transpose:
            out = matmul(down.mT, jnp.concatenate([b, -above], axis=1))
        else:
            out = b - matmul(up, above)
        return lax.dynamic_update_slice_in_dim(
            x, out.reshape(batch * p, -1), start, 0
        ), None

    return lax.scan(step, x, _given(kind, down, up), reverse=True)[0]


def _given(kind: Class, down, up):
    return jnp.arange(kind.steps, dtype=jnp.int32), jnp.asarray(kind.rows), down, up
