"""The order of rows and columns, and the kind of matrix, that a pattern suggests."""

import functools as ft
from typing import Literal

import numpy as np

from .blocks import block_size
from .pattern import Pattern


Kind = Literal["band", "blocks", "lower triangular", "upper triangular", "dense"]


class Arrangement:
    """A matrix of `kind` that a permutation of the pattern's rows and columns gives.

    Position i of it holds row `rows[i]` and column `columns[i]`. Where they are n there
    is none: such positions, of an identity, fill the last block of a "band", and every
    block of a block-diagonal matrix, "blocks". Entry number e of the pattern stands at
    `(entry_rows[e], entry_columns[e])`.
    """

    def __init__(
        self,
        kind: Kind,
        pattern: Pattern,
        rows: np.ndarray | None = None,
        columns: np.ndarray | None = None,
        block: int = 1,
    ):
        m, n = pattern.shape
        self.kind: Kind = kind
        self.in_order = rows is None and columns is None
        self.rows = np.arange(m) if rows is None else rows
        self.columns = np.arange(n) if columns is None else columns
        self.row_positions = _positions(self.rows, m)
        self.column_positions = _positions(self.columns, n)
        self.entry_rows = self.row_positions[pattern.rows]
        self.entry_columns = self.column_positions[pattern.cols]
        offsets = self.entry_columns - self.entry_rows
        self.lower = int(-offsets.min(initial=0))
        self.upper = int(offsets.max(initial=0))
        self.block = block

    @property
    def half_bandwidth(self) -> int:
        return max(self.lower, self.upper)


def _positions(order: np.ndarray, n: int) -> np.ndarray:
    out = np.empty((n + 1,), order.dtype)
    out[order] = np.arange(len(order), dtype=order.dtype)
    return out[:n]


@ft.lru_cache(maxsize=64)
def arrange(pattern: Pattern) -> Arrangement:
    """The kind of matrix that is solved fastest, of those with room for every entry.

    In this order: a narrow band as it stands; the connected components, as blocks on
    the diagonal; the band that is left by the reverse Cuthill–McKee order; a triangle.
    A zero on the diagonal, of which these orders know nothing, is first moved away by a
    permutation of the rows, if there is one that can.

    Source: Cuthill, McKee, *Reducing the bandwidth of sparse symmetric matrices*, Proc.
    24th ACM National Conference (1969), doi:10.1145/800195.805928.
    """
    m, n = pattern.shape
    if m != n:
        return Arrangement("dense", pattern)
    as_it_stands = Arrangement("band", pattern)
    if as_it_stands.half_bandwidth <= 1:
        return as_it_stands
    if len(pattern) <= n * n // 4:
        found = _reorder(pattern)
        if found is not None:
            return found
    if as_it_stands.upper == 0:
        return Arrangement("lower triangular", pattern)
    if as_it_stands.lower == 0:
        return Arrangement("upper triangular", pattern)
    return Arrangement("dense", pattern)


def _band_pays(half_bandwidth: int, n: int) -> bool:
    """Whether a band is faster than LU. In µs, to factorise and for a solve, in float64
    on two CPU cores:

    half-bandwidth, n     band        dense
                2, 48     35, 13      25, 13
                2, 64     45, 13      39, 20
                4, 64     52, 13      45, 20
                8, 64     80, 14      54, 26
               8, 128    117, 19     163, 39
              16, 128    214, 20     201, 39
              32, 256   1027, 69    1078, 130

    A factorisation serves several solves, in diffrax.
    """
    return n >= max(64, 8 * block_size(half_bandwidth))


def _reorder(pattern: Pattern) -> Arrangement | None:
    # Not at the top: it takes a tenth of a second.
    import scipy.sparse as sp
    import scipy.sparse.csgraph as csgraph

    _, n = pattern.shape
    entries = np.ones(len(pattern), np.int32), (pattern.rows, pattern.cols)
    graph = sp.csr_matrix(entries, pattern.shape)
    rows = np.arange(n)
    if np.count_nonzero(pattern.rows == pattern.cols) < n:
        matched = csgraph.maximum_bipartite_matching(graph, perm_type="row")
        rows = matched if np.all(matched >= 0) else rows
    graph = graph[rows]

    order = csgraph.reverse_cuthill_mckee(sp.csr_matrix(graph + graph.T), True)
    band = Arrangement("band", pattern, rows[order], order)
    if max(pattern.bandwidth) <= band.half_bandwidth:
        band = Arrangement("band", pattern)
    half = band.half_bandwidth
    if half <= 1:
        return band

    count, labels = csgraph.connected_components(graph, directed=False)
    sizes = np.bincount(labels)
    block = int(sizes.max())
    if block <= block_size(half) and count * block <= 2 * n:
        columns = np.full((count, block), n)
        order = np.argsort(labels, kind="stable")
        within = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        columns[labels[order], within] = order
        columns = columns.reshape(-1)
        return Arrangement(
            "blocks", pattern, np.append(rows, n)[columns], columns, block
        )
    return band if _band_pays(half, n) else None
