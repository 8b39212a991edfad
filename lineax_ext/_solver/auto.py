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


# Operators that have their entries at hand.
_explicit = (
    lx.MatrixLinearOperator,
    lx.PyTreeLinearOperator,
    lx.DiagonalLinearOperator,
    lx.TridiagonalLinearOperator,
    lx.IdentityLinearOperator,
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
        inner = untagged(operator)
        if _is_structured(operator) or isinstance(inner, _explicit):
            solver = lx.AutoLinearSolver(self.well_posed)
            return _AutoStructuredState(solver.init(operator, options), solver)
        if self.well_posed is not False:
            if isinstance(inner, BlockTridiagonalLinearOperator):
                solver = BlockTridiagonal()
                return _AutoStructuredState(solver.init(operator, options), solver)
        return self._detected(frozen(operator, "AutoStructuredLinearSolver"))

    def _detected(self, operator: lx.AbstractLinearOperator) -> _AutoStructuredState:
        orientation, pattern = orient(operator), detect(operator)
        arrangement = None if pattern is None else arrange(pattern)
        if arrangement is not None and arrangement.kind != "dense":
            diagonal = arrangement.kind == "band" and arrangement.half_bandwidth == 0
            if self.well_posed is not False or diagonal:
                solver = solver_of(arrangement)
                if self.well_posed is False:
                    solver = lx.Diagonal()
                state = factorise(solver, operator, pattern)
                return _AutoStructuredState(state, solver, orientation, pattern)

        read = as_matrix if pattern is None else lambda x: coloured_matrix(x, pattern)
        matrix, tags = lax.stop_gradient(read(operator)), ()
        if self.well_posed is False:
            solver = QRMultiply(pivoting=True)
        elif operator.out_size() != operator.in_size():
            solver = QRMultiply()
        elif len(tags := _semidefinite_tags(operator)) > 0:
            solver = lx.Cholesky()
        else:
            solver = lx.LU()
        state = solver.init(lx.MatrixLinearOperator(matrix, tags), {})
        return _AutoStructuredState(state, solver, orientation)

    def compute(
        self,
        state: _AutoStructuredState,
        vector: PyTree[Array],
        options: dict[str, Any],
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        # Ā⁻¹ b = conj(A⁻¹ b̄). (`lineax.LU.conj`, of 0.1.1, transposes as well.)
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
