"""Colours: which columns, or rows, of a pattern can be read together."""

import dataclasses
import functools as ft
from typing import Literal

import numpy as np

from .pattern import Pattern


@dataclasses.dataclass(frozen=True)
class Colouring:
    """No two columns (rows) of a colour share a row (column)."""

    by: Literal["columns", "rows"]
    colours: np.ndarray
    count: int


@ft.lru_cache(maxsize=64)
def colour(pattern: Pattern, by: Literal["columns", "rows"]) -> Colouring:
    """A greedy colouring, by `asdex`; of a full matrix it has one colour for each."""
    import asdex

    size = pattern.shape[1] if by == "columns" else pattern.shape[0]
    length = pattern.shape[0] if by == "columns" else pattern.shape[1]
    lines = pattern.rows if by == "columns" else pattern.cols
    fullest = int(np.bincount(lines, minlength=1).max(initial=0))
    if fullest >= size or length == 0:
        return Colouring(by, np.arange(size), size)
    entries = asdex.SparsityPattern.from_coo(pattern.rows, pattern.cols, pattern.shape)
    find = asdex.color_cols if by == "columns" else asdex.color_rows
    colours, count = find(entries)
    return Colouring(by, colours, count)
