"""Loops: run as often as they run if that is short, or else summed up first.

The summary of a body is the Boolean matrix of its outputs by its inputs, whatever is
not linear counted as unknown. A further step is then a Boolean product, and no second
look at the body.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.extend.core as jex
import numpy as np

from .index_sets import (
    collect,
    cut,
    everything,
    IndexSets,
    joined,
    merged,
    move,
    union,
)
from .rules import linear, shape_of
from .values import Constant, known, unknown, Value


# So many equations are looked at for one loop; and a loop that is summed up may take so
# many steps, and touch so many entries.
_most_equations = 3000
_most_steps = 4096
_most_entries = 2**24


def _weight(jaxpr: Any) -> int:
    """The number of equations that are run."""
    total = 0
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        inner = 1
        for param in eqn.params.values():
            for x in param if isinstance(param, tuple | list) else [param]:
                if hasattr(x, "eqns") or hasattr(x, "jaxpr"):
                    inner += _weight(x) * eqn.params.get("length", 1)
        total += inner
    return total


def _settled(x: Value, before: Value) -> Value:
    """A constant computed at once: not a chain of them, as long as the loop."""
    if (
        x is not before
        and isinstance(x, Constant)
        and (x.value is None or x.value.size > 1000 or x.shaken is None)
    ):
        return unknown
    return x


def _spread(
    index: IndexSets, outs: Sequence[Value], atoms: Sequence[Any]
) -> list[Value]:
    """What an index that depends on v decides about."""
    shapes = list(map(shape_of, atoms))
    of_index = [everything([index], shape) for shape in shapes]
    return [
        union([*linear([x]), more], shape)
        for x, more, shape in zip(outs, of_index, shapes)
    ]


#
# scan
#


def _counts(params: dict[str, Any]) -> tuple[int, int]:
    """How many inputs of a scan are constant, and how many are carried."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # from jax 0.12 on
    return len(consts), len(carry)


def scan(flow: Any, eqn: jex.JaxprEqn, ins: list[Value]) -> list[Value]:
    params = eqn.params
    body, length = params["jaxpr"], params["length"]
    start, count = _counts(params)
    consts, carry, xs = ins[:start], ins[start : start + count], ins[start + count :]
    shapes = [shape_of(x) for x in eqn.outvars[count:]]
    order = range(length)[:: -1 if params["reverse"] else 1]
    if length * _weight(body) > _most_equations:
        return _summed_up(flow, eqn, consts, carry, xs, order)
    ys: list[list[Value]] = [[unknown] * length for _ in shapes]
    for i in order:
        slices = [_slice(x, i) for x in xs]
        outs = flow.run(body, [*consts, *carry, *slices])
        carry = [_settled(x, old) for x, old in zip(outs, carry)]
        for y, out in zip(ys, outs[len(carry) :]):
            y[i] = out
    return [*carry, *map(_stack, ys, shapes)]


def _slice(x: Value, i: int) -> Value:
    if isinstance(x, IndexSets):
        return x.map(lambda place: place[i], x.shape[1:])
    return x[i] if isinstance(x, Constant) else x


def _stack(parts: list[Value], shape: tuple[int, ...]) -> Value:
    if not linear(parts):
        return unknown
    operands = [x if isinstance(x, IndexSets) else shape[1:] for x in parts]
    return move(lambda *places: np.stack(places), operands, shape)


def _summary(flow, jaxpr, values: Sequence[Value], shapes, keep=()):
    """Runs the body once, each of its linear inputs a stretch of local unknowns.

    Constants are only relied on if they are in `keep`, as no step changes them.

    **Returns:** for each output the pairs `(entry, local unknown)`, `None` if it does
    not depend on v; where the stretches start; and how many unknowns they are.
    """
    sizes = [
        math.prod(s) if isinstance(x, IndexSets) else 0 for x, s in zip(values, shapes)
    ]
    starts, total = np.cumsum([0, *sizes[:-1]]), sum(sizes)
    moving = [s for x, s in zip(values, shapes) if isinstance(x, IndexSets)]
    stretches = iter(cut(IndexSets.identity((total,)), moving))
    constant = lambda i, x: x if i in keep else unknown
    args = [
        next(stretches) if isinstance(x, IndexSets) else constant(i, x)
        for i, x in enumerate(values)
    ]
    outs = flow.run(jaxpr, args)
    pairs = [x.pairs() if isinstance(x, IndexSets) else None for x in outs]
    return pairs, starts, total


def _nothing(shape, single) -> IndexSets:
    return IndexSets(shape, [(np.zeros(shape, np.int32), single)], single)


def _growing(flow, jaxpr, consts, carry: Sequence[Value], xs, shapes, keep):
    """The carry, with index sets wherever the body puts some, sooner or later."""
    single = linear([*consts, *carry, *xs])[0].single
    carry = list(carry)
    while True:
        summary = _summary(flow, jaxpr, [*consts, *carry, *xs], shapes, keep)
        new = [
            i
            for i, (x, pairs) in enumerate(zip(carry, summary[0]))
            if pairs is not None and not isinstance(x, IndexSets)
        ]
        if not new:
            return carry, summary
        for i in new:
            carry[i] = _nothing(shapes[len(consts) + i], single)


def _summed_up(flow, eqn, consts, carry, xs, order) -> list[Value]:
    jaxpr, length, count = eqn.params["jaxpr"], len(order), len(carry)
    invars = getattr(jaxpr, "jaxpr", jaxpr).invars
    shapes = [shape_of(x) for x in invars]
    unchanged = _unchanged(jaxpr, len(consts), count)
    keep = {*range(len(consts)), *unchanged}
    carry, (pairs, starts, total) = _growing(
        flow, jaxpr, consts, carry, xs, shapes, keep
    )
    first, last = len(consts), len(consts) + count
    # The columns: constants, carry and slices one after the other.
    bounds = [*starts, total]
    carried = [i for i in range(count) if isinstance(carry[i], IndexSets)]
    rows, columns = _stacked_pairs([(pairs[i], shapes[first + i]) for i in carried])
    c0, c1 = int(bounds[first]), int(bounds[last])
    fixed, moving = _joined_or_none(consts), linear(xs)
    states, state = _states(
        _joined_or_none(carry), fixed, moving, (rows, columns), (c0, c1), order
    )
    outs = _carried(carry, state, shapes[first:last], {i - first for i in unchanged})
    # All ys of all steps at once.
    by_step = [states[0]] * length if length else []
    for turn, i in enumerate(order):
        by_step[i] = states[turn]
    for found, out in zip(pairs[count:], eqn.outvars[count:]):
        shape = shape_of(out)
        if found is None or length == 0:
            outs.append(unknown)
            continue
        outs.append(_all_steps(found, shape, fixed, by_step, moving, c0, c1))
    return outs


def _states(start: Any, fixed: Any, moving, pairs, bounds, order):
    """The carry before each step, in turn, and after the last one."""
    (rows, columns), (c0, c1), length = pairs, bounds, len(order)
    from_xs = bool(np.any(columns >= c1))
    given = [fixed] if c0 else []
    if length <= _most_steps or not len(rows):
        states, state, previous, work = [], start, None, 0
        for i in order:
            states.append(state)
            if previous is state:
                continue
            inputs = [*given, *([state] if c1 > c0 else [])]
            if from_xs:
                inputs += [x.map(lambda p, i=i: p[i], x.shape[1:]) for x in moving]
            if not inputs or state is None:
                previous = state
                continue
            new = collect(joined(inputs), state.shape, rows, columns)
            if not from_xs and _equal(new, state):
                new = state
            previous, state = state, new
            work += len(state.terms[0][1].columns)
            if work > _most_entries:
                break
        else:
            return states, state
    every = [_union_of_slices(x) for x in moving] if from_xs else []
    state = _closure(start, [*given, *every], rows, columns, c0, c1)
    return [state] * length, state


def _all_steps(found, shape, fixed, by_step, moving, c0, c1) -> IndexSets:
    entries, columns = found
    length, size = shape[0], math.prod(shape[1:])
    steps = np.arange(length)[:, None]
    parts = []
    place = lambda mask: (steps * size + entries[mask]).reshape(-1)
    of_const, of_slice = columns < c0, columns >= c1
    of_carry = ~(of_const | of_slice)
    if of_const.any():
        ins = np.broadcast_to(columns[of_const], (length, of_const.sum())).reshape(-1)
        parts.append(collect(fixed, shape, place(of_const), ins))
    if of_carry.any():
        if all(x is by_step[0] for x in by_step):
            states, ins = (
                by_step[0],
                np.broadcast_to(columns[of_carry] - c0, (length, of_carry.sum())),
            )
        else:
            states = joined(by_step)
            ins = steps * by_step[0].size + (columns[of_carry] - c0)
        parts.append(collect(states, shape, place(of_carry), ins.reshape(-1)))
    if of_slice.any():
        sizes = [x.size // length for x in moving]
        ends = np.cumsum(sizes)
        for x, end, k in zip(moving, ends, sizes):
            column = columns - c1 - (end - k)
            own = of_slice & (column >= 0) & (column < k)
            if own.any():
                ins = (steps * k + column[own]).reshape(-1)
                parts.append(collect(x, shape, place(own), ins))
    return union(parts, shape)


def _carried(carry, state: Any, shapes, unchanged: set[int]) -> list[Value]:
    """The carry after the loop, where `state` has all of it that depends on v."""
    moving = [s for x, s in zip(carry, shapes) if isinstance(x, IndexSets)]
    found = iter(cut(state, moving) if moving else [])
    constant = lambda i, x: x if i in unchanged else unknown
    return [
        next(found) if isinstance(x, IndexSets) else constant(i, x)
        for i, x in enumerate(carry)
    ]


def _union_of_slices(x: IndexSets) -> IndexSets:
    size = x.size // x.shape[0]
    return collect(x, x.shape[1:], np.tile(np.arange(size), x.shape[0]))


def _stacked_pairs(found):
    """The pairs of all carried arrays, the entries numbered one after the other."""
    rows, columns, at = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for pairs, shape in found:
        if pairs is not None:
            rows.append(pairs[0] + at)
            columns.append(pairs[1])
        at += math.prod(shape)
    return np.concatenate(rows), np.concatenate(columns)


def _joined_or_none(values) -> Any:
    found = linear(values)
    return merged(joined(found)) if found else None


def _equal(x: IndexSets, y: IndexSets) -> bool:
    return all(map(np.array_equal, x.pairs(), y.pairs()))


def _unchanged(jaxpr, first: int, count: int) -> set[int]:
    """Those inputs that the body only hands on."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    carried = zip(jaxpr.invars[first : first + count], jaxpr.outvars)
    return {first + i for i, (x, out) in enumerate(carried) if x is out}


def _closure(state, others, rows, columns, c0, c1) -> IndexSets:
    """What the state may depend on after any number of steps: C ← C ∪ B (c, C, x)."""
    own = (columns >= c0) & (columns < c1)
    if (~own).any():
        # Inputs in the order of the columns, without those of the state.
        given = joined(others)
        column = np.where(columns < c0, columns, columns - (c1 - c0))[~own]
        state = merged(
            union([state, collect(given, state.shape, rows[~own], column)], state.shape)
        )
    rows, columns, work = rows[own], columns[own] - c0, 0
    while work < _most_entries:
        more = collect(state, state.shape, rows, columns)
        new = merged(union([state, more], state.shape))
        if _equal(new, state):
            return state
        state = new
        work += len(state.terms[0][1].columns) + len(rows)
    # Too long: all that hangs together, whatever the direction.
    import scipy.sparse as sp
    import scipy.sparse.csgraph as csgraph

    graph = sp.coo_array((np.ones(len(rows), bool), (rows, columns)), (state.size,) * 2)
    count, labels = csgraph.connected_components(graph, directed=False)
    parts = collect(state, (count,), labels)
    return parts.map(lambda p: p[labels], state.shape)


#
# while
#


def while_loop(flow: Any, eqn: jex.JaxprEqn, ins: list[Value]) -> list[Value]:
    params = eqn.params
    test, body = params["cond_jaxpr"], params["body_jaxpr"]
    split = params["cond_nconsts"]
    stop = split + params["body_nconsts"]
    test_consts, consts, start = ins[:split], ins[split:stop], ins[stop:]
    # As long as it is known whether there is another step.
    carry, steps = start, 0
    while steps * (_weight(body) + _weight(test)) <= _most_equations:
        (more,) = flow.run(test, [*test_consts, *carry])
        going = known(more)
        if going is None or np.ndim(going) > 0:
            break
        if not going:
            return list(carry)
        outs = flow.run(body, [*consts, *carry])
        carry = [_settled(x, old) for x, old in zip(outs, carry)]
        steps += 1

    shapes = [shape_of(x) for x in getattr(body, "jaxpr", body).invars]
    unchanged = _unchanged(body, len(consts), len(start))
    keep = {*range(len(consts)), *unchanged}
    if not linear([*consts, *start]):
        (more,) = flow.run(test, [*test_consts, *map(_forget, start)])
        outs: list[Value] = [unknown] * len(start)
        return _spread(more, outs, eqn.outvars) if isinstance(more, IndexSets) else outs
    carry, (pairs, starts, total) = _growing(
        flow, body, consts, start, [], shapes, keep
    )
    carried = [i for i, x in enumerate(carry) if isinstance(x, IndexSets)]
    sizes = [(pairs[i], shapes[len(consts) + i]) for i in carried]
    rows, columns = _stacked_pairs(sizes)
    c0 = int([*starts, total][len(consts)])
    state = _joined_or_none(carry)
    if state is not None:
        others = [_joined_or_none(consts)] if c0 else []
        state = _closure(state, others, rows, columns, c0, total)
    same = {i - len(consts) for i in unchanged}
    outs = _carried(carry, state, shapes[len(consts) :], same)
    (more,) = flow.run(test, [*test_consts, *outs])
    return _spread(more, outs, eqn.outvars) if isinstance(more, IndexSets) else outs


def _forget(x: Value) -> Value:
    return x if isinstance(x, IndexSets) else unknown
