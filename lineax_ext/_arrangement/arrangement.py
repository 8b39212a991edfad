"""What every kind of matrix offers: analyse, factor, solve."""

import abc
from collections.abc import Hashable
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Inexact, PyTree

from .._structure.pattern import Pattern
from .cost import Cost
from .entries import Entries


class AbstractArrangement(abc.ABC):
    """A square matrix of one kind, which has room for every entry of a pattern.

    Static: made in NumPy from the pattern alone, cached, and compared by value, as
    states of diffrax are. A further kind is one more class like this, and a row in
    `choose.py`.
    """

    kind: ClassVar[str]
    key: Hashable  # all that it was made from
    cost: Cost

    @classmethod
    @abc.abstractmethod
    def analyse(cls, pattern: Pattern) -> "AbstractArrangement | None":
        """How a square matrix of this kind would hold the pattern, if it can."""

    @abc.abstractmethod
    def factor(self, entries: Entries) -> PyTree[Array]:
        """The factors, for the values that an operator has."""

    @abc.abstractmethod
    def solve(
        self, factors: Any, b: Inexact[Array, " n"], transposed: bool
    ) -> tuple[Inexact[Array, " n"], Bool[Array, ""]]:
        """A⁻¹ b or A⁻ᵀ b, and whether A is singular.

        What is not finite need not be said: lineax looks at that.
        """

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, AbstractArrangement)
            and type(self) is type(other)
            and self.key == other.key
        )

    def __hash__(self) -> int:
        return hash((type(self), self.key))


class Order:
    """A permutation of rows and one of columns, with empty places.

    Place i holds row `rows[i]` and column `columns[i]`; none if they are n. Such places
    belong to an identity, which fills blocks.
    """

    def __init__(self, rows: np.ndarray, columns: np.ndarray, n: int):
        self.rows, self.columns = rows, columns
        self.row_places, self.column_places = _places(rows, n), _places(columns, n)
        natural = np.arange(n)
        self.natural = np.array_equal(rows, natural) and np.array_equal(
            columns, natural
        )
        self.strides = _stride(columns, n), _stride(rows, n)

    def into(self, b: Inexact[Array, " n"], transposed: bool) -> Array:
        """A right-hand side; zero in empty places."""
        if self.natural:
            return b
        if stride := self.strides[not transposed]:
            return b.reshape(-1, stride).T.reshape(-1)
        order = self.columns if transposed else self.rows
        return jnp.append(b, jnp.zeros((), b.dtype))[order]

    def out_of(self, x: Array, transposed: bool) -> Inexact[Array, " n"]:
        """A solution."""
        if self.natural:
            return x
        if stride := self.strides[transposed]:
            return x.reshape(stride, -1).T.reshape(-1)
        return x[self.row_places if transposed else self.column_places]


def _places(order: np.ndarray, n: int) -> np.ndarray:
    out = np.empty((n + 1,), np.int32)
    out[order] = np.arange(len(order), dtype=np.int32)
    return out[:n]


def _stride(order: np.ndarray, n: int) -> int:
    """s if the order is 0, s, 2s, …, 1, s + 1, …, that of a transpose; 0 if not.

    A gather of 3000 numbers takes 10 µs, a transpose 1.
    """
    stride = int(order[1] - order[0]) if len(order) == n > 1 else 0
    if stride <= 1 or n % stride != 0:
        return 0
    transpose = np.arange(n).reshape(-1, stride).T.reshape(-1)
    return stride if np.array_equal(order, transpose) else 0
