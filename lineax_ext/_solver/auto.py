"""A solver that finds the structure of a Jacobian itself."""

import dataclasses
from typing import Any

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, PyTree

from .._flat import ravel, thaw, unravel
from .._materialise import as_matrix
from .._operator.block_tridiagonal import BlockTridiagonalLinearOperator
from .._structure.arrange import arrange
from .._structure.detect import detect
from .._structure.extract import untagged
from .._structure.pattern import Pattern
from .._structure.rearranged import coloured_matrix
from .block_tridiagonal import BlockTridiagonal
from .checked_lu import _CheckedLU
from .orientation import frozen, orient, Orientation
from .qr_multiply import QRMultiply
from .rearranged import factorise, solve, solver_of


class _AutoStructuredState(eqx.Module):
    """The state of `solver`: for the operator itself, if there is no orientation; for
    its matrix, if there is no pattern; else for the matrix as `arrange` has it."""

    state: PyTree[Any]
    solver: lx.AbstractLinearSolver = eqx.field(static=True)
    orientation: Orientation | None = None
    pattern: Pattern | None = eqx.field(static=True, default=None)
    conjugated: bool = eqx.field(static=True, default=False)


# Operators that have their entries at hand, of which no pattern is known.
_explicit = (
    lx.MatrixLinearOperator,
    lx.PyTreeLinearOperator,
    BlockTridiagonalLinearOperator,
)


def _is_structured(operator: lx.AbstractLinearOperator) -> bool:
    return (
        lx.is_diagonal(operator)
        or lx.is_tridiagonal(operator)
        or lx.is_lower_triangular(operator)
        or lx.is_upper_triangular(operator)
    )


def _semidefinite_tags(operator: lx.AbstractLinearOperator) -> list[object]:
    tags = []
    if lx.is_positive_semidefinite(operator):
        tags.append(lx.positive_semidefinite_tag)
    if lx.is_negative_semidefinite(operator):
        tags.append(lx.negative_semidefinite_tag)
    return tags


class AutoStructuredLinearSolver(lx.AbstractLinearSolver[_AutoStructuredState]):
    """DOC"""

    well_posed: bool | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.well_posed not in (None, True, False):
            raise ValueError(
                f"`AutoStructuredLinearSolver(well_posed={self.well_posed!r})` must be "
                "`None`, `True` or `False`."
            )

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> _AutoStructuredState:
        m, n = operator.out_size(), operator.in_size()
        if self.well_posed is True and m != n:
            raise ValueError(
                "`AutoStructuredLinearSolver(well_posed=True)` was given an operator of "
                f"shape {(m, n)}, which is not square. For a least-squares problem, "
                "pass `well_posed=None` or `well_posed=False`."
            )
        inner, solver = untagged(operator), None
        if _is_structured(operator):
            solver = lx.AutoLinearSolver(self.well_posed)
        elif isinstance(inner, BlockTridiagonalLinearOperator):
            solver = None if self.well_posed is False else BlockTridiagonal()
        if solver is not None and m > 0:
            return _AutoStructuredState(solver.init(operator, options), solver)
        operator = frozen(operator, "AutoStructuredLinearSolver")
        if isinstance(inner, _explicit) or 0 in (m, n):
            return self._dense(operator, None)
        return self._detected(operator)

    def _detected(self, operator: lx.AbstractLinearOperator) -> _AutoStructuredState:
        pattern = detect(operator)
        arrangement = None if pattern is None else arrange(pattern)
        if pattern is None or arrangement is None or arrangement.kind == "dense":
            return self._dense(operator, pattern)
        solver = solver_of(arrangement)
        if self.well_posed is False:
            if not isinstance(solver, lx.Diagonal):
                return self._dense(operator, pattern)
            solver = lx.Diagonal()
        state = factorise(solver, operator, pattern)
        return _AutoStructuredState(state, solver, orient(operator), pattern)

    def _dense(
        self, operator: lx.AbstractLinearOperator, pattern: Pattern | None
    ) -> _AutoStructuredState:
        if pattern is None:
            matrix = as_matrix(operator)
        else:
            matrix = coloured_matrix(operator, pattern)
        m, n = matrix.shape
        tags = _semidefinite_tags(operator)
        if self.well_posed is False:
            solver = QRMultiply(pivoting=True)
        elif m != n or n == 0:
            solver = QRMultiply()
        else:
            solver = _CheckedLU() if len(tags) == 0 else lx.Cholesky()
        # Once more for what the operator closes over.
        matrix = lx.MatrixLinearOperator(lax.stop_gradient(matrix), tags)
        return _AutoStructuredState(solver.init(matrix, {}), solver, orient(operator))

    def compute(
        self,
        state: _AutoStructuredState,
        vector: PyTree[Array],
        options: dict[str, Any],
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        # Ā⁻¹ b = conj(A⁻¹ b̄).
        conj = lambda tree: jtu.tree_map(jnp.conj, tree) if state.conjugated else tree
        vector, orientation = conj(vector), state.orientation
        if orientation is None:
            out, result, _ = state.solver.compute(state.state, vector, options)
            return conj(out), result, {}
        b, transposed = ravel(vector), orientation.transposed
        if state.pattern is None:
            x, result, _ = state.solver.compute(state.state, b, {})
        else:
            arrangement = arrange(state.pattern)
            x, result = solve(state.solver, state.state, arrangement, transposed, b)
        structures = orientation.in_structure, orientation.out_structure
        return conj(unravel(x, thaw(structures[transposed]))), result, {}

    def transpose(self, state: _AutoStructuredState, options: dict[str, Any]):
        inner, options = state.solver.transpose(state.state, options)
        orientation = state.orientation
        orientation = None if orientation is None else orientation.transpose()
        return dataclasses.replace(state, state=inner, orientation=orientation), options

    def conj(self, state: _AutoStructuredState, options: dict[str, Any]):
        conjugated = not state.conjugated
        return dataclasses.replace(state, conjugated=conjugated), options

    def assume_full_rank(self) -> bool:
        return self.well_posed is not False
