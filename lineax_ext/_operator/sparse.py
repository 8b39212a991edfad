"""A sparse matrix: its entries, and a static pattern that says where they stand."""

import functools as ft
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Inexact, Shaped

from .._checks import called
from .._factor.sparse_product import sparse_product
from .._flat import is_complex
from .._structure.known import known_entries, known_pattern, locate
from .._structure.pattern import check_is_pattern, Pattern
from .._tags import tag_set


class SparseMatrixLinearOperator(lx.AbstractLinearOperator):
    """An m×n matrix that is zero but for the entries of a pattern:

    A x = Σₑ values[e] x[cols[e]] in row rows[e].

    Acts on flat vectors. O(e) memory for e entries, and as much work for A x, for Aᵀ x
    and for their derivatives; a `vmap` over vectors gathers each entry once for all of
    them. A dense row costs what it has entries. The diagonals are read without a
    product. A pattern that is diagonal, tridiagonal or triangular is as good as a tag.

    !!! Example

        ```python
        pattern = lxe.Pattern(range(5), range(5), (5, 5))
        sparse = lxe.SparseMatrixLinearOperator(lx.diagonal(operator), pattern)
        solution = lx.linear_solve(sparse, vector, lxe.AutoStructuredLinearSolver())
        ```

    **Arguments:**

    - `values`: the entries, in the order of `pattern`: by rows, then by columns. Of a
        sparse matrix of SciPy, `matrix.tocsr().sorted_indices().data` has that order.
    - `pattern`: a [`lineax_ext.Pattern`][]. Static: operators with other values and an
        equal pattern share one compiled program.
    - `tags`: what else is known of the matrix, as for `lineax.MatrixLinearOperator`.
        Taken on trust.

    **Raises:**

    `ValueError` for another number of values than the pattern has entries, for what is
    no `Pattern`, and for a tag that says symmetric or semidefinite where the pattern is
    one triangle.
    """

    values: Inexact[Array, " entries"]
    pattern: Pattern = eqx.field(static=True)
    tags: frozenset[object] = eqx.field(static=True)

    def __init__(
        self, values: Shaped[Array, " entries"], pattern: Pattern, tags: object = ()
    ):
        check_is_pattern(pattern, "SparseMatrixLinearOperator(pattern=…)")
        if hasattr(values, "todense"):
            raise ValueError(
                "`SparseMatrixLinearOperator` needs the `values` of a matrix, an "
                f"array; found {called(values)}. A `BCOO` is taken by "
                "`SparseMatrixLinearOperator.from_bcoo(matrix)`; of SciPy's it is "
                "`matrix.tocsr().sorted_indices().data`."
            )
        values = jnp.asarray(values)
        if values.shape != (len(pattern),):
            raise ValueError(
                "`SparseMatrixLinearOperator` needs `values` of shape (entries,), as "
                f"many as its pattern has, {len(pattern)}; found {values.shape}."
            )
        if not jnp.issubdtype(values.dtype, jnp.inexact):
            values = values.astype(jnp.zeros(()).dtype)
        self.values, self.pattern, self.tags = values, pattern, tag_set(tags)
        if any(tag in self.tags for tag in _hermitian) and _is_triangle(pattern):
            raise ValueError(
                "`SparseMatrixLinearOperator` is tagged symmetric or semidefinite, but "
                "has the entries of one triangle. It needs those of both: of a matrix "
                "that is stored as its lower one, L + Lᵀ without the diagonal twice."
            )

    @staticmethod
    def from_bcoo(matrix: Any, tags: object = ()) -> "SparseMatrixLinearOperator":
        """That of a `jax.experimental.sparse.BCOO`, differentiable in its `data`.

        Entries with the same indices are added up. Those outside of the matrix, by
        which BCOO pads, are left out. A `BCSR` has a `to_bcoo()`.

        **Raises:**

        `ValueError` for a matrix with batch or dense axes, and for one whose indices
        are traced: the pattern must be known while JAX traces.
        """
        from jax.experimental import sparse as jsparse

        if not isinstance(matrix, jsparse.BCOO):
            raise ValueError(
                "`SparseMatrixLinearOperator.from_bcoo` needs a "
                f"`jax.experimental.sparse.BCOO`; found {called(matrix)}."
            )
        if matrix.ndim != 2 or matrix.n_batch != 0 or matrix.n_dense != 0:
            raise ValueError(
                "`SparseMatrixLinearOperator.from_bcoo` needs a matrix without batch "
                f"and dense axes; found shape {matrix.shape}, n_batch="
                f"{matrix.n_batch} and n_dense={matrix.n_dense}."
            )
        if isinstance(matrix.indices, Tracer):
            raise ValueError(
                "`SparseMatrixLinearOperator.from_bcoo` was given traced indices. Make "
                "the `Pattern` outside of `jit` and `vmap`, and pass only the values "
                "through them."
            )
        m, n = matrix.shape
        rows, cols = np.asarray(matrix.indices, np.int64).T
        inside = (rows >= 0) & (rows < m) & (cols >= 0) & (cols < n)
        inside = np.flatnonzero(inside)
        pattern = Pattern(rows[inside], cols[inside], (m, n))
        at = locate(pattern, rows[inside], cols[inside])
        values = matrix.data[inside]
        if len(pattern) == len(at):
            values = values[np.argsort(at)]
        else:
            values = jnp.zeros((len(pattern),), values.dtype).at[at].add(values)
        return SparseMatrixLinearOperator(values, pattern, tags)

    def mv(self, vector: Inexact[Array, " n"]) -> Inexact[Array, " m"]:
        if jnp.shape(vector) != self.pattern.shape[1:]:  # a gather would not notice
            raise ValueError(
                f"A `SparseMatrixLinearOperator` of shape {self.pattern.shape} was "
                f"applied to a vector of shape {jnp.shape(vector)}."
            )
        return sparse_product(self.values, self.pattern, vector)

    def as_matrix(self) -> Inexact[Array, "m n"]:
        rows, cols = self.pattern.rows, self.pattern.cols
        out = jnp.zeros(self.pattern.shape, self.values.dtype)
        return out.at[rows, cols].set(
            self.values,
            indices_are_sorted=True,
            unique_indices=True,
            mode="promise_in_bounds",
        )

    def transpose(self) -> "SparseMatrixLinearOperator":
        if lx.is_symmetric(self):
            return self
        pattern, order = _transposed(self.pattern)
        tags = lx.transpose_tags(self.tags)
        values = self.values.at[order].get(
            unique_indices=True, mode="promise_in_bounds"
        )
        return SparseMatrixLinearOperator(values, pattern, tags)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.pattern.shape[1:], self.values.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.pattern.shape[:1], self.values.dtype)


_semidefinite = lx.positive_semidefinite_tag, lx.negative_semidefinite_tag
_hermitian = lx.symmetric_tag, *_semidefinite


def _is_triangle(pattern: Pattern) -> bool:
    """And more than a diagonal."""
    lower, upper = pattern.bandwidth
    return (lower > 0) != (upper > 0)


@ft.lru_cache(maxsize=64)
def _transposed(pattern: Pattern) -> tuple[Pattern, np.ndarray]:
    """The pattern of Aᵀ, and in its order the numbers of the entries of A."""
    order = np.argsort(pattern.cols, kind="stable").astype(np.int32)
    return pattern.T, order


@ft.lru_cache(maxsize=64)
def _diagonal_entries(pattern: Pattern, offset: int) -> np.ndarray:
    m, n = pattern.shape
    i = np.arange(max(0, -offset), min(m, n - offset))
    return locate(pattern, i, i + offset)


def _at(values: Array, entries: np.ndarray) -> Array:
    """Zero where there is no such entry."""
    if len(values) == 0:  # of which not even a fill can be gathered
        return jnp.zeros(entries.shape, values.dtype)
    return values.at[entries].get(mode="fill", fill_value=0)


@known_pattern.register(SparseMatrixLinearOperator)
def _(operator):
    return operator.pattern


@known_entries.register(SparseMatrixLinearOperator)
def _(operator, pattern):
    if pattern == operator.pattern:
        return operator.values
    return _at(operator.values, locate(operator.pattern, pattern.rows, pattern.cols))


@lx.linearise.register(SparseMatrixLinearOperator)
@lx.materialise.register(SparseMatrixLinearOperator)
def _(operator):
    return operator


@lx.conj.register(SparseMatrixLinearOperator)
def _(operator):
    values = operator.values.conj()
    return SparseMatrixLinearOperator(values, operator.pattern, operator.tags)


@lx.diagonal.register(SparseMatrixLinearOperator)
def _(operator):
    return _at(operator.values, _diagonal_entries(operator.pattern, 0))


@lx.tridiagonal.register(SparseMatrixLinearOperator)
def _(operator):
    diagonal, lower, upper = (
        _at(operator.values, _diagonal_entries(operator.pattern, offset))
        for offset in (0, -1, 1)
    )
    return diagonal, lower, upper


def _within(operator: SparseMatrixLinearOperator, lower: int, upper: int) -> bool:
    """Whether the pattern alone says that the matrix is such a band, and square."""
    m, n = operator.pattern.shape
    below, above = operator.pattern.bandwidth
    return m == n and below <= lower and above <= upper


@lx.is_symmetric.register(SparseMatrixLinearOperator)
def _(operator):
    # Semidefinite is Hermitian, which is symmetric if it is real.
    tags = (lx.symmetric_tag, lx.diagonal_tag)
    tags = tags if is_complex(operator.values) else (*tags, *_semidefinite)
    return any(tag in operator.tags for tag in tags) or lx.is_diagonal(operator)


for _check, _tags, _band in (
    (lx.is_diagonal, (lx.diagonal_tag,), (0, 0)),
    (lx.is_tridiagonal, (lx.tridiagonal_tag, lx.diagonal_tag), (1, 1)),
    (lx.is_lower_triangular, (lx.lower_triangular_tag, lx.diagonal_tag), (None, 0)),
    (lx.is_upper_triangular, (lx.upper_triangular_tag, lx.diagonal_tag), (0, None)),
    (lx.has_unit_diagonal, (lx.unit_diagonal_tag,), None),
    (lx.is_positive_semidefinite, (lx.positive_semidefinite_tag,), None),
    (lx.is_negative_semidefinite, (lx.negative_semidefinite_tag,), None),
):

    @_check.register(SparseMatrixLinearOperator)
    def _(operator, tags=_tags, band=_band):
        if any(tag in operator.tags for tag in tags):
            return True
        if band is None:
            return False
        n = operator.in_size()
        lower, upper = (n if width is None else width for width in band)
        return _within(operator, lower, upper)
