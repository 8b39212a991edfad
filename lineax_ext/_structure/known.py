"""Operators that come with a pattern, and hold their entries.

One rule a class, beside the class: this room knows nothing of the operators here.
"""

import functools as ft

import lineax as lx
import numpy as np
from jaxtyping import Array, Inexact

from .pattern import Pattern


@ft.singledispatch
def known_pattern(operator: lx.AbstractLinearOperator) -> Pattern | None:
    """The pattern that `operator` has by itself; `None` if it has to be found."""
    return None


@ft.singledispatch
def known_entries(
    operator: lx.AbstractLinearOperator, pattern: Pattern
) -> Inexact[Array, " entries"] | None:
    """The entries of `operator` in the order of `pattern`, zero where it has none.

    `None` if they have to be read, by colours: only an operator with a `known_pattern`
    has them at hand.
    """
    return None


@known_pattern.register(lx.TaggedLinearOperator)
def _(operator):
    return known_pattern(operator.operator)


@known_entries.register(lx.TaggedLinearOperator)
def _(operator, pattern):
    return known_entries(operator.operator, pattern)


def lower_half(pattern: Pattern) -> Pattern:
    """Its entries on the diagonal and below."""
    low = pattern.rows >= pattern.cols
    return Pattern(pattern.rows[low], pattern.cols[low], pattern.shape)


def locate(pattern: Pattern, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """The numbers of the entries (row, column); `len(pattern)` if there is none."""
    count, (_, n) = len(pattern), pattern.shape
    flat = lambda rows, cols: rows.astype(np.int64) * n + cols
    have, want = flat(pattern.rows, pattern.cols), flat(rows, cols)
    at = np.searchsorted(have, want)
    found = np.append(have, -1)[at] == want
    return np.where(found, at, count).astype(np.int32)
