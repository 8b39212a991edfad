"""The order of rows and columns, and the kind of matrix, that a pattern suggests."""

import functools as ft
from typing import Literal, NamedTuple

import numpy as np

from .pattern import Pattern


Kind = Literal[
    "diagonal",
    "tridiagonal",
    "lower triangular",
    "upper triangular",
    "block diagonal",
    "block tridiagonal",
    "dense",
]


class Arrangement(NamedTuple):
    """`matrix[rows][:, cols]` is of `kind`, with blocks of size `block`."""

    kind: Kind
    rows: np.ndarray
    cols: np.ndarray
    block: int

    @property
    def in_order(self) -> bool:
        ascending = np.arange(len(self.rows))
        return all(np.array_equal(x, ascending) for x in (self.rows, self.cols))


@ft.lru_cache(maxsize=64)
def arrange(pattern: Pattern) -> Arrangement:
    """The cheapest kind of a square matrix to solve that has no entry elsewhere.

    Tried in this order: a narrow band as it stands; connected components, as the blocks
    of a diagonal; reverse Cuthill–McKee, of the components one after the other, for the
    blocks of three diagonals; triangles.

    Source: Cuthill, McKee, *Reducing the bandwidth of sparse symmetric matrices* (1969),
    doi:10.1145/800195.805928.
    """
    m, n = pattern.shape
    ascending = np.arange(n)
    plain = ft.partial(Arrangement, rows=np.arange(m), cols=ascending)
    if m != n or n <= SMALL:
        return plain("dense", block=n)
    lower, upper = pattern.bandwidth
    if lower == upper == 0:
        return plain("diagonal", block=1)
    if lower <= 1 and upper <= 1:
        return plain("tridiagonal", block=1)
    triangular = min(lower, upper) == 0
    if len(pattern) <= SPARSE * n * n:
        found = _reorder(pattern)
        if found is not None:
            return found
    if triangular:
        kind = "lower triangular" if upper == 0 else "upper triangular"
        return plain(kind, block=n)
    return plain("dense", block=n)


def _reorder(pattern: Pattern) -> Arrangement | None:
    import scipy.sparse as sp
    import scipy.sparse.csgraph as csgraph

    _, n = pattern.shape
    entries = np.ones(len(pattern), np.int8), (pattern.rows, pattern.cols)
    matrix = sp.csr_array(entries, pattern.shape)
    rows = np.arange(n)
    if np.count_nonzero(pattern.rows == pattern.cols) < n:
        # Only with a full diagonal are rows and columns to be permuted alike.
        matched = csgraph.maximum_bipartite_matching(sp.csr_matrix(matrix), "row")
        if np.all(matched >= 0):
            rows = matched
    graph = sp.csr_matrix(matrix[rows])
    count, labels = csgraph.connected_components(graph, directed=False)
    sizes = np.bincount(labels, minlength=count)
    if sizes.max() * BLOCKS <= n:
        order = np.argsort(labels, kind="stable")
        if sizes.max() == 1:
            return Arrangement("diagonal", rows[order], order, 1)
        if sizes.max() * count <= 2 * n:
            ...
    order = csgraph.reverse_cuthill_mckee(graph + graph.T, symmetric_mode=True)
