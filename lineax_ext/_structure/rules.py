"""How each family of primitives carries index sets from its inputs to its outputs.

A rule gets the equation and its inputs, of which at least one depends on the vector. It
returns one value for each output; or `None`, and then all outputs depend on everything
that reaches the equation.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.extend.core as jex
import jax.lax as lax
import numpy as np

from .index_sets import accumulate, collect, everything, IndexSets, move, union
from .values import known, MOVES, pad, unknown, Value
from .windows import indexed_windows, outer_index, sliding


Outs = list[Value] | None
Rule = Callable[[jex.JaxprEqn, list[Value]], Outs]
# A product that has more pairs of entries than these is followed as if no factor were
# known.
_most_pairs = 2**23

RULES: dict[str, Rule] = {}


def rule(names: str) -> Callable[[Rule], Rule]:
    def register(fn):
        RULES.update(dict.fromkeys(names.split(), fn))
        return fn

    return register


def shape_of(atom: Any) -> tuple[int, ...]:
    return tuple(atom.aval.shape)


def linear(values: Sequence[Value]) -> list[IndexSets]:
    return [x for x in values if isinstance(x, IndexSets)]


def _operands(eqn: jex.JaxprEqn, ins: Sequence[Value]):
    """As `move` takes them."""
    return [
        x if isinstance(x, IndexSets) else shape_of(atom)
        for x, atom in zip(ins, eqn.invars)
    ]


#
# Elementwise
#


@rule("""
    neg sign nextafter floor ceil round is_finite exp exp2 log expm1 log1p tanh logistic
    sin cos tan asin acos atan atan2 sinh cosh asinh acosh atanh real imag conj complex
    abs sqrt rsqrt cbrt square integer_pow pow not and or xor population_count clz add
    add_any sub mulhi div rem max min shift_left shift_right_arithmetic
    shift_right_logical eq ne ge gt le lt eq_to le_to lt_to clamp lgamma digamma
    polygamma igamma igamma_grad_a igammac zeta bessel_i0e bessel_i1e erf erfc erf_inv
    regularized_incomplete_beta random_gamma_grad convert_element_type
    reduce_precision copy copy_p stop_gradient sharding_constraint layout_constraint
    mesh_cast reshard pvary device_put_elementwise nondifferentiable
""")
def elementwise(eqn, ins):
    (out,) = eqn.outvars
    return [union(linear(ins), shape_of(out))]


@rule("mul")
def multiply(eqn, ins):
    """A constant factor that is zero takes an entry out, if nothing else is one."""
    shape = shape_of(eqn.outvars[0])
    out = union(linear(ins), shape)
    for x in ins:
        factor = known(x)
        if factor is not None and not np.all(factor):
            mask = np.broadcast_to(factor != 0, shape)
            out = out.map(lambda place, mask=mask: np.where(mask, place, 0), shape)
    return [out]


@rule("optimization_barrier device_put")
def each_its_own(eqn, ins):
    return ins


@rule("bitcast_convert_type")
def bitcast(eqn, ins):
    same = shape_of(eqn.invars[0]) == shape_of(eqn.outvars[0])
    return elementwise(eqn, ins) if same else None


@rule("select_n")
def select(eqn, ins):
    which, *cases = ins
    shape, chosen = shape_of(eqn.outvars[0]), known(which)
    if chosen is None:
        return [union(linear(ins), shape)]
    chosen = np.broadcast_to(chosen.astype(np.int64), shape)
    found = []
    for number, case in enumerate(cases):
        if isinstance(case, IndexSets):
            mask = chosen == number
            found.append(
                case.map(lambda place, mask=mask: np.where(mask, place, 0), shape)
            )
    return [union(found, shape)]


#
# Moving
#


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
    return _summed(x, axes, keepdims=True) if axes else x


def _clamped(shape, starts, sizes) -> list[int]:
    """Where the slices start; 0 where that is not known."""
    values = [0 if known(x) is None else int(known(x)) for x in starts]
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
        operand = _summed(operand, indexed, keepdims=True)
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
    dims, mode = eqn.params["dimension_numbers"], eqn.params["mode"]
    shape, size = shape_of(eqn.invars[0]), shape_of(eqn.invars[2])
    indices, indexed = known(index), dims.scatter_dims_to_operand_dims
    gone = {*dims.inserted_window_dims, *dims.operand_batching_dims}
    free = indices is None
    reduced = tuple(
        1 if free and d in indexed else length for d, length in enumerate(shape)
    )
    flat, inside = indexed_windows(
        reduced,
        indices,
        size,
        window_dims=dims.update_window_dims,
        operand_window_dims=[d for d in range(len(shape)) if d not in gone],
        index_dims=indexed,
        batching=dict(
            zip(dims.operand_batching_dims, dims.scatter_indices_batching_dims)
        ),
        clip=mode == lax.GatherScatterMode.CLIP,
    )
    inside, flat, found = inside.reshape(-1), flat.reshape(-1), []
    if isinstance(operand, IndexSets):
        if eqn.primitive.name == "scatter" and not free:
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


#
# Summing
#


def _summed(x: IndexSets, axes: Sequence[int], keepdims: bool = False) -> IndexSets:
    """Unions along axes."""
    kept = tuple(1 if d in axes else n for d, n in enumerate(x.shape))
    shape = kept if keepdims else tuple(
        n for d, n in enumerate(x.shape) if d not in axes
    )  # fmt: skip
    if kept == x.shape:
        return x.map(lambda place: place.reshape(shape), shape)
    owner = np.arange(math.prod(kept)).reshape(kept)
    return collect(x, shape, np.broadcast_to(owner, x.shape).reshape(-1))


@rule("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor "
      "argmax argmin")  # fmt: skip
def reduction(eqn, ins):
    return [_summed(x, eqn.params["axes"]) for x in linear(ins)]


@rule("reduce")
def any_reduction(eqn, ins):
    operands = linear(ins[: len(ins) // 2])
    if len(linear(ins)) > len(operands):
        return None
    shape = shape_of(eqn.outvars[0])
    out = union([_summed(x, eqn.params["dimensions"]) for x in operands], shape)
    return [out] * len(eqn.outvars)


@rule("cumsum cumprod cummax cummin cumlogsumexp")
def cumulative(eqn, ins):
    return [accumulate(ins[0], eqn.params["axis"], eqn.params["reverse"])]


@rule("dot_general")
def dot_general(eqn, ins):
    contracted, batch = eqn.params["dimension_numbers"]
    shape = shape_of(eqn.outvars[0])
    found = []
    for side in (0, 1):
        x, factor = ins[side], known(ins[1 - side])
        if not isinstance(x, IndexSets):
            continue
        free = [
            d for d in range(len(x.shape)) if d not in (*contracted[side], *batch[side])
        ]
        first = len(batch[side]) if side == 0 else len(shape) - len(free)
        dims = (*range(len(batch[side])), *range(first, first + len(free)))
        wide = math.prod(x.shape[d] for d in free)
        sparse = factor is not None and not np.all(factor)
        if sparse and np.count_nonzero(factor) * wide <= _most_pairs:
            # The factor's axes beside those of x: (batch, contracted, its own, ours).
            own = [d for d in range(factor.ndim)
                   if d not in (*contracted[1 - side], *batch[1 - side])]  # fmt: skip
            order = (*batch[1 - side], *contracted[1 - side], *own)
            moved = np.transpose(factor, order)
            sizes = [
                [factor.shape[d] for d in (axes[1 - side])]
                for axes in (batch, contracted)
            ]
            b, k, f = (math.prod(s) for s in (*sizes, [factor.shape[d] for d in own]))
            b_at, k_at, f_at = np.nonzero(moved.reshape(b, k, f))
            ours = np.arange(wide)
            ins_ = ((b_at * k + k_at)[:, None] * wide + ours).reshape(-1)
            place = ((b_at * f + f_at)[:, None] * wide + ours) if side else (
                (b_at[:, None] * wide + ours) * f + f_at[:, None])  # fmt: skip
            arranged = (*batch[side], *contracted[side], *free)
            x = x.map(
                lambda p, a=arranged: p.transpose(a),
                tuple(x.shape[d] for d in arranged),
            )
            found.append(collect(x, shape, place.reshape(-1), ins_))
            continue
        rest = [d for d in range(len(x.shape)) if d not in contracted[side]]
        order = [rest.index(d) for d in (*batch[side], *free)]
        shaped = [1] * len(shape)
        for d, axis in zip(dims, (*batch[side], *free)):
            shaped[d] = x.shape[axis]
        spread = lambda p, o=order, s=tuple(shaped): np.broadcast_to(
            p.transpose(o).reshape(s), shape
        )
        found.append(_summed(x, contracted[side]).map(spread, shape))
    return [union(found, shape)]


@rule("conv_general_dilated")
def convolution(eqn, ins):
    params = eqn.params
    lhs, rhs = map(shape_of, eqn.invars)
    out, spec = shape_of(eqn.outvars[0]), params["dimension_numbers"]
    groups, batch_groups = params["feature_group_count"], params["batch_group_count"]
    spatial = range(2, len(lhs))
    # Everything in the order batch, features, space; then what is summed over.
    out_t = [out[d] for d in spec.out_spec]
    lhs_t, rhs_t = (
        [s[d] for d in p] for s, p in ((lhs, spec.lhs_spec), (rhs, spec.rhs_spec))
    )
    rank = len(out)
    shape = (*out_t, rhs_t[1], *rhs_t[2:])
    if math.prod(shape) > _most_pairs:
        return None
    features = np.arange(out_t[1])
    batch = (
        np.arange(out_t[0])[:, None]
        + (features // (out_t[1] // batch_groups))[None, :] * out_t[0]
    )
    channel = (features // max(1, out_t[1] // groups))[:, None] * rhs_t[1] + np.arange(
        rhs_t[1]
    )
    read, kernel = (
        [(batch, (0, 1)), (channel, (1, rank))],
        [(features, (1,)), (np.arange(rhs_t[1]), (rank,))],
    )
    for axis, d in enumerate(spatial):
        index = sliding(
            lhs_t[d],
            out_t[d],
            rhs_t[d],
            stride=params["window_strides"][axis],
            before=params["padding"][axis][0],
            base_dilation=params["lhs_dilation"][axis],
            dilation=params["rhs_dilation"][axis],
        )
        read.append((index, (d, rank + 1 + axis)))
        kernel.append((np.arange(rhs_t[d]), (rank + 1 + axis,)))
    at = [outer_index(read, lhs_t, shape), outer_index(kernel, rhs_t, shape)]
    used = at[0] >= 0
    arrange = (spec.lhs_spec, spec.rhs_spec)
    for side in (0, 1):
        factor = known(ins[side])
        if factor is not None:
            used &= factor.transpose(arrange[side]).reshape(-1)[at[side]] != 0
    owner = np.arange(math.prod(out_t)).reshape(out_t + [1] * (rank - 1))
    owner = np.broadcast_to(owner, shape)[used]
    found = []
    for side in (0, 1):
        x = ins[side]
        if isinstance(x, IndexSets):
            moved = tuple(x.shape[d] for d in arrange[side])
            x = x.map(lambda p, a=arrange[side]: p.transpose(a), moved)
            found.append(collect(x, tuple(out_t), owner, at[side][used]))
    back = tuple(np.argsort(spec.out_spec))
    return [union(found, tuple(out_t)).map(lambda p: p.transpose(back), out)]


@rule("reduce_window_sum reduce_window_max reduce_window_min reduce_window cumred")
def windows(eqn, ins):
    params = eqn.params
    operands = linear(ins)
    shape, size = shape_of(eqn.outvars[0]), shape_of(eqn.invars[0])
    if any(x.shape != size for x in operands):
        return None  # a starting value that depends on v
    full = (*shape, *params["window_dimensions"])
    if math.prod(full) > 8 * _most_pairs:
        return None
    rank = len(shape)
    ones = (1,) * rank
    axes = [
        (
            sliding(
                size[d],
                shape[d],
                params["window_dimensions"][d],
                stride=params["window_strides"][d],
                before=params["padding"][d][0],
                base_dilation=(params.get("base_dilation") or ones)[d],
                dilation=(params.get("window_dilation") or ones)[d],
            ),
            (d, rank + d),
        )
        for d in range(rank)
    ]
    at = outer_index(axes, size, full)
    owner = np.arange(math.prod(shape)).reshape(*shape, *ones)
    owner, used = np.broadcast_to(owner, full), at >= 0
    found = [collect(x, shape, owner[used], at[used]) for x in operands]
    return [union(found, shape)] * len(eqn.outvars)


@rule("select_and_scatter_add")
def select_and_scatter_add(eqn, ins):
    source, operand = ins
    if isinstance(operand, IndexSets):
        return None
    params, shape = eqn.params, shape_of(eqn.outvars[0])
    full = (*source.shape, *params["window_dimensions"])
    if math.prod(full) > 8 * _most_pairs:
        return None
    rank = len(shape)
    axes = [
        (
            sliding(
                shape[d],
                source.shape[d],
                params["window_dimensions"][d],
                stride=params["window_strides"][d],
                before=params["padding"][d][0],
            ),
            (d, rank + d),
        )
        for d in range(rank)
    ]
    at = outer_index(axes, shape, full)
    owner = np.arange(source.size).reshape(*source.shape, *(1,) * rank)
    owner, used = np.broadcast_to(owner, full), at >= 0
    return [collect(source, shape, at[used], owner[used])]


#
# All of a line, or of a batch element
#


def _spread(x: IndexSets, axes: Sequence[int], shape) -> IndexSets:
    """The union along axes, everywhere along the same axes of an array of this shape,
    which may have other sizes there."""
    x = _summed(x, axes, keepdims=True)
    return x.broadcast(shape)


@rule("sort")
def sort(eqn, ins):
    axes, keys = (eqn.params["dimension"],), eqn.params["num_keys"]
    shape, outs = shape_of(eqn.outvars[0]), []
    for x in ins:
        found = linear([*ins[:keys], x])
        if not found:
            outs.append(unknown)  # sorted with others, it is not what it was
        else:
            outs.append(_spread(union(found, shape), axes, shape))
    return outs


@rule("top_k approx_top_k")
def top_k(eqn, ins):
    axis = eqn.params.get("axis", -1)
    axis = axis % len(ins[0].shape)
    out = _summed(ins[0], (axis,), keepdims=True)
    return [out.broadcast(shape_of(x)) for x in eqn.outvars]


@rule("fft")
def fft(eqn, ins):
    (x,) = ins
    count = len(eqn.params["fft_lengths"])
    axes = range(len(x.shape) - count, len(x.shape))
    return [_spread(x, axes, shape_of(eqn.outvars[0]))]


@rule("triangular_solve")
def triangular_solve(eqn, ins):
    matrix, b = ins
    if isinstance(matrix, IndexSets):
        return batched(eqn, ins)
    params = eqn.params
    axis = len(b.shape) - (2 if params["left_side"] else 1)
    # Substitution: forwards for a lower triangle from the left.
    turns = (params["lower"], params["transpose_a"], params["left_side"])
    forwards = (turns.count(False)) % 2 == 1
    return [accumulate(b, axis, reverse=not forwards)]


@rule("""
    cholesky cholesky_update lu lu_pivots_to_permutation qr geqrf geqp3 eigh eig svd
    householder_product ormqr schur hessenberg tridiagonal tridiagonal_solve
""")
def batched(eqn, ins):
    """Linear algebra: whatever the batch element has, and nothing of the others."""
    vectors = ("lu_pivots_to_permutation", "tridiagonal_solve")
    count = 1 if eqn.primitive.name in vectors else 2
    ranks = {len(shape_of(x)) for x in eqn.invars}
    batch = shape_of(eqn.invars[0])[: len(shape_of(eqn.invars[0])) - count]
    deep = len(batch)
    if min(ranks) < deep or any(shape_of(x)[:deep] != batch for x in eqn.invars):
        return None
    found = [_summed(x, range(deep, len(x.shape))) for x in linear(ins)]
    whole = union(found, batch)
    outs = []
    for out in eqn.outvars:
        shape = shape_of(out)
        if shape[:deep] != batch:
            return None
        spread = (*batch, *(1,) * (len(shape) - deep))
        moved = whole.map(lambda p, s=spread: p.reshape(s), spread)
        outs.append(moved.broadcast(shape))
    return outs
