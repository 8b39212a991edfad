"""The entries of an operator, read by the colours of a pattern and laid out anew."""

import functools as ft

import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Inexact

from .._materialise import as_matrix
from .._structure.colour import colour, Colouring
from .._structure.extract import direction, read_band, read_compressed, reader
from .._structure.known import known_entries, known_pattern
from .._structure.pattern import Pattern


# What can stand in a layout besides the number of an entry.
ZERO, ONE = -2, -1

# So many slices compile as fast as one gather.
_SLICES = 16


class Entries:
    """The entries of `operator` in the places of `pattern`, read when asked for.

    A flat array has them all, and where each of them is in it is known: a layout of any
    kind is one gather. An operator that holds its entries is not applied for them.
    Without a pattern there is only the dense matrix.
    """

    def __init__(self, operator: lx.AbstractLinearOperator, pattern: Pattern | None):
        self.operator, self.pattern = operator, pattern

    def laid_out(self, layout: np.ndarray) -> Inexact[Array, "..."]:
        """An array with the entry number `layout[i]` at i; or a `ZERO`, or a `ONE`."""
        source, at = self._source
        at = np.append(at, [source.size, source.size + 1])
        constants = jnp.array([0, 1], source.dtype)
        source = jnp.concatenate([source, constants])
        return _take(source, at[layout])

    def values(self) -> Inexact[Array, " entries"]:
        """All entries, in the order of the pattern."""
        assert self.pattern is not None
        return self.laid_out(np.arange(len(self.pattern)))

    def band(self, lower: int, upper: int) -> dict[int, Inexact[Array, " length"]]:
        """The diagonals −`lower`, …, `upper`, where the pattern has no others."""
        if self.pattern is None or known_pattern(self.operator) is None:
            return read_band(reader(self.operator), lower, upper)
        rows, cols = self.pattern.rows, self.pattern.cols
        return self.diagonals(rows, cols, lower, upper)

    def diagonals(
        self, rows: np.ndarray, cols: np.ndarray, lower: int, upper: int
    ) -> dict[int, Inexact[Array, " length"]]:
        """As `band`, where entry number e is moved to row `rows[e]`, column `cols[e]`
        of a square matrix."""
        assert self.pattern is not None
        n, _ = self.pattern.shape
        layout = np.full((lower + upper + 1, n), ZERO)
        layout[cols - rows + lower, rows] = np.arange(len(self.pattern))
        found = self.laid_out(layout)
        return {
            d: found[d + lower, max(0, -d) : n - max(0, d)]
            for d in range(-lower, upper + 1)
        }

    def matrix(self) -> Inexact[Array, "m n"]:
        """The dense matrix, by as many applications as the pattern needs colours."""
        if self.pattern is None or known_pattern(self.operator) is not None:
            return as_matrix(self.operator)
        colouring, compressed = self._compressed
        columns = colouring.by == "columns"
        # Each column (row) where it is read, with those of the same colour; then alone.
        # It has the columns as rows, the layout that LAPACK wants: see `as_matrix`.
        mask = np.zeros((len(colouring.colours), compressed.shape[1]), bool)
        mask[(self.pattern.cols, self.pattern.rows)[:: 1 if columns else -1]] = True
        stacked = jnp.where(mask, compressed[colouring.colours], 0)
        return stacked.T if columns else stacked

    @ft.cached_property
    def _compressed(self) -> tuple[Colouring, Inexact[Array, "count length"]]:
        assert self.pattern is not None
        colouring = _colouring(self.operator, self.pattern)
        read = reader(self.operator, colouring.by)
        return colouring, read_compressed(read, colouring.colours, colouring.count)

    @ft.cached_property
    def _source(self) -> tuple[Inexact[Array, " size"], np.ndarray]:
        assert self.pattern is not None
        known = known_entries(self.operator, self.pattern)
        if known is not None:
            return known, np.arange(len(self.pattern))
        colouring, compressed = self._compressed
        columns = colouring.by == "columns"
        line, along = (self.pattern.cols, self.pattern.rows)[:: 1 if columns else -1]
        at = colouring.colours[line].astype(np.int64) * compressed.shape[1] + along
        return compressed.reshape(-1), at


def _take(source: Inexact[Array, " size"], at: np.ndarray) -> Inexact[Array, "..."]:
    """`source[at]`: slices, where `at` is made of few of them; a gather, if not."""
    if at.size == 0:
        return jnp.zeros(at.shape, source.dtype)
    lines = at.reshape(-1, at.shape[-1])
    if not (len(lines) <= _SLICES and at.shape[-1] > 1):
        return source[at]
    steps = np.diff(lines, axis=1)
    if np.any(steps != steps[:, :1]) or np.any(steps < 0):
        return source[at]
    taken = [
        lax.slice(source, (first,), (last + 1,), (step,))
        if step > 0
        else jnp.broadcast_to(source[first], (at.shape[-1],))
        for first, last, step in zip(
            *map(np.ndarray.tolist, (lines[:, 0], lines[:, -1], steps[:, 0]))
        )
    ]
    return jnp.stack(taken).reshape(at.shape)


def _colouring(operator: lx.AbstractLinearOperator, pattern: Pattern) -> Colouring:
    found = colour(pattern, direction(operator))
    if direction(operator) != direction(operator, "rows"):  # either will do
        # To read by a VJP takes about twice as long as by a JVP.
        rows = colour(pattern, "rows")
        found = rows if 2 * rows.count < found.count else found
    return found
