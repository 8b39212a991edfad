"""Which fronts are eliminated together, and the index arrays by which they are filled.

A program takes time to compile for every kernel that it has, and fronts are of all
sizes. So they are padded to a few sizes, the classes; the fronts of a class go through
one loop, some at a time, and the loop is compiled once, however many there are.
A front comes after its children: no class is smaller than that of a child.
"""

from typing import NamedTuple

import numpy as np

from .fronts import Fronts, rounded, seconds
from .sweep import cheapest


class Class(NamedTuple):
    """Fronts padded to `p` pivots and `u` others, `batch` in each of `steps` steps.

    `members[s, b]` is the front in place b of step s, or -1; `sizes[s, b]` is the
    number of its pivots, and `pivots[s]` the largest of the step.

    `source[r]`, `target[r]`: numbers that are added to a step's fronts, entries of A
    and of the updates of children, and where; of step s for r from `chunks[s]` to
    `chunks[s + 1]`.
    `updates[s]`: where those of step s are stored, until the parents have read them.
    `inverse`, `low`, `up`: where those of the first step are stored.
    """

    p: int
    u: int
    batch: int
    steps: int
    members: np.ndarray
    pivots: np.ndarray
    sizes: np.ndarray
    source: np.ndarray
    target: np.ndarray
    chunks: np.ndarray
    updates: np.ndarray
    inverse: int
    low: int
    up: int


class Schedule(NamedTuple):
    """The entries of A, zeros, updates, and the blocks of the factors are in one array
    of the length `store`; the zeros are from `zeros` on, as many as the longest row of
    a block.

    Updates take the places of those that have been read: all of them would be two
    thirds of the array, and of one that is larger than 32 MB every page is new to each
    call, which takes as long as the arithmetic.
    """

    classes: tuple[Class, ...]
    zeros: int
    store: int


_CHUNK = 4096  # numbers that are added at once
_STEP = 4e-5  # seconds for a step's overhead


def _batch(p: int, u: int) -> int:
    """As many fronts as a cache holds."""
    return int(np.clip(2 ** np.floor(np.log2(60000 / (p + u) ** 2 + 1e-9)), 1, 32))


def classify(fronts: Fronts, most: int = 6) -> tuple[np.ndarray, float]:
    """The class of each front, up to `most`, by least predicted time; and that time, in
    seconds."""
    if len(fronts.parents) == 0:
        return np.zeros(0, np.int64), 0.0
    p, u = fronts.pivots, fronts.boundaries
    key = (seconds(p, u) * 1e9).astype(np.int64)
    for f, parent in enumerate(fronts.parents):
        if parent >= 0:
            key[parent] = max(key[parent], key[f])
    order = np.argsort(key, kind="stable")
    # Places where a class may end: between different keys.
    ends = np.flatnonzero(np.diff(key[order], append=np.iinfo(np.int64).max)) + 1
    if len(ends) > 48:
        ends = np.unique(
            np.concatenate(
                [
                    ends[np.linspace(0, len(ends) - 1, 24).astype(int)],
                    ends[-24:],
                ]
            )
        )
    cuts = np.concatenate([[0], ends])
    cost = np.full((len(cuts), len(cuts)), np.inf)
    for j in range(1, len(cuts)):
        top_p = top_u = 0
        for i in reversed(range(j)):
            inside = order[cuts[i] : cuts[i + 1]]
            top_p = max(top_p, int(p[inside].max()))
            top_u = max(top_u, int(u[inside].max()))
            number = cuts[j] - cuts[i]
            size = rounded(top_p, 4), rounded(top_u, 8)
            batch = _batch(*size)
            cost[i, j] = number * seconds(*size) + _STEP * (number / batch + 1)
    pieces, time = cheapest(cost, most, 0.06)
    out = np.empty(len(p), np.int64)
    for k, (i, j) in enumerate(pieces):
        out[order[cuts[i] : cuts[j]]] = k
    return out, time


def schedule(
    fronts: Fronts,
    kind: np.ndarray,
    rows: np.ndarray,
    cols: np.ndarray,
    symmetric: bool,
) -> Schedule:
    """The schedule for a matrix with entries at `rows`, `cols` (reordered).

    `kind`: the classes of the fronts, by `classify`.
    """
    count, n = len(fronts.parents), len(fronts.order)
    if count == 0:
        return Schedule((), 0, 1)
    p, u = fronts.pivots, fronts.boundaries
    front_of = np.repeat(np.arange(count), p)  # of a pivot
    # Of a Hermitian matrix the upper triangle is enough, in fronts and updates as well.
    entries = np.flatnonzero(rows <= cols) if symmetric else np.arange(len(rows))
    owner = front_of[np.minimum(rows, cols)[entries]]
    order = np.argsort(owner, kind="stable")
    by_owner = entries[order]
    first_entry = np.searchsorted(owner[order], np.arange(count + 1))
    # Within a class, a front is one level above its children.
    level = np.zeros(count, np.int64)
    children: list[list[int]] = [[] for _ in range(count)]
    for f, parent in enumerate(fronts.parents):
        if parent >= 0:
            children[parent].append(f)
            if kind[f] == kind[parent]:
                level[parent] = max(level[parent], level[f] + 1)
    incoming = np.diff(first_entry)
    for f, parent in enumerate(fronts.parents):
        if parent >= 0:
            incoming[parent] += u[f] * (u[f] + 1) // 2 if symmetric else u[f] ** 2
    place = np.zeros(count, np.int64)  # of the update, among those of its step
    when, widths = np.zeros(count, np.int64), np.zeros(count, np.int64)
    longest = int(max(p.max(), u.max()))
    classes, updates = [], []
    for k in np.unique(kind):
        mine = np.flatnonzero(kind == k)
        top_p, top_u = rounded(int(p[mine].max()), 4), rounded(int(u[mine].max()), 8)
        batch = _batch(top_p, top_u)
        steps = []
        for l in range(level[mine].max() + 1):
            here = mine[level[mine] == l]
            here = here[np.lexsort((p[here], incoming[here]))]
            steps += [here[i : i + batch] for i in range(0, len(here), batch)]
        batch = max(len(step) for step in steps)
        members = np.full((len(steps), batch), -1)
        for s, step in enumerate(steps):
            members[s, : len(step)] = step
        flat = members.ravel()
        real = flat >= 0
        widths[mine] = top_u
        place[flat[real]] = np.flatnonzero(real) % batch * top_u**2
        when[flat[real]] = len(updates) + np.flatnonzero(real) // batch
        updates += [batch * top_u**2] * len(steps)
        classes.append((members, top_p, top_u, batch, len(steps)))
    starts, end = _reused(
        np.array(updates), when, fronts.parents, rounded(len(rows) + longest, 8)
    )
    place += starts[when]
    blocks, by_class = [], np.split(starts, np.cumsum([c[-1] for c in classes])[:-1])
    for members, top_p, top_u, *_ in classes:
        # A Hermitian matrix's C A⁻¹ is the adjoint of A⁻¹ B.
        low = 0 if symmetric else top_u * top_p
        sizes = np.array([top_p**2, low, top_p * top_u]) * members.size
        blocks.append(end + np.cumsum(sizes) - sizes)
        end += int(sizes.sum())
    end += longest  # so that what is read as the last row is there
    if end >= 2**31:
        raise ValueError(
            f"The fronts of {n} unknowns have {end} entries, which 32 bits cannot "
            "number."
        )
    built = []
    for k, (members, top_p, top_u, batch, steps) in enumerate(classes):
        full = top_p + top_u
        length = max(int(incoming[m[m >= 0]].sum()) for m in members)
        length = min(_CHUNK, max(length, 1))
        chunks, sources, targets = [0], [], []
        for step in members:
            source, target = [], []
            for b, f in enumerate(step):
                if f < 0:
                    continue
                mine = by_owner[first_entry[f] : first_entry[f + 1]]
                i, j = (fronts.places(f, x[mine], top_p) for x in (rows, cols))
                source.append(mine)
                target.append((b * full + i) * full + j)
                for c in children[f]:
                    at = fronts.places(f, fronts.boundary[c], top_p)
                    own = np.ones((int(u[c]), int(u[c])), bool)
                    i, j = np.nonzero(np.triu(own) if symmetric else own)
                    source.append(place[c] + widths[c] * i + j)
                    target.append((b * full + at[i]) * full + at[j])
            number = sum(len(x) for x in source)
            chunks.append(chunks[-1] + -(-number // length))
            # What pads them is zero, and added to the first entry.
            pad = chunks[-1] * length - chunks[-2] * length - number
            sources += [*source, np.full(pad, len(rows))]
            targets += [*target, np.zeros(pad, np.int64)]
        source, target = (
            np.concatenate(x).astype(np.int32).reshape(-1, length)
            for x in (sources, targets)
        )
        tallest = np.array([p[m[m >= 0]].max() for m in members], np.int32)
        built.append(
            Class(
                top_p,
                top_u,
                batch,
                steps,
                members,
                tallest,
                np.where(members >= 0, p[members], 0).astype(np.int32),
                source,
                target,
                np.array(chunks, np.int32),
                by_class[k].astype(np.int32),
                *(int(x) for x in blocks[k]),
            )
        )
    return Schedule(tuple(built), len(rows), end)


def _reused(
    sizes: np.ndarray, when: np.ndarray, parents: np.ndarray, start: int
) -> tuple[np.ndarray, int]:
    """Of each step the place for so many numbers, the first that is free, from `start`
    on; and the end of all. They are there until the last parent of a front of the step
    has been assembled; its own may then be in their place.
    """
    until = np.zeros(len(sizes), np.int64)
    child = np.flatnonzero(parents >= 0)
    np.maximum.at(until, when[child], when[parents[child]])
    starts, end = np.zeros(len(sizes), np.int64), start
    taken: list[tuple[int, int, int]] = []  # from, to, until; ascending
    for s, size in enumerate(sizes.tolist()):
        taken = [one for one in taken if one[2] > s]
        at, k = start, 0
        while k < len(taken) and taken[k][0] - at < size:
            at = taken[k][1]
            k += 1
        taken.insert(k, (at, at + size, int(until[s])))
        starts[s], end = at, max(end, at + size)
    return starts, end
