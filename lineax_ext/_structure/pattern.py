"""What is known of an operator's sparsity before a single entry is read."""

import functools as ft
import hashlib

import lineax as lx
import numpy as np


def bandwidth(operator: lx.AbstractLinearOperator) -> tuple[int, int] | None:
    """The `(lower, upper)` bandwidth that the operator's tags imply, if they imply one.

    Tags are combined: tridiagonal and upper triangular is upper bidiagonal, `(0, 1)`;
    lower and upper triangular is diagonal.
    """
    lower_triangular = lx.is_lower_triangular(operator)
    upper_triangular = lx.is_upper_triangular(operator)
    if lx.is_diagonal(operator) or (lower_triangular and upper_triangular):
        return 0, 0
    if lx.is_tridiagonal(operator):
        return int(not upper_triangular), int(not lower_triangular)
    return None


def has_structure(operator: lx.AbstractLinearOperator) -> bool:
    """Whether it says of itself that it is diagonal, tridiagonal or triangular."""
    return (
        lx.is_diagonal(operator)
        or lx.is_tridiagonal(operator)
        or lx.is_lower_triangular(operator)
        or lx.is_upper_triangular(operator)
    )


class Pattern:
    """Where a matrix may have entries: everywhere else it is zero, whatever the values.

    Sorted by rows, then by columns, each entry once. Compares and hashes by value: that
    a state was made from a pattern must not tell apart two traces of the same function.
    """

    def __init__(self, rows: np.ndarray, cols: np.ndarray, shape: tuple[int, int]):
        self.rows, self.cols, self.shape = rows, cols, shape

    @ft.cached_property
    def _digest(self) -> bytes:
        return hashlib.sha256(self.rows.tobytes() + self.cols.tobytes()).digest()

    def __eq__(self, other):
        if not isinstance(other, Pattern):
            return NotImplemented
        return (self.shape, self._digest) == (other.shape, other._digest)

    def __hash__(self):
        return hash((self.shape, self._digest))

    def __len__(self):
        return len(self.rows)

    @property
    def T(self) -> "Pattern":
        order = np.lexsort((self.rows, self.cols))
        m, n = self.shape
        return Pattern(self.cols[order], self.rows[order], (n, m))

    @ft.cached_property
    def bandwidth(self) -> tuple[int, int]:
        """`(lower, upper)`: entries have -lower <= column - row <= upper."""
        offsets = self.cols - self.rows
        return int(-offsets.min(initial=0)), int(offsets.max(initial=0))
