"""Nested dissection: in what order a sparse matrix is eliminated, and with whom.

All parts of a graph are dissected at once, one NumPy operation for all of them: there
are as many steps as the tree of separators has levels, not as it has nodes.
"""

from typing import Any

import numpy as np
import scipy.sparse as sp
import scipy.sparse.csgraph as csgraph

from .tree import Tree


def dissect(graph: Any, leaf: int) -> Tree:
    """A tree of separators with leaves of up to `leaf` vertices.

    Vertices with the same neighbours stay together. Those with by far more neighbours
    than others come last, in the root: they separate nothing, and hide what does.

    **Arguments:**

    - `graph`: symmetric, without a diagonal.
    """
    n = graph.shape[0]
    group = indistinguishable(graph)
    count = int(group.max(initial=-1)) + 1
    weights = np.bincount(group, minlength=count).astype(np.float64)
    if count == n:
        group = np.arange(n)
    else:
        first = np.zeros(count, np.int64)
        first[group[::-1]] = np.arange(n)[::-1]
        small = graph[first]
        rows = np.repeat(np.arange(count), np.diff(small.indptr))
        cols = group[small.indices]
        keep = rows != cols
        graph = sp.csr_array(
            (np.ones(keep.sum()), (rows[keep], cols[keep])), shape=(count, count)
        )
        graph.sum_duplicates()
    graph = sp.csr_array(
        (np.ones(len(graph.indices)), graph.indices, graph.indptr), shape=graph.shape
    )
    members, parents = _tree(graph, weights, leaf)
    order = np.argsort(group, kind="stable")
    ends = np.cumsum(weights).astype(np.int64)
    starts = ends - weights.astype(np.int64)
    members = [
        np.concatenate([order[starts[g] : ends[g]] for g in node] or [order[:0]])
        for node in members
    ]
    return _postordered(members, parents)


def indistinguishable(graph: Any) -> np.ndarray:
    """The number of each vertex's group: those of a group are adjacent to the same
    vertices and to each other."""
    n = graph.shape[0]
    # Sums of random numbers over a vertex and its neighbours stand for the set.
    random = np.random.default_rng(0).integers(1, 2**62, size=(n, 2), dtype=np.uint64)
    sums = np.vstack([np.zeros((1, 2), np.uint64), random[graph.indices]])
    sums = np.cumsum(sums, axis=0)
    keys = sums[graph.indptr[1:]] - sums[graph.indptr[:-1]] + random
    _, group = np.unique(keys.view([("", np.uint64)] * 2)[:, 0], return_inverse=True)
    return group.reshape(-1)


def _tree(
    graph: Any, weights: np.ndarray, leaf: int
) -> tuple[list[np.ndarray], list[int]]:
    n = graph.shape[0]
    members: list[np.ndarray] = []
    parents: list[int] = []

    def add(vertices: np.ndarray, parent: int) -> int:
        members.append(vertices)
        parents.append(parent)
        return len(members) - 1

    degrees = np.diff(graph.indptr)
    hub = degrees > max(16.0, 10 * np.sqrt(n), 10 * degrees.mean() if n else 0)
    root = add(np.flatnonzero(hub), -1) if hub.any() else -1
    active = np.flatnonzero(~hub)
    above = np.full(n, root)
    while active.size > 0:
        part = _Parts(graph[active][:, active], weights[active])
        parent = np.zeros(part.count, np.int64)
        parent[part.label] = above[active]
        separator, valid = part.bisect(part.total > leaf)
        # Parts that are small, or have no separator, are leaves; the small ones of one
        # parent are taken together for as long as they are small.
        whole = np.flatnonzero(~valid)
        whole = whole[np.lexsort((part.total[whole], parent[whole]))]
        bag = np.full(part.count, -1)
        load, last = 0.0, -2
        for c in whole:
            if parent[c] == last and load + part.total[c] <= leaf:
                load += part.total[c]
            else:
                add(active[:0], int(parent[c]))
                load, last = part.total[c], parent[c]
            bag[c] = len(members) - 1
        for c in np.flatnonzero(valid):
            bag[c] = add(active[:0], int(parent[c]))
        node = bag[part.label]
        done = separator | ~valid[part.label]
        order = np.argsort(node[done], kind="stable")
        names, starts = np.unique(node[done][order], return_index=True)
        for name, chosen in zip(names, np.split(active[done][order], starts[1:])):
            members[name] = chosen
        above[active] = node
        active = active[~done]
    return members, parents


class _Parts:
    """The connected components of a graph, and what is done to all of them at once."""

    def __init__(self, graph: Any, weights: np.ndarray):
        self.graph, self.weights = graph, weights
        self.count, self.label = csgraph.connected_components(graph, directed=False)
        self.total = np.bincount(self.label, weights, self.count)
        self.rows = np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr))
        self.degrees = np.diff(graph.indptr)

    def _one_each(self, *keys: np.ndarray) -> np.ndarray:
        """Of each part, the vertex with the least key; the first key counts most."""
        order = np.lexsort((*keys[::-1], self.label))
        _, first = np.unique(self.label[order], return_index=True)
        return order[first]

    def _distances(self, sources: np.ndarray) -> np.ndarray:
        """Of each vertex from the source in its part."""
        n = self.graph.shape[0]
        # One more vertex with an edge to each source starts all searches at once.
        indptr = np.append(self.graph.indptr, len(self.graph.indices) + len(sources))
        indices = np.append(self.graph.indices, sources)
        joined = sp.csr_array((np.ones(len(indices)), indices, indptr), (n + 1, n + 1))
        order, before = csgraph.breadth_first_order(joined, n)
        position = np.empty(n + 1, np.int64)
        position[order] = np.arange(n + 1)
        found_from = position[before[order[1:]]]  # ascending
        depth = np.empty(n + 1, np.int64)
        start, end, d = 0, 1, 0
        while start < end:
            depth[order[start:end]] = d
            start, end = end, 1 + int(np.searchsorted(found_from, end))
            d += 1
        return depth[:n] - 1

    def bisect(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A separator of each wanted part.

        **Returns:** which vertices are in a separator, and which parts have one.
        """
        separator = np.zeros(len(self.label), bool)
        if not wanted.any():
            return separator, np.zeros(self.count, bool)
        # u and v are far from each other, and w is far from both.
        u = self._one_each(-self._distances(self._one_each(self.degrees)), self.degrees)
        from_u = self._distances(u)
        from_v = self._distances(self._one_each(-from_u, self.degrees))
        uneven = np.abs(from_u - from_v)
        middle = self._distances(self._one_each(uneven > 1, -from_u))
        from_w = self._distances(self._one_each(uneven > 1, -middle, self.degrees))
        best = np.full(self.count, np.inf)
        for field in (from_u - from_v, from_u - from_w, from_v - from_w, from_u):
            order = np.lexsort((field, self.label))
            before = np.cumsum(self.weights[order])
            share = np.empty(len(order))
            starts = (np.cumsum(self.total) - self.total)[self.label]
            share[order] = before
            share = (share - starts) / self.total[self.label]
            for fraction in (0.5, 0.42, 0.58):
                cut = np.full(self.count, np.iinfo(np.int64).min)
                below = share <= fraction
                np.maximum.at(cut, self.label[below], field[below])
                low = field <= cut[self.label]
                crossing = low[self.rows] != low[self.graph.indices]
                touched = np.zeros(len(low), bool)
                touched[self.rows[crossing]] = True
                for side in (low, ~low):
                    chosen = touched & side
                    best = self._keep(best, separator, chosen, low, wanted)
        return separator, np.isfinite(best)

    def _keep(self, best, separator, chosen, low, wanted):
        """Replaces the separators of those parts in which `chosen` is a better one."""
        sum_of = lambda mask: np.bincount(
            self.label[mask], self.weights[mask], self.count
        )
        size, left = sum_of(chosen), sum_of(low & ~chosen)
        right = self.total - size - left
        with np.errstate(divide="ignore", invalid="ignore"):
            score = np.where(
                wanted & (left > 0) & (right > 0), size / (left * right), np.inf
            )
        better = score < best
        where = better[self.label]
        separator[where] = chosen[where]
        return np.minimum(best, score)


def _postordered(members: list[np.ndarray], parents: list[int]) -> Tree:
    """Children before parents, and the descendants of a node next to it."""
    children: list[list[int]] = [[] for _ in members]
    stack = []
    for i, parent in enumerate(parents):
        (children[parent] if parent >= 0 else stack).append(i)
    order = []
    while stack:
        i = stack.pop()
        order.append(i)
        stack.extend(children[i])
    order.reverse()
    place = np.full(len(members) + 1, -1)
    place[order] = np.arange(len(members))
    parents_ = np.array([place[parents[i]] for i in order], np.int64)
    return Tree([members[i] for i in order], parents_)
