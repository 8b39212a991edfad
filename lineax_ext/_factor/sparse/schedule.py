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
    `update`, `inverse`, `low`, `up`: where those of the first step are stored.
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
    update: int
    inverse: int
    low: int
    up: int


class Schedule(NamedTuple):
    """The entries of A, zeros, all updates, and the blocks of the factors are in one
    array of the length `store`; the zeros are from `zeros` on, as many as the longest
    row of a block."""

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
    pieces, time = cheapest(cost, most)
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
    place = np.zeros(count, np.int64)  # of the update
    widths = np.zeros(count, np.int64)
    longest = int(max(p.max(), u.max()))
    end = rounded(len(rows) + longest, 8)
    classes = []
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
        place[flat[real]] = end + np.flatnonzero(real) * top_u**2
        # A Hermitian matrix's C A⁻¹ is the adjoint of A⁻¹ B.
        low = 0 if symmetric else top_u * top_p
        sizes = np.array([top_u**2, top_p**2, low, top_p * top_u]) * flat.size
        starts = end + np.cumsum(sizes) - sizes
        classes.append((members, top_p, top_u, batch, len(steps), starts))
        end += int(sizes.sum())
    end += longest  # so that what is read as the last row is there
    if end >= 2**31:
        raise ValueError(
            f"The fronts of {n} unknowns have {end} entries, which 32 bits cannot "
            "number."
        )
    built = []
    for members, top_p, top_u, batch, steps, starts in classes:
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
                *(int(x) for x in starts),
            )
        )
    return Schedule(tuple(built), len(rows), end)
