"""The entries of an operator, read by the colours of its pattern and rearranged."""

import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Inexact

from .arrange import Arrangement
from .colour import colour, Colouring
from .extract import direction, read_band, read_compressed, reader
from .known import known_entries
from .pattern import Pattern


def _colouring(operator: lx.AbstractLinearOperator, pattern: Pattern) -> Colouring:
    found = colour(pattern, direction(operator))
    if direction(operator) != direction(operator, "rows"):  # either will do
        # To read by a VJP takes about twice as long as by a JVP.
        rows = colour(pattern, "rows")
        found = rows if 2 * rows.count < found.count else found
    return found


def _source(operator: lx.AbstractLinearOperator, pattern: Pattern):
    """A flat array with all entries, and where each is; then a zero and a one."""
    known = known_entries(operator, pattern)
    if known is not None:
        constants = jnp.array([0, 1], known.dtype)
        return jnp.concatenate([known, constants]), np.arange(len(pattern))
    colouring = _colouring(operator, pattern)
    read = reader(operator, colouring.by)
    compressed = read_compressed(read, colouring.colours, colouring.count)
    columns = colouring.by == "columns"
    line, along = (pattern.cols, pattern.rows)[:: 1 if columns else -1]
    at = colouring.colours[line].astype(np.int64) * compressed.shape[1] + along
    constants = jnp.array([0, 1], compressed.dtype)
    return jnp.concatenate([compressed.reshape(-1), constants]), at


def rearranged_band(
    operator: lx.AbstractLinearOperator, pattern: Pattern, arrangement: Arrangement
) -> dict[int, Inexact[Array, " length"]]:
    """The diagonals of a "band", as `read_band` returns them."""
    lower, upper = arrangement.lower, arrangement.upper
    count = lower + upper + 1
    if arrangement.in_order and count <= 3:
        return read_band(reader(operator), lower, upper)
    source, at = _source(operator, pattern)
    n = len(arrangement.rows)
    index = np.full((count, n), source.size - 2)
    offset = arrangement.entry_columns - arrangement.entry_rows
    index[offset + lower, arrangement.entry_rows] = at
    diagonals = source[index]
    return {
        d: diagonals[d + lower, max(0, -d) : n - max(0, d)]
        for d in range(-lower, upper + 1)
    }


def rearranged_blocks(
    operator: lx.AbstractLinearOperator, pattern: Pattern, arrangement: Arrangement
) -> Inexact[Array, "count block block"]:
    """The diagonal blocks of "blocks"; a position without a row is of the identity."""
    source, at = _source(operator, pattern)
    block, (n, _) = arrangement.block, pattern.shape
    count = len(arrangement.rows) // block
    index = np.full((count, block, block), source.size - 2)
    empty = np.flatnonzero(arrangement.rows == n)
    index[empty // block, empty % block, empty % block] = source.size - 1
    i, j = arrangement.entry_rows, arrangement.entry_columns
    index[i // block, i % block, j % block] = at
    return source[index]


def coloured_matrix(
    operator: lx.AbstractLinearOperator, pattern: Pattern
) -> Inexact[Array, "m n"]:
    """The dense matrix, by as many applications as the pattern needs colours.

    By none, if the operator holds its entries.
    """
    known = known_entries(operator, pattern)
    if known is not None:
        out = jnp.zeros(pattern.shape[::-1], known.dtype)
        return out.at[pattern.cols, pattern.rows].set(known, unique_indices=True).T
    colouring = _colouring(operator, pattern)
    read = reader(operator, colouring.by)
    compressed = read_compressed(read, colouring.colours, colouring.count)
    columns = colouring.by == "columns"
    # Each column (row) where it is read, with those of the same colour; then alone.
    # It has the columns as rows, the layout that LAPACK wants: see `as_matrix`.
    mask = np.zeros((len(colouring.colours), compressed.shape[1]), bool)
    mask[(pattern.cols, pattern.rows)[:: 1 if columns else -1]] = True
    stacked = jnp.where(mask, compressed[colouring.colours], 0)
    return stacked.T if columns else stacked
