"""Which unknowns each entry of an array depends on, and the algebra of such sets.

Moving entries about only moves positions, unions are put off until somebody sums, and
a set that holds every unknown is kept once, however many entries have it.
"""

import functools as ft
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


# An array that is the union of more terms than these is merged into one.
_most_terms = 16
# Sets are expanded in memory up to this many members, and by SciPy above.
_most_expanded = 2**23
# A triangle of more entries than that is taken to be full.
_most_members = 2**27


class Table:
    """A list of sets of unknowns: a Boolean CSR matrix, one row a set, the first empty.

    `Table.single(n)` lists the sets of one unknown each.
    """

    def __init__(self, pointers: np.ndarray, columns: np.ndarray, n: int):
        self.pointers, self.columns, self.n = pointers, columns, n

    @staticmethod
    def single(n: int) -> "Table":
        pointers = np.concatenate([np.zeros(1, np.int64), np.arange(n + 1)])
        return Table(pointers, np.arange(n, dtype=np.int32), n)

    def __len__(self):
        return len(self.pointers) - 1

    @ft.cached_property
    def counts(self) -> np.ndarray:
        return np.diff(self.pointers)

    @ft.cached_property
    def full(self) -> np.ndarray | None:
        """Which sets hold every unknown; `None` if there is none."""
        full = self.counts == self.n
        return full if full.any() else None

    def members(self, sets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each member of each of the sets: the number of the set in `sets`, and the
        unknown."""
        counts, rows = self.counts[sets], np.arange(len(sets), dtype=np.int32)
        if len(sets) == len(self) - 1 and np.array_equal(sets, np.arange(1, len(self))):
            return np.repeat(rows, counts), self.columns
        ends = np.cumsum(counts)
        total = int(ends[-1]) if len(ends) else 0
        shift = self.pointers[sets] - ends + counts
        at = np.arange(total) + np.repeat(shift, counts)
        return np.repeat(rows, counts), self.columns[at]


class IndexSets:
    """An array of sets of unknowns: for every entry, those that it may depend on.

    Each of `terms` is an integer array of the same shape and a table: its entry depends
    on the set of that number. What it depends on in all is the union over the terms.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        terms: Sequence[tuple[np.ndarray, Table]],
        single: Table,
    ):
        self.shape, self.single = shape, single
        self.terms = tuple(terms)

    @staticmethod
    def identity(shape: tuple[int, ...]) -> "IndexSets":
        """Each entry is an unknown."""
        n = math.prod(shape)
        single = Table.single(n)
        place = np.arange(1, n + 1, dtype=np.int32).reshape(shape)
        return IndexSets(shape, [(place, single)], single)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def map(
        self, fn: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]
    ) -> "IndexSets":
        """Moves entries: `fn` of an array of positions, zero where there is none."""
        terms = [(fn(place), table) for place, table in self.terms]
        return IndexSets(shape, terms, self.single)

    def broadcast(self, shape: tuple[int, ...]) -> "IndexSets":
        if self.shape == shape:
            return self
        return self.map(lambda place: np.broadcast_to(place, shape), shape)

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """`(entry, unknown)` for all dependencies, sorted, each of them once."""
        (place, table), *_ = merged(self).terms
        return table.members(place.reshape(-1))

    def is_dense(self) -> bool:
        """Whether every entry depends on everything. Nothing is enumerated."""
        (place, table), *_ = merged(self).terms
        if place.size == 0:
            return True
        return table.full is not None and bool(table.full[place].all())


def union(sets: Sequence[IndexSets], shape: tuple[int, ...]) -> IndexSets:
    """Entry by entry, after broadcasting."""
    terms = {}
    for x in sets:
        for place, table in x.terms:
            key = id(place), id(table)
            if place.shape != shape:
                place = np.broadcast_to(place, shape)
            terms.setdefault(key, (place, table))
    out = IndexSets(shape, list(terms.values()), sets[0].single)
    return merged(out) if len(out.terms) > _most_terms else out


def merged(x: IndexSets) -> IndexSets:
    """The same sets as one term."""
    if len(x.terms) == 1:
        return x
    sizes = [int(table.counts[place].sum()) for place, table in x.terms]
    most = int(np.argmax(sizes))
    if 8 * (sum(sizes) - sizes[most]) < sizes[most]:
        # A diagonal beside a triangle, say: it may have all of it already.
        others = [t for i, t in enumerate(x.terms) if i != most]
        if all(_contains(*x.terms[most], *t) for t in others):
            return IndexSets(x.shape, [x.terms[most]], x.single)
    return collect(x, x.shape, np.arange(x.size))


def _contains(place, table, other_place, other) -> bool:
    entries, columns = other.members(other_place.reshape(-1))
    sets = place.reshape(-1)[entries]
    first, last = table.pointers[sets], table.pointers[sets + 1]
    end = last
    while np.any(first < last):  # bisection, as a set is sorted
        middle = (first + last) // 2
        right = table.columns[np.minimum(middle, end - 1)] < columns
        right &= first < last
        first, last = np.where(right, middle + 1, first), np.where(right, last, middle)
    inside = first < end
    return bool(np.all(inside)) and np.array_equal(table.columns[first], columns)


def move(
    fn: Callable[..., np.ndarray],
    operands: Sequence[IndexSets | tuple[int, ...]],
    shape: tuple[int, ...],
) -> IndexSets:
    """Entries of several arrays, moved to one. `fn` is as for `IndexSets.map`, with an
    array of positions for each operand; one without sets is given by its shape."""
    sets = _few_tables([x for x in operands if isinstance(x, IndexSets)])
    numbers = iter(sets)
    operands = [next(numbers) if isinstance(x, IndexSets) else x for x in operands]
    tables = {id(table): table for x in sets for _, table in x.terms}
    terms = []
    for table in tables.values():
        found = [
            [place for place, own in x.terms if own is table]
            if isinstance(x, IndexSets)
            else []
            for x in operands
        ]
        for turn in range(max(map(len, found))):
            places = []
            for x, own in zip(operands, found):
                shape_of = x.shape if isinstance(x, IndexSets) else x
                none = lambda s=shape_of: np.zeros(s, np.int32)
                places.append(own[turn] if turn < len(own) else none())
            terms.append((fn(*places), table))
    out = IndexSets(shape, terms, sets[0].single)
    return merged(out) if len(terms) > _most_terms else out


def joined(arrays: Sequence[IndexSets | tuple[int, ...]]) -> IndexSets:
    """The entries of several arrays in one line, one array after the other."""
    shapes = [x.shape if isinstance(x, IndexSets) else x for x in arrays]
    join = lambda *places: np.concatenate([p.reshape(-1) for p in places])
    return move(join, arrays, (sum(map(math.prod, shapes)),))


def cut(x: IndexSets, shapes: Sequence[tuple[int, ...]]) -> list[IndexSets]:
    """The arrays of these shapes that `joined` has put into x."""
    out, start = [], 0
    for shape in shapes:
        part = slice(start, start + math.prod(shape))
        out.append(x.map(lambda p, at=part, s=shape: p[at].reshape(s), shape))
        start = part.stop
    return out


def _few_tables(sets: list[IndexSets]) -> list[IndexSets]:
    """The same sets, from one table where there would be many."""
    tables = {id(table): table for x in sets for _, table in x.terms}
    if len(tables) <= 2:
        return sets
    start, starts, pointers, columns = 1, {}, [np.zeros(2, np.int64)], []
    end = 0
    for key, table in tables.items():
        starts[key] = start - 1  # the first set of each is the empty one
        start += len(table) - 1
        pointers.append(table.pointers[2:] + end)
        columns.append(table.columns)
        end += len(table.columns)
    single = sets[0].single
    joined = Table(np.concatenate(pointers), np.concatenate(columns), single.n)

    def moved(place, table):
        shift = np.int32(starts[id(table)])
        return np.where(place > 0, place + shift, np.int32(0)), joined

    return [IndexSets(x.shape, [moved(*t) for t in x.terms], single) for x in sets]


def collect(
    x: IndexSets,
    shape: tuple[int, ...],
    outs: np.ndarray,
    ins: np.ndarray | None = None,
) -> IndexSets:
    """A Boolean product: entry `outs[e]` of the result, which has this shape, depends
    on what entry `ins[e]` of x depends on, for all e. `ins` is all entries by default.
    """
    size, single = math.prod(shape), x.single
    n = single.n
    full, found = np.zeros(size, bool), []
    for place, table in x.terms:
        place = place.reshape(-1)
        place = place if ins is None else place[ins]
        keep = np.flatnonzero(place)
        if len(keep) == len(place):
            found.append((outs, place, table))
        elif len(keep) > 0:
            found.append((outs[keep], place[keep], table))
        if len(keep) > 0 and table.full is not None:
            out, place, _ = found.pop()
            of_all = table.full[place]
            full[out[of_all]] = True
            found.append((out[~of_all], place[~of_all], table))
    keys = [np.zeros(0, np.int64)]
    some_full = full.any()
    for out, place, table in found:
        if some_full:
            live = ~full[out]
            out, place = out[live], place[live]
        if table is single:
            keys.append(out.astype(np.int64) * n + (place - 1))
            continue
        if len(place) > 4 * len(table):  # few sets, many that have them
            key = unique(out.astype(np.int64) * len(table) + place)
            out, place = key // len(table), key % len(table)
        if table.counts[place].sum() > _most_expanded:
            out, column = _product(out, place, table, size)
        else:
            which, column = table.members(place)
            out = out[which]
        keys.append(out.astype(np.int64) * n + column)
    rows, columns = np.divmod(_sorted_union(keys), max(n, 1))
    return from_rows(shape, np.bincount(rows, minlength=size), columns, full, single)


def unique(x: np.ndarray) -> np.ndarray:
    """By sorting: `np.unique` hashes from NumPy 2.3 on, and takes ten times as long."""
    x = np.sort(x)
    return x[np.append(True, x[1:] != x[:-1])[: len(x)]]


def _sorted_union(keys: list[np.ndarray]) -> np.ndarray:
    *others, most = sorted(keys, key=len)
    few = sum(map(len, others))
    if len(most) < 2 * few or np.any(most[1:] <= most[:-1]):
        others, most = [], unique(np.concatenate(keys))
    for key in others:  # a diagonal beside a triangle, say: no second sort
        at = np.searchsorted(most, key)
        new = most[np.minimum(at, len(most) - 1)] != key
        if new.any():
            key, which = np.unique(key[new], return_index=True)
            most = np.insert(most, at[new][which], key)
    return most


def from_rows(
    shape: tuple[int, ...],
    counts: np.ndarray,
    columns: np.ndarray,
    full: np.ndarray,
    single: Table,
) -> IndexSets:
    """From a sorted CSR matrix of one row an entry. Rows that are `full` are so besides
    what is listed."""
    n, columns = single.n, columns.astype(np.int32)
    of_all = counts == n
    if n > 1 and (of_all.sum() > 1 or of_all.any() and full.any()):
        keep = ~np.repeat(of_all, counts)
        columns, counts, full = (
            columns[keep],
            np.where(of_all, 0, counts),
            full | of_all,
        )
    some_full = full.any()
    if counts.max(initial=0) <= 1 and not some_full:
        place = np.zeros(len(counts), np.int32)
        place[counts == 1] = columns + 1
        return IndexSets(shape, [(place.reshape(shape), single)], single)
    others = np.flatnonzero(counts)
    place = np.zeros(len(counts), np.int32)
    place[others] = np.arange(1, len(others) + 1)
    counts = np.append(0, counts[others])
    if some_full:
        place[full] = len(others) + 1
        columns = np.concatenate([columns, np.arange(n, dtype=np.int32)])
        counts = np.append(counts, n)
    ends = np.cumsum(counts, dtype=np.int64)
    table = Table(np.concatenate([np.zeros(1, np.int64), ends]), columns, n)
    return IndexSets(shape, [(place.reshape(shape), table)], single)


def summed(x: IndexSets, axes: Sequence[int], keepdims: bool = False) -> IndexSets:
    """Unions along axes."""
    kept = tuple(1 if d in axes else n for d, n in enumerate(x.shape))
    shape = kept if keepdims else tuple(
        n for d, n in enumerate(x.shape) if d not in axes
    )  # fmt: skip
    if kept == x.shape:
        return x.map(lambda place: place.reshape(shape), shape)
    owner = np.arange(math.prod(kept)).reshape(kept)
    return collect(x, shape, np.broadcast_to(owner, x.shape).reshape(-1))


def everything(sets: Sequence[IndexSets], shape: tuple[int, ...]) -> IndexSets:
    """Every entry depends on whatever any entry of `sets` does."""
    totals = [collect(x, (), np.zeros(x.size, np.int64)) for x in sets]
    return merged(union(totals, ())).broadcast(shape)


def _product(out, place, table, size):
    # Not at the top: it takes a tenth of a second to import.
    import scipy.sparse as sp

    left = sp.csr_array((np.ones(len(out), bool), (out, place)), (size, len(table)))
    ones = np.ones(len(table.columns), bool)
    right = sp.csr_array((ones, table.columns, table.pointers), (len(table), table.n))
    found: Any = left @ right
    found = found.tocoo()
    return found.row, found.col


def accumulate(x: IndexSets, axis: int, reverse: bool) -> IndexSets:
    """Unions over all entries that come before in `axis`, and the entry itself."""
    import scipy.sparse as sp

    shape, n, single = x.shape, x.single.n, x.single
    length = shape[axis]
    at = np.arange(x.size).reshape(shape)
    at = np.moveaxis(np.flip(at, axis) if reverse else at, axis, -1).reshape(-1)
    # In these positions, line after line, a set grows until the end of its line: it is
    # enough to know where an unknown comes first.
    (place, table), *_ = merged(x).terms
    step, column = table.members(place.reshape(-1)[at])
    step = step.astype(np.int64)
    order = np.argsort(step // max(length, 1) * n + column, kind="stable")
    step, column = step[order], column[order]
    line = step // max(length, 1)
    first = np.ones(len(step), bool)
    first[1:] = (line[1:] != line[:-1]) | (column[1:] != column[:-1])
    step, line, column = step[first], line[first], column[first]
    runs = (line + 1) * length - step
    total = int(runs.sum())
    if total > _most_members:  # no memory for that: everything on the whole line
        line = np.argsort(at) // length
        lines = collect(x, (x.size // length,), line)
        return lines.map(lambda p: p[line].reshape(shape), shape)
    by_unknown = np.argsort(column, kind="stable")
    step, runs, column = step[by_unknown], runs[by_unknown], column[by_unknown]
    ends = np.cumsum(runs)
    rows = at[np.arange(total) + np.repeat(step - ends + runs, runs)]
    pointers = np.concatenate([[0], np.cumsum(np.bincount(column, runs, n))])
    matrix = sp.csc_array(
        (np.ones(total, bool), rows.astype(np.int32), pointers.astype(np.int32)),
        (x.size, n),
    ).tocsr()
    counts, none = np.diff(matrix.indptr), np.zeros(x.size, bool)
    return from_rows(shape, counts, matrix.indices, none, single)
