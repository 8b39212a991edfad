"""The graph of a pattern, whose diagonal a matching has filled."""

import functools as ft
from typing import Any

import numpy as np
import scipy.sparse as sp
import scipy.sparse.csgraph as csgraph

from ..._structure.pattern import Pattern


@ft.lru_cache(maxsize=8)
def matched_graph(
    pattern: Pattern, symmetric: bool
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Row `matched[j]` has an entry in column j, which goes to the diagonal; the place
    of each row then; and the graph of what that leaves.

    Cached, for a pattern may be looked at in two ways, one after the other.
    """
    n = pattern.shape[0]
    matched = np.arange(n) if symmetric else _matched(pattern)
    row_of = np.empty(n, np.int64)
    row_of[matched] = np.arange(n)
    return matched, row_of, graph(row_of[pattern.rows], pattern.cols, n)


def _matched(pattern: Pattern) -> np.ndarray:
    n = pattern.shape[0]
    if np.count_nonzero(pattern.rows == pattern.cols) == n:
        return np.arange(n)
    matched = csgraph.maximum_bipartite_matching(pattern.to_scipy(), perm_type="row")
    missing = int(np.count_nonzero(matched < 0))
    if missing > 0:
        raise ValueError(
            f"Every matrix of {pattern} is singular: no choice of {n} entries, one in "
            f"each row and column, exists ({missing} are missing). Give it the missing "
            "entries, or solve a least-squares problem."
        )
    return matched


def graph(rows: np.ndarray, cols: np.ndarray, n: int) -> Any:
    """Of the symmetrised pattern, without its diagonal."""
    off = rows != cols
    rows, cols = rows[off], cols[off]
    both = np.concatenate([rows, cols]), np.concatenate([cols, rows])
    graph = sp.csr_array((np.ones(len(both[0])), both), shape=(n, n))
    graph.sum_duplicates()
    return graph


def parity(permutation: np.ndarray) -> int:
    """+1 or -1."""
    n = len(permutation)
    ones = sp.csr_array((np.ones(n), (np.arange(n), permutation)), shape=(n, n))
    cycles = csgraph.connected_components(ones, directed=False)[0] if n else 0
    return 1 - 2 * ((n - cycles) % 2)
