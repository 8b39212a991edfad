"""In what groups the fronts are swept when vectors are solved for.

A solve reads every entry of the factors once, so that padding and launches are all
that it can waste. The classes of the factorisation are many fronts of one size, from
all over the tree, some at a time; here it is the tree's levels that count: a level is
a product or a few, each of many blocks of alike sizes, without a loop around it, which
would copy the blocks. Where there are many levels of few fronts, several of them are
one loop.
"""

from typing import NamedTuple

import numpy as np

from .fronts import Fronts


class Group(NamedTuple):
    """Fronts padded to `p` pivots and `u` others.

    `members[s, b]` is the front in place b of step s, or -1.
    `rows[s, b]`: the places of its boundary in the vector of unknowns.
    `slot`: where the unknowns of the first step are.
    """

    p: int
    u: int
    members: np.ndarray
    rows: np.ndarray
    slot: int


class Sweep(NamedTuple):
    """`slots[i]`: the place of unknown i of the reordered matrix among the unknowns as
    the groups hold them, of which there are `unknowns`."""

    groups: tuple[Group, ...]
    slots: np.ndarray
    unknowns: int


# Seconds, of both directions together, measured: a product alone, a step of a loop, an
# entry in either, and a place of a boundary, from which and to which numbers are taken.
_ALONE, _STEP = 5e-6, 12e-6
_ENTRY_ALONE, _ENTRY_STEP = 3e-10, 8e-10
_PLACE = 4e-9
_BATCHES = np.array([1, 2, 3, 4, 6, 8, 12, 16])
_PARTS = 4  # of a level
_MOST = 14  # groups: each is compiled
_CUTS = 48  # places where a group may end


def sweep(fronts: Fronts) -> Sweep:
    """The groups that are predicted to take least time."""
    p, u = fronts.pivots, fronts.boundaries
    units, level = _units(fronts)
    groups, slots, end = [], np.zeros(len(fronts.order), np.int64), 0
    for start, stop, batch in _runs(units, level, p, u):
        members = _members(units[start:stop], batch)
        top_p = int(p[members[members >= 0]].max())
        places = end + top_p * np.arange(members.size).reshape(members.shape)
        real = members >= 0
        for f, place in zip(members[real], places[real]):
            mine = slice(fronts.starts[f], fronts.starts[f + 1])
            slots[mine] = place + np.arange(int(p[f]))
        groups.append((members, top_p, end))
        end += members.size * top_p
    built = []
    for members, top_p, slot in groups:
        top_u = int(u[members[members >= 0]].max())
        rows = np.full((*members.shape, top_u), end, np.int32)
        for s, b in np.argwhere(members >= 0):
            f = members[s, b]
            rows[s, b, : u[f]] = slots[fronts.boundary[f]]
        built.append(Group(top_p, top_u, members, rows, slot))
    return Sweep(tuple(built), slots.astype(np.int32), end)


def _units(fronts: Fronts) -> tuple[list[np.ndarray], np.ndarray]:
    """Fronts that do not depend on each other, children before parents: those of one
    level, in parts of alike sizes; and the level of each unit."""
    p, u = fronts.pivots, fronts.boundaries
    height = np.zeros(len(p), np.int64)
    for f, parent in enumerate(fronts.parents):
        if parent >= 0:
            height[parent] = max(height[parent], height[f] + 1)
    units, level = [], []
    for h in range(int(height.max(initial=-1)) + 1):
        parts = _parts(np.flatnonzero(height == h), p, u)
        units += parts
        level += [h] * len(parts)
    return units, np.array(level, np.int64)


def _parts(level: np.ndarray, p: np.ndarray, u: np.ndarray) -> list[np.ndarray]:
    """The fronts of a level, as products that are predicted to take least time."""
    least, parts = np.inf, []
    for key in (p, u, p * (p + 2 * u)):
        order = level[np.lexsort((u[level], key[level]))]
        cuts = np.linspace(0, len(order), min(len(order), 12) + 1).astype(int)
        cost = np.full((len(cuts), len(cuts)), np.inf)
        for i, j in zip(*np.triu_indices(len(cuts), 1)):
            inside = order[cuts[i] : cuts[j]]
            cost[i, j] = _alone(len(inside), p[inside].max(), u[inside].max())
        pieces, time = cheapest(cost, _PARTS, 0)
        if time < least:
            least, parts = time, [order[cuts[i] : cuts[j]] for i, j in pieces]
    return parts


def _alone(number: int, p: int, u: int) -> float:
    return _ALONE + number * (p * (p + 2 * u) * _ENTRY_ALONE + u * _PLACE)


def _runs(
    units: list[np.ndarray], level: np.ndarray, p: np.ndarray, u: np.ndarray
) -> list[tuple[int, int, int]]:
    """Of each group its first unit, that after its last, and how many fronts a step
    has; 0 if all are one step."""
    n = len(units)
    tall, wide = (np.array([int(x[unit].max()) for unit in units]) for x in (p, u))
    number = np.array([len(unit) for unit in units])
    cuts = np.arange(n + 1)
    if n > _CUTS:
        near = np.arange(_CUTS // 2)
        far = np.linspace(len(near), n, _CUTS // 2).astype(int)
        cuts = np.concatenate([near, far])
    size = len(cuts)
    cost = np.full((size, size), np.inf)
    batch = np.zeros((size, size), np.int64)
    for i in range(size):
        for j in range(i + 1, size):
            inside = slice(cuts[i], cuts[j])
            a, b = tall[inside].max(), wide[inside].max()
            if level[cuts[i]] == level[cuts[j] - 1]:
                cost[i, j] = _alone(number[inside].sum(), a, b)
                continue
            each = a * (a + 2 * b) * _ENTRY_STEP + b * _PLACE
            steps = (-(-number[inside, None] // _BATCHES)).sum(axis=0)
            time = steps * (_STEP + _BATCHES * each)
            k = int(np.argmin(time))
            cost[i, j], batch[i, j] = time[k], _BATCHES[k]
    runs = []
    for i, j in cheapest(cost, _MOST, 0.02)[0]:
        runs.append((int(cuts[i]), int(cuts[j]), int(batch[i, j])))
    return runs


def cheapest(
    cost: np.ndarray, most: int, gain: float
) -> tuple[list[tuple[int, int]], float]:
    """From 0 to the end in up to `most` pieces, of which that from i to j costs
    `cost[i, j]`; and what all cost.

    Another piece has to save `gain` of it: it has to be compiled.
    """
    size = len(cost)
    best = np.full((most + 1, size), np.inf)
    came = np.zeros((most + 1, size), np.int64)
    best[0, 0] = 0
    for k in range(1, most + 1):
        total = best[k - 1][:, None] + cost
        came[k] = np.argmin(total, axis=0)
        best[k] = np.min(total, axis=0)
    k = int(np.argmin(best[:, -1] * (1 + gain) ** np.arange(most + 1)))
    time = float(best[k, -1])
    pieces, j = [], size - 1
    while k > 0:
        i = int(came[k, j])
        pieces.append((i, j))
        k, j = k - 1, i
    return pieces[::-1], time


def _members(units: list[np.ndarray], batch: int) -> np.ndarray:
    if batch == 0:
        return np.concatenate(units)[None]
    steps = [x[i : i + batch] for x in units for i in range(0, len(x), batch)]
    members = np.full((len(steps), max(len(step) for step in steps)), -1)
    for s, step in enumerate(steps):
        members[s, : len(step)] = step
    return members
