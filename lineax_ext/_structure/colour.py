"""Colours: which columns, or rows, of a pattern can be read together."""

import dataclasses
import functools as ft
from typing import Literal

import numpy as np

from .pattern import Pattern


# Above this number of entries one order of the columns is tried, and no second one.
_many = 2**21


@dataclasses.dataclass(frozen=True)
class Colouring:
    """No two columns (rows) of a colour share a row (column). A column (row) without
    entries may have the colour −1, with which it is not read: it may well have some
    that the pattern leaves out, and these would be added to those of its colour."""

    by: Literal["columns", "rows"]
    colours: np.ndarray
    count: int


@ft.lru_cache(maxsize=64)
def colour(pattern: Pattern, by: Literal["columns", "rows"]) -> Colouring:
    """A greedy colouring: each column, in its turn, gets the first colour that no other
    column of its rows has. The best of two orders: as they come, which is right for a
    band, and those with the most neighbours first.

    Where there is a full row, that is one colour for each column. Otherwise in O(number
    of entries): 0.4 s for a million of them, if one order is enough.

    Source: Gebremedhin, Manne, Pothen, *What Color Is Your Jacobian? Graph Coloring for
    Computing Derivatives*, SIAM Review 47 (2005), doi:10.1137/S0036144504444711.
    """
    if by == "rows":
        found = colour(pattern.T, "columns")
        return Colouring(by, found.colours, found.count)
    m, n = pattern.shape
    lengths = np.bincount(pattern.rows, minlength=m)
    least = int(lengths.max(initial=0))
    if least >= n or m == 0:
        return Colouring(by, np.arange(n), n)
    order = np.argsort(pattern.cols, kind="stable")
    rows = pattern.rows[order]
    counts = np.bincount(pattern.cols, minlength=n)
    starts = np.concatenate([[0], np.cumsum(counts)])
    found = _greedy(range(n), rows, starts, m)
    if found.max() + 1 > least and len(pattern) <= _many:
        weights = np.bincount(pattern.cols, lengths[pattern.rows], n)
        largest_first = np.argsort(-weights, kind="stable")
        if np.all(largest_first[1:] > largest_first[:-1]):  # the same order
            return Colouring(by, found, max(int(found.max()) + 1, 1))
        other = _greedy(largest_first.tolist(), rows, starts, m)
        found = min(found, other, key=np.max)
    return Colouring(by, found, max(int(found.max()) + 1, 1))


def _greedy(order, rows: np.ndarray, starts: np.ndarray, m: int) -> np.ndarray:
    # The colours of a row are the bits of an integer: no graph of columns is made.
    rows, starts, taken = rows.tolist(), starts.tolist(), [0] * m
    colours = [0] * (len(starts) - 1)
    for j in order:
        own = rows[starts[j] : starts[j + 1]]
        if not own:
            colours[j] = -1
            continue
        used = 0
        for i in own:
            used |= taken[i]
        bit = ~used & (used + 1)
        for i in own:
            taken[i] |= bit
        colours[j] = bit.bit_length() - 1
    return np.asarray(colours)
