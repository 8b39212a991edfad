"""From a tree of separators to fronts: the dense matrices that are eliminated."""

from typing import Any, NamedTuple

import numpy as np

from .tree import Tree


class Fronts(NamedTuple):
    """Front f eliminates `order[starts[f]:starts[f + 1]]`, its pivots.

    It is a dense matrix of its pivots and of its boundary: those that are eliminated
    later and that its pivots, or those of its descendants, are adjacent to. `boundary`
    has their places in `order`, ascending.
    """

    order: np.ndarray
    starts: np.ndarray
    boundary: list[np.ndarray]
    parents: np.ndarray

    @property
    def pivots(self) -> np.ndarray:
        return np.diff(self.starts)

    @property
    def boundaries(self) -> np.ndarray:
        return np.array([len(b) for b in self.boundary], np.int64)

    def places(self, f: int, index: np.ndarray, top: int) -> np.ndarray:
        """Where those at `index` in `order` are in front f, if it has `top` places for
        its pivots."""
        start, end = self.starts[f], self.starts[f + 1]
        beyond = top + np.searchsorted(self.boundary[f], index)
        return np.where(index < end, index - start, beyond)


def rounded(x: int, to: int) -> int:
    """The least positive multiple that is not less."""
    return max(to, -(-x // to) * to)


def flops(p, u):
    """Operations that eliminate p pivots of a front with u others."""
    return 2 * p**3 + 4 * p**2 * u + 2 * p * u**2


def seconds(p, u):
    """What a front of p pivots and u others takes, roughly: measured on two cores.

    Steps of the elimination, entries that are assembled, and arithmetic.
    """
    return 2e-6 + 5e-7 * p + 5e-9 * (p + u) ** 2 + 1e-10 * flops(p, u)


def _cost(p: int, u: int) -> float:
    """In seconds, of sizes that are rounded up, since they will be padded: small fronts
    cost what large ones of their class do."""
    return seconds(rounded(p, 16), rounded(u, 8))


def fronts_of(
    graph: Any, tree: Tree, boundaries: np.ndarray | None = None, most: int = 48
) -> Fronts:
    """The fronts of a tree: those that cost less as one are merged, and those with more
    than `most` pivots become chains.

    `boundaries`: how many are in the boundary of each node, where it is known.
    """
    if boundaries is None:
        boundaries = _fronts(graph, tree).boundaries
    tree = _merge(tree, boundaries)
    tree = _twins(tree, _fronts(graph, tree).boundary, most)
    return _fronts(graph, _split(tree, most))


def _twins(tree: Tree, boundary: list[np.ndarray], most: int) -> Tree:
    """Leaves with the same boundary in one front, where that costs less than two and as
    far as `most` pivots reach.

    Points that the same cameras see: each front that is a child of another is added to
    it at the size of that, and there would be thousands of them.
    """
    leaf = np.ones(len(tree.members), bool)
    leaf[tree.parents[tree.parents >= 0]] = False
    into = np.arange(len(leaf))
    open_: dict[bytes, int] = {}
    sizes = [len(m) for m in tree.members]
    for f in np.flatnonzero(leaf & (tree.parents >= 0)).tolist():
        key, u = boundary[f].tobytes(), len(boundary[f])
        first = open_.setdefault(key, f)
        p, q = sizes[first], sizes[f]
        less = _cost(p + q, u) < _cost(p, u) + _cost(q, u)
        if first != f and p + q <= most and less:
            into[f] = first
            sizes[first] = p + q
        else:
            open_[key] = f
    return _joined(tree, into)


def _joined(tree: Tree, into: np.ndarray) -> Tree:
    """The tree in which the members of node c are among those of node `into[c]`."""
    kept = np.flatnonzero(into == np.arange(len(into)))
    name = np.full(len(into) + 1, -1)
    name[kept] = np.arange(len(kept))
    members: list[list[np.ndarray]] = [[] for _ in kept]
    for c, f in enumerate(into):
        members[name[f]].append(tree.members[c])
    parents = tree.parents[kept]
    parents = np.where(parents >= 0, name[into[parents]], -1)
    return Tree([np.concatenate(m) for m in members], parents)


def _split(tree: Tree, most: int) -> Tree:
    """Fronts of alike numbers of pivots differ in one size, not in two: classes pad
    less."""
    pieces = [max(1, -(-len(m) // most)) for m in tree.members]
    last = np.cumsum(pieces) - 1
    members: list[np.ndarray] = []
    parents: list[int] = []
    for i, number in enumerate(pieces):
        members += np.array_split(tree.members[i], number)
        parents += range(len(parents) + 1, len(parents) + number)
        up = tree.parents[i]
        parents.append(int(last[up]) - pieces[up] + 1 if up >= 0 else -1)
    return Tree(members, np.array(parents, np.int64))


def _fronts(graph: Any, tree: Tree) -> Fronts:
    n, count = graph.shape[0], len(tree.members)
    order = np.concatenate([*tree.members, np.zeros(0, np.int64)]).astype(np.int64)
    sizes = [len(m) for m in tree.members]
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    place = np.empty(n, np.int64)
    place[order] = np.arange(n)
    rows = graph[order]
    indices, indptr = place[rows.indices], rows.indptr
    boundary: list[np.ndarray] = []
    inherited: list[list[np.ndarray]] = [[] for _ in range(count)]
    for f, parent in enumerate(tree.parents):
        end = starts[f + 1]
        near = indices[indptr[starts[f]] : indptr[end]]
        near = np.unique(np.concatenate([near, *inherited[f]]))
        near = near[np.searchsorted(near, end) :]
        boundary.append(near)
        if parent >= 0:
            inherited[parent].append(near)
    return Fronts(order, starts, boundary, tree.parents)


def _merge(tree: Tree, boundaries: np.ndarray) -> Tree:
    """A tree in which a node has swallowed children that gain nothing by themselves."""
    # Python's numbers: there are thousands of nodes, one after the other.
    p, u = [len(m) for m in tree.members], boundaries.tolist()
    into = np.arange(len(p))
    children: list[list[int]] = [[] for _ in p]
    for c, f in enumerate(tree.parents):
        if f >= 0:
            children[f].append(c)
    for f in range(len(p)):
        for c in sorted(children[f], key=lambda c: -u[c]):
            if _cost(p[c] + p[f], u[f]) < _cost(p[c], u[c]) + _cost(p[f], u[f]):
                p[f] += p[c]
                into[c] = f
    for c in reversed(range(len(p))):
        into[c] = into[into[c]]
    return _joined(tree, into)
