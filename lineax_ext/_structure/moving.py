"""Rules of the primitives that move entries about."""

import math
from collections.abc import Sequence

import jax.extend.core as jex
import jax.lax as lax
import numpy as np

from .index_sets import collect, everything, IndexSets, move, summed, union
from .rules import linear, rule, shape_of
from .values import known, MOVES, pad, Value
from .windows import indexed_windows, scattered_windows


def _operands(eqn: jex.JaxprEqn, ins: Sequence[Value]):
    """As `move` takes them."""
    return [
        x if isinstance(x, IndexSets) else shape_of(atom)
        for x, atom in zip(ins, eqn.invars)
    ]


@rule(" ".join(MOVES))
def moving(eqn, ins):
    fn, name = MOVES[eqn.primitive.name], eqn.primitive.name
    operands = _operands(eqn, ins)
    if eqn.primitive.multiple_results:
        return [
            move(lambda *xs, i=i: fn(*xs, **eqn.params)[i], operands, shape_of(out))
            for i, out in enumerate(eqn.outvars)
        ]
    if name in ("reshape", "broadcast_in_dim"):  # sizes that are not static come after
        operands = operands[:1]
    shape = shape_of(eqn.outvars[0])
    return [move(lambda *xs: fn(*xs, **eqn.params), operands, shape)]


@rule("pad")
def padding(eqn, ins):
    operand, value = ins
    shape, config = shape_of(eqn.outvars[0]), eqn.params["padding_config"]
    found = []
    if isinstance(operand, IndexSets):
        found.append(operand.map(lambda p: pad(p, 0, padding_config=config), shape))
    if isinstance(value, IndexSets):
        outside = pad(
            np.zeros(shape_of(eqn.invars[0]), bool), True, padding_config=config
        )
        found.append(value.map(lambda p: np.where(outside, p, 0), shape))
    return [union(found, shape)]


@rule("dynamic_slice")
def dynamic_slice(eqn, ins):
    operand, *starts = ins
    shape = shape_of(eqn.outvars[0])
    out = _anywhere(operand, starts) if isinstance(operand, IndexSets) else None
    if out is not None:
        at = _clamped(shape_of(eqn.invars[0]), starts, shape)
        at = tuple(slice(i, i + size) for i, size in zip(at, shape))
        out = out.map(lambda place: np.broadcast_to(place[at], shape), shape)
    return [_and_index(out, linear(starts), shape)]


@rule("dynamic_update_slice")
def dynamic_update_slice(eqn, ins):
    operand, update, *starts = ins
    shape, size = map(shape_of, eqn.invars[:2])
    at = _clamped(shape, starts, size)
    at = tuple(
        slice(None) if known(x) is None else slice(i, i + k)
        for i, x, k in zip(at, starts, size)
    )
    certain = all(known(x) is not None for x in starts)
    found = []
    if isinstance(operand, IndexSets):
        keep = np.ones(shape, bool)
        keep[at] = not certain
        found.append(operand.map(lambda place: np.where(keep, place, 0), shape))
    if isinstance(update, IndexSets):

        def put(place):
            out = np.zeros(shape, np.int32)
            out[at] = place
            return out

        found.append(_anywhere(update, starts).map(put, shape))
    return [_and_index(union(found, shape) if found else None, linear(starts), shape)]


def _anywhere(x: IndexSets, starts: Sequence[Value]) -> IndexSets:
    """The union along the axes where a start is not known, kept with size one."""
    axes = [axis for axis, start in enumerate(starts) if known(start) is None]
    return summed(x, axes, keepdims=True) if axes else x


def _clamped(shape, starts, sizes) -> list[int]:
    """Where the slices start; 0 where that is not known."""
    found = map(known, starts)
    values = [0 if x is None else int(x) for x in found]
    return [max(0, min(i, n - k)) for i, n, k in zip(values, shape, sizes)]


def _and_index(out, indices: list[IndexSets], shape) -> IndexSets:
    """If an index depends on v, which it cannot in a linear map, everything does."""
    found = [] if out is None else [out]
    if indices:
        found.append(everything(indices, shape))
    return union(found, shape)


@rule("gather")
def gather(eqn, ins):
    operand, index = ins
    dims, mode = eqn.params["dimension_numbers"], eqn.params["mode"]
    shape, operand_shape = shape_of(eqn.outvars[0]), shape_of(eqn.invars[0])
    if not isinstance(operand, IndexSets):
        return [everything(linear([index]), shape)]
    indices = known(index)
    indexed = dims.start_index_map
    if indices is None:
        operand = summed(operand, indexed, keepdims=True)
    gone = {*dims.collapsed_slice_dims, *dims.operand_batching_dims}
    fills = mode == lax.GatherScatterMode.FILL_OR_DROP
    flat, inside = indexed_windows(
        operand.shape,
        indices,
        shape,
        window_dims=dims.offset_dims,
        operand_window_dims=[d for d in range(len(operand_shape)) if d not in gone],
        index_dims=indexed,
        batching=dict(
            zip(dims.operand_batching_dims, dims.start_indices_batching_dims)
        ),
        clip=not fills,
    )
    if operand.size == 0:
        return [IndexSets(shape, [], operand.single)]
    flat = np.where(inside, flat, 0)
    read = lambda place: np.where(inside, place.reshape(-1)[flat], 0)
    return [_and_index(operand.map(read, shape), linear([index]), shape)]


@rule("scatter scatter-add scatter_add scatter-sub scatter_sub scatter_mul scatter-mul "
      "scatter_min scatter-min scatter_max scatter-max")  # fmt: skip
def scatter(eqn, ins):
    operand, index, updates = ins
    shape, size = shape_of(eqn.invars[0]), shape_of(eqn.invars[2])
    indices = known(index)
    indexed = eqn.params["dimension_numbers"].scatter_dims_to_operand_dims
    free = indices is None
    reduced = tuple(
        1 if free and d in indexed else length for d, length in enumerate(shape)
    )
    flat, inside = scattered_windows(eqn.params, reduced, indices, size)
    inside, flat, found = inside.reshape(-1), flat.reshape(-1), []
    if isinstance(operand, IndexSets):
        # With a function of its own (`.at[…].apply`) it keeps what it finds.
        writes = eqn.primitive.name == "scatter" and eqn.params["update_jaxpr"] is None
        if writes and not free:
            written = np.zeros(shape, bool)
            written.reshape(-1)[flat[inside]] = True
            operand = operand.map(lambda place: np.where(written, 0, place), shape)
        found.append(operand)
    if isinstance(updates, IndexSets) and math.prod(shape) > 0:
        which = np.flatnonzero(inside)
        found.append(_written(updates, reduced, flat[which], which).broadcast(shape))
    return [_and_index(union(found, shape) if found else None, linear([index]), shape)]


def _written(updates: IndexSets, shape, flat, which) -> IndexSets:
    """Each entry of the updates at its place; where there are several, any of them."""
    if np.bincount(flat, minlength=1).max(initial=0) > 1:
        return collect(updates, shape, flat, which)

    def put(place):
        out = np.zeros(math.prod(shape), np.int32)
        out[flat] = place.reshape(-1)[which]
        return out.reshape(shape)

    return updates.map(put, shape)
