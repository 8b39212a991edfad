"""Minimum degree: the vertex with the fewest neighbours is eliminated first.

Where a graph has no small separators, as that of a circuit, it leaves less fill than
nested dissection.
"""

import functools as ft
from typing import Any

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as spl

from ..._structure.pattern import Pattern
from .matching import matched_graph
from .tree import Tree


@ft.lru_cache(maxsize=2)
def ordering(
    pattern: Pattern, symmetric: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`ordered`, of the pattern's matched graph.

    Cached, for a pattern may be looked at in two ways, one after the other.
    """
    return ordered(matched_graph(pattern, symmetric)[2])


def ordered(graph: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The order, and the entries that the factor has below its diagonal: their rows,
    and their columns, by column.

    SuperLU orders and factorises a matrix of that graph, of which no entry cancels:
    the fill is read off its factor.

    Cost: that of a factorisation, with SuperLU's arithmetic.

    Liu: Modification of the minimum-degree algorithm by multiple elimination. ACM
    Transactions on Mathematical Software 11, 1985, doi:10.1145/214392.214398

    **Arguments:**

    - `graph`: symmetric, without a diagonal.
    """
    n = graph.shape[0]
    if n == 0:
        none = np.zeros(0, np.int64)
        return none, none, none
    shape = graph.shape
    ones = np.ones(len(graph.indices))
    off = sp.csc_array((ones, graph.indices, graph.indptr), shape=shape)
    factors = spl.splu(
        sp.csc_array(sp.diags_array(np.diff(graph.indptr) + 1.0) - off),
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0,
        options={"SymmetricMode": True},
    )
    lower = sp.csc_array(factors.L)
    rows, cols = lower.indices, np.repeat(np.arange(n), np.diff(lower.indptr))
    below = rows > cols
    rows, cols = rows[below].astype(np.int64), cols[below]
    by_column = np.lexsort((rows, cols))
    return np.argsort(factors.perm_c), rows[by_column], cols[by_column]


def minimum_degree(
    order: np.ndarray, rows: np.ndarray, cols: np.ndarray
) -> tuple[Tree, np.ndarray]:
    """A tree of supernodes, and of each the number of those in its boundary.

    **Arguments:**

    - `order`, `rows`, `cols`: as from `ordered`.
    """
    n = len(order)
    count = np.bincount(cols, minlength=n)
    parent = np.full(n, n)
    np.minimum.at(parent, cols, rows)
    # A column joins the one before it if that one has its rows, and itself, alone.
    joins = (parent[:-1] == np.arange(1, n)) & (count[:-1] == count[1:] + 1)
    starts = np.flatnonzero(np.append(True, ~joins))
    ends = np.append(starts[1:], n)
    node = np.append(np.repeat(np.arange(len(starts)), ends - starts), -1)
    members = np.split(order, starts[1:])
    return Tree(members, node[parent[ends - 1]]), count[ends - 1]
