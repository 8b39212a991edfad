"""LU of a dense matrix that says when the matrix is singular."""

import dataclasses
from typing import Any

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import lineax as lx
from jaxtyping import Array, Bool, Inexact

from .householder import default_rcond, result_of


class _CheckedLUState(eqx.Module):
    lu: Inexact[Array, "n n"]
    pivots: Array
    singular: Bool[Array, ""]
    transposed: bool = eqx.field(static=True, default=False)


class _CheckedLU(lx.AbstractLinearSolver[_CheckedLUState]):
    """`lineax.LU`, for a square `MatrixLinearOperator`, and a check of the pivots.

    A matrix whose columns depend on each other is seldom exactly singular once it is
    rounded: `lineax.LU` then returns an answer of the size of 1/eps.
    """

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> _CheckedLUState:
        del options
        matrix = lax.stop_gradient(operator.as_matrix())
        n, _ = matrix.shape
        lu, pivots = jsl.lu_factor(matrix)
        # A pivot counts as zero if it is no larger than the rounding error in it, that
        # of a sum of which the absolute values add up to (|L| |U|)_jj. No scaling of
        # rows or columns makes a difference.
        magnitude = jnp.abs(lu)
        pivot = jnp.diagonal(magnitude)
        terms = jnp.sum(jnp.tril(magnitude, -1) * jnp.triu(magnitude, 1).T, axis=1)
        rcond = jnp.asarray(default_rcond(n, n, matrix.dtype), pivot.dtype)
        regular = (pivot > rcond * terms) & (pivot > 0) & jnp.isfinite(pivot)
        return _CheckedLUState(lu, pivots, ~jnp.all(regular))

    def compute(
        self,
        state: _CheckedLUState,
        vector: Inexact[Array, " n"],
        options: dict[str, Any],
    ) -> tuple[Inexact[Array, " n"], lx.RESULTS, dict[str, Any]]:
        del options
        solution = jsl.lu_solve(
            (state.lu, state.pivots), vector, trans=int(state.transposed)
        )
        return solution, result_of(state.singular), {}

    def transpose(self, state: _CheckedLUState, options: dict[str, Any]):
        return dataclasses.replace(state, transposed=not state.transposed), options

    def conj(self, state: _CheckedLUState, options: dict[str, Any]):
        return dataclasses.replace(state, lu=jnp.conj(state.lu)), options

    def assume_full_rank(self) -> bool:
        return True
