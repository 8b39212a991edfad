"""What is known of an operator's sparsity before a single entry is read."""

import functools as ft
import hashlib
import operator as op
from typing import Any

import lineax as lx
import numpy as np
from jax.core import Tracer
from numpy.typing import ArrayLike

from .._checks import called


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

    Sorted by rows, then by columns, each entry once, as arrays of NumPy. Compares and
    hashes by value: that a state was made from a pattern must not tell apart two
    traces of the same function.

    !!! Example

        ```python
        # A diagonal, and one entry beside it.
        pattern = lxe.Pattern([0, 1, 2, 3, 4, 4], [0, 1, 2, 3, 4, 0], (5, 5))
        solver = lxe.AutoStructuredLinearSolver(pattern=pattern)
        solution = lx.linear_solve(operator, vector, solver)
        ```

    **Arguments:**

    - `rows`, `cols`: indices of the entries, of equal length, in any order. An entry
        that is named twice counts once.
    - `shape`: `(m, n)`.

    **Raises:**

    `ValueError` for arrays that are no indices, differ in length, or leave the matrix,
    and for what is no shape of a matrix.
    """

    rows: np.ndarray
    cols: np.ndarray
    shape: tuple[int, int]

    def __init__(self, rows: ArrayLike, cols: ArrayLike, shape: tuple[int, int]):
        m, n = shape = _sizes(shape)
        rows, cols = (_indices(x) for x in (rows, cols))
        if rows.shape != cols.shape or rows.ndim != 1:
            raise ValueError(
                "`Pattern` needs as many `rows` as `cols`; found indices of shape "
                f"{rows.shape} and {cols.shape}."
            )
        for name, index, size in (("rows", rows, m), ("cols", cols, n)):
            if index.size > 0 and not (0 <= index.min() and index.max() < size):
                raise ValueError(
                    f"`Pattern` of shape {shape} was given `{name}` from "
                    f"{index.min()} to {index.max()}."
                )
        rows, cols = rows.astype(np.int64), cols.astype(np.int64)
        flat = rows * n + cols
        if np.any(flat[1:] <= flat[:-1]):
            flat = np.sort(flat)  # `np.unique` hashes, which takes ten times as long
            flat = flat[np.append(True, flat[1:] != flat[:-1])]
            rows, cols = flat // max(n, 1), flat % max(n, 1)
        self.rows, self.cols = rows.astype(np.int32), cols.astype(np.int32)
        self.rows.flags.writeable = self.cols.flags.writeable = False
        self.shape = shape

    @staticmethod
    def from_scipy(matrix: Any) -> "Pattern":
        """That of a SciPy sparse matrix or array: what it stores, zeros included."""
        if not hasattr(matrix, "tocoo"):
            raise ValueError(
                "`Pattern.from_scipy` needs a sparse matrix of SciPy; found "
                f"{called(matrix)}. That of a dense one is "
                "`Pattern(*np.nonzero(matrix), matrix.shape)`, that of a `BCOO` "
                "`SparseMatrixLinearOperator.from_bcoo(matrix).pattern`."
            )
        matrix = matrix.tocoo()
        if len(matrix.shape) != 2:
            raise ValueError(
                "`Pattern.from_scipy` needs a matrix, of two axes; found an array of "
                f"shape {matrix.shape}."
            )
        return Pattern(matrix.row, matrix.col, matrix.shape)

    def to_scipy(self) -> Any:
        """A `scipy.sparse.csr_array` of ones, of dtype int8."""
        import scipy.sparse as sp

        pointers = np.searchsorted(self.rows, np.arange(self.shape[0] + 1))
        ones = np.ones(len(self), np.int8)
        return sp.csr_array((ones, self.cols, pointers.astype(np.int32)), self.shape)

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

    def __repr__(self):
        return f"Pattern(shape={self.shape}, entries={len(self)})"

    @property
    def T(self) -> "Pattern":
        """That of Aᵀ."""
        m, n = self.shape
        return Pattern(self.cols, self.rows, (n, m))

    @ft.cached_property
    def gram(self) -> "Pattern":
        """That of AᵀA; and of the Hessian of ½ ‖r‖², if this is that of ∂r/∂y.

        Cost: the squared lengths of the rows.
        """
        matrix = self.to_scipy().astype(bool)
        return Pattern.from_scipy(matrix.T @ matrix)

    @ft.cached_property
    def bandwidth(self) -> tuple[int, int]:
        """`(lower, upper)`: entries have -lower <= column - row <= upper."""
        offsets = self.cols - self.rows
        return int(-offsets.min(initial=0)), int(offsets.max(initial=0))


def full(m: int, n: int) -> Pattern:
    """Every entry of a matrix."""
    return Pattern(np.repeat(np.arange(m), n), np.tile(np.arange(n), m), (m, n))


def check_is_pattern(pattern: Any, argument: str) -> None:
    if not isinstance(pattern, Pattern):
        raise ValueError(
            f"`{argument}` must be a `lineax_ext.Pattern`; found {called(pattern)}. "
            "That of a sparse matrix of SciPy is "
            "`lineax_ext.Pattern.from_scipy(matrix)`, that of a dense one "
            "`lineax_ext.Pattern(*np.nonzero(matrix), matrix.shape)`."
        )


def check_fits(
    pattern: Pattern, operator: lx.AbstractLinearOperator, argument: str
) -> None:
    shape = operator.out_size(), operator.in_size()
    if pattern.shape != shape:
        raise ValueError(
            f"`{argument}` was given a pattern of shape {pattern.shape}, and an "
            f"operator of shape {shape}."
        )


def _sizes(shape: Any) -> tuple[int, int]:
    try:
        m, n = map(op.index, shape)
    except (TypeError, ValueError):
        m, n = -1, -1
    if not 0 <= min(m, n) <= max(m, n) <= np.iinfo(np.int32).max:
        raise ValueError(
            "`Pattern` needs a `shape` (m, n), the numbers of rows and of columns, "
            f"below 2³¹; found {shape!r}."
        )
    return m, n


def _indices(x: ArrayLike) -> np.ndarray:
    if isinstance(x, Tracer):
        raise ValueError(
            "`Pattern` was given traced indices. Make it outside of `jit` and `vmap`: "
            "it must be known while JAX traces."
        )
    x = np.asarray(x)
    if x.size == 0 and x.ndim == 1:
        return x.astype(np.int32)
    if not np.issubdtype(x.dtype, np.integer):
        raise ValueError(
            f"`Pattern` needs integer indices; found an array of {x.dtype}, of shape "
            f"{x.shape}. Those of a mask are `np.nonzero(mask)`."
        )
    return x
