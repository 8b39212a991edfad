"""Orders of rows and columns, found in the graph of a pattern."""

import functools as ft
from typing import NamedTuple

import numpy as np

from .._structure.pattern import Pattern
from .arrangement import Order


def natural(n: int) -> Order:
    return Order(np.arange(n), np.arange(n), n)


def is_full(pattern: Pattern) -> bool:
    """Whether there is no order worth looking for."""
    m, n = pattern.shape
    return len(pattern) > m * n // 4


def matched_rows(pattern: Pattern) -> np.ndarray:
    """Rows in an order that leaves no zero on the diagonal, if there is one."""
    n, _ = pattern.shape
    rows = np.arange(n)
    if np.count_nonzero(pattern.rows == pattern.cols) < n:
        import scipy.sparse.csgraph as csgraph

        graph = _csr(pattern.to_scipy())
        matched = csgraph.maximum_bipartite_matching(graph, perm_type="row")
        rows = matched if np.all(matched >= 0) else rows
    return rows


def _csr(matrix):
    import scipy.sparse as sp

    return sp.csr_matrix(matrix.astype(np.int32))


class Ordering(NamedTuple):
    order: Order
    half_bandwidth: int


@ft.lru_cache(maxsize=64)
def cuthill_mckee(pattern: Pattern) -> Ordering:
    """The order of a narrow band; that which is there, if none is narrower.

    A zero on the diagonal, of which the order of Cuthill and McKee knows nothing, is
    first moved away by a permutation of the rows, if there is one that can.

    Source: Cuthill, McKee, *Reducing the bandwidth of sparse symmetric matrices*, Proc.
    24th ACM National Conference (1969), doi:10.1145/800195.805928.
    """
    # Not at the top: it takes a tenth of a second.
    import scipy.sparse.csgraph as csgraph

    n, _ = pattern.shape
    if is_full(pattern):
        return Ordering(natural(n), max(pattern.bandwidth))
    rows = matched_rows(pattern)
    graph = _csr(pattern.to_scipy()[rows])
    order = csgraph.reverse_cuthill_mckee(_csr(graph + graph.T), True)
    found = Order(rows[order], order, n)
    offsets = found.column_places[pattern.cols] - found.row_places[pattern.rows]
    half = int(np.abs(offsets).max(initial=0))
    if max(pattern.bandwidth) <= half:
        return Ordering(natural(n), max(pattern.bandwidth))
    return Ordering(found, half)


def components(pattern: Pattern) -> tuple[np.ndarray, np.ndarray]:
    """Rows as `matched_rows`, and for each of them the number of its component."""
    import scipy.sparse.csgraph as csgraph

    rows = matched_rows(pattern)
    graph = _csr(pattern.to_scipy()[rows])
    return rows, csgraph.connected_components(graph, directed=False)[1]
