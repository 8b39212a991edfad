"""Rules of the primitives that sum entries: a Boolean product."""

import math

import numpy as np

from .index_sets import accumulate, collect, IndexSets, summed, union
from .rules import linear, rule, shape_of
from .values import nonzero, unknown
from .windows import outer_index, sliding


# A product that has more pairs of entries than these is followed as if no factor were
# known.
_most_pairs = 2**23


@rule("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor "
      "argmax argmin")  # fmt: skip
def reduction(eqn, ins):
    return [summed(x, eqn.params["axes"]) for x in linear(ins)]


@rule("reduce")
def any_reduction(eqn, ins):
    operands = linear(ins[: len(ins) // 2])
    if len(linear(ins)) > len(operands):
        return None
    shape = shape_of(eqn.outvars[0])
    out = union([summed(x, eqn.params["dimensions"]) for x in operands], shape)
    return [out] * len(eqn.outvars)


@rule("cumsum cumprod cummax cummin cumlogsumexp")
def cumulative(eqn, ins):
    return [accumulate(ins[0], eqn.params["axis"], eqn.params["reverse"])]


@rule("psum")
def over_named_axes(eqn, ins):
    """A `vmap` that names its axis has made a position of the name."""
    axes = eqn.params["axes"]
    if eqn.params["axis_index_groups"] or not all(isinstance(d, int) for d in axes):
        return None
    return [summed(x, axes) if isinstance(x, IndexSets) else unknown for x in ins]


@rule("dot_general")
def dot_general(eqn, ins):
    contracted, batch = eqn.params["dimension_numbers"]
    shape = shape_of(eqn.outvars[0])
    found = []
    for side in (0, 1):
        x, factor = ins[side], nonzero(ins[1 - side])
        if not isinstance(x, IndexSets):
            continue
        free = [
            d for d in range(len(x.shape)) if d not in (*contracted[side], *batch[side])
        ]
        first = len(batch[side]) if side == 0 else len(shape) - len(free)
        dims = (*range(len(batch[side])), *range(first, first + len(free)))
        wide = math.prod(x.shape[d] for d in free)
        if (
            factor is not None
            and not np.all(factor)
            and np.count_nonzero(factor) * wide <= _most_pairs
        ):
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
        found.append(summed(x, contracted[side]).map(spread, shape))
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
        factor = nonzero(ins[side])
        if factor is not None:
            used &= factor.transpose(arrange[side]).reshape(-1)[at[side]]
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


@rule(
    "reduce_window_sum reduce_window_max reduce_window_min reduce_window "
    "select_and_gather_add"
)
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
# The products of a `SparseMatrixLinearOperator`
#


def _columns(index: np.ndarray, *counts: int) -> np.ndarray:
    """The flat positions of all that stands at `index` of the first axis."""
    return index[:, None] * math.prod(counts) + np.arange(math.prod(counts))


@rule("sparse_product")
def sparse_product(eqn, ins):
    values, x = ins
    pattern, transposed = eqn.params["pattern"], eqn.params["transposed"]
    rows, cols = (pattern.rows, pattern.cols)[:: -1 if transposed else 1]
    shape = shape_of(eqn.outvars[0])
    outs, found = _columns(rows, *shape[1:]).reshape(-1), []
    if isinstance(x, IndexSets):
        found.append(collect(x, shape, outs, _columns(cols, *shape[1:]).reshape(-1)))
    if isinstance(values, IndexSets):
        of_values = np.repeat(np.arange(values.size), shape[2])
        found.append(collect(values, shape, outs, of_values))
    return [union(found, shape)]


@rule("sparse_entry_products")
def sparse_entry_products(eqn, ins):
    pattern, shape = eqn.params["pattern"], shape_of(eqn.outvars[0])
    count = shape_of(eqn.invars[0])[2]
    outs = np.repeat(np.arange(math.prod(shape)), count)
    found = [
        collect(x, shape, outs, _columns(index, *x.shape[1:]).reshape(-1))
        for x, index in zip(ins, (pattern.rows, pattern.cols))
        if isinstance(x, IndexSets)
    ]
    return [union(found, shape)]
