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
from .._structure.pattern import has_structure, Pattern
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


def _semidefinite_tags(operator: lx.AbstractLinearOperator) -> list[object]:
    tags = []
    if lx.is_positive_semidefinite(operator):
        tags.append(lx.positive_semidefinite_tag)
    if lx.is_negative_semidefinite(operator):
        tags.append(lx.negative_semidefinite_tag)
    return tags


class AutoStructuredLinearSolver(lx.AbstractLinearSolver[_AutoStructuredState]):
    """Finds the structure of a Jacobian by itself, and solves with that.

    Solves A x = b as `lineax.AutoLinearSolver` does, with the same answers; of A, where
    it is only given by a function, it finds out first which entries can be other than
    zero. That is done once, while JAX traces, from the operations of the function and
    not from their values. What is then chosen:

    - a diagonal, a tridiagonal or a triangular matrix is solved as such;
    - connected components of the unknowns are solved one by one, all at once;
    - a band, as it stands or after a reverse Cuthill–McKee ordering, is solved by
        [`lineax_ext.BlockTridiagonal`][], unless an eighth of the matrix is narrower;
    - everything else is dense: LU if it is square, or Cholesky if it is tagged
        semidefinite, and [`lineax_ext.QRMultiply`][] if not.

    In all cases the entries are read by colours: a band of five diagonals with five
    applications of the operator, whatever n is.

    Needs no tags. Those that the operator has, diagonal, tridiagonal or triangular, are
    used first, and then nothing is looked for; neither is it for operators that hold
    their entries, such as `lineax.MatrixLinearOperator`. Needs `asdex`: the extra
    `auto`.

    For n unknowns and a bandwidth of k: O(n k²) once, in `init`, and O(n k) for each
    right-hand side, in O(n k) memory. To find the pattern of a band takes hundredths of
    a second for n = 1000, less than a second for n = 100,000; and once, as patterns are
    cached. (Of a triangle it takes time and memory in proportion to its entries.)

    The pattern is one for all values. What depends on values is counted as if it could
    be anywhere: a gather by indices that are computed from the unknowns, a sort, and
    every loop whose number of steps is not known give a dense matrix, and so does a
    gather by an array of indices, or a product with a constant matrix, by the time that
    `lx.linear_solve` or optimistix has made arguments out of such constants. Slices,
    `jnp.roll`, `jnp.pad`, `jnp.concatenate` and convolutions are followed exactly. A
    primitive that `asdex` does not know, such as `fft`, makes the matrix dense, with a
    warning that names it.

    Measured in float64 on two CPU cores: a tridiagonal matrix is faster than a dense
    one from n = 8 on, and so it is always used. A band that needs blocks of size k is
    so from n ≈ 64 or n ≈ 8 k on, whichever is more: below, the matrix is dense.

    !!! Example

        ```python
        solver = lxe.AutoStructuredLinearSolver()
        solution = lx.linear_solve(operator, vector, solver)
        # In diffrax:
        # dfx.Kvaerno5(root_finder=dfx.VeryChord(1e-6, 1e-6, linear_solver=solver))
        ```

    **Arguments:**

    - `well_posed`: as for `lineax.AutoLinearSolver`. With `True` a non-square operator
        is an error. With `False` the pseudoinverse solution is returned, of any
        operator: from its diagonal if it is diagonal, or else from a dense
        `QRMultiply(pivoting=True)`. With `None` a square operator must be regular, and
        a non-square one have full rank.

    **Returns:**

    From `lx.linear_solve`: a solution; `RESULTS.singular` for a singular operator. (Of
    a tridiagonal one only if a pivot is exactly zero, as by `lineax.Tridiagonal`; and
    of a band also if it is regular, but singular to working precision.)

    **Raises:**

    `ValueError` for a non-square operator with `well_posed=True`, and for one between a
    real and a complex space. `ImportError` if `asdex` is missing.

    ??? cite "References"

        Hill, Dalle, *Sparser, Better, Faster, Stronger: Sparsity Detection for
        Efficient Automatic Differentiation* (2025), arXiv:2501.17737. Curtis, Powell,
        Reid, *On the Estimation of Sparse Jacobian Matrices*, IMA Journal of Applied
        Mathematics 13 (1974), doi:10.1093/imamat/13.1.117. Cuthill, McKee, *Reducing
        the bandwidth of sparse symmetric matrices*, Proc. 24th ACM National Conference
        (1969), doi:10.1145/800195.805928.
    """

    well_posed: bool | None = eqx.field(static=True, default=None)
    pattern: Pattern | None = eqx.field(static=True, default=None)

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
                "`AutoStructuredLinearSolver(well_posed=True)` was given an operator "
                f"of shape {(m, n)}, which is not square. For a least-squares problem, "
                "pass `well_posed=None` or `well_posed=False`."
            )
        inner, solver = untagged(operator), None
        if has_structure(operator):
            # As without the tags: lineax's `None` takes a pseudoinverse for diagonals.
            regular = self.well_posed is None and m == n
            solver = lx.AutoLinearSolver(True if regular else self.well_posed)
        elif isinstance(inner, BlockTridiagonalLinearOperator):
            solver = None if self.well_posed is False else BlockTridiagonal()
        if solver is not None and m > 0:
            return _AutoStructuredState(solver.init(operator, options), solver)
        operator = frozen(operator, "AutoStructuredLinearSolver")
        if isinstance(inner, _explicit) or 0 in (m, n):
            return self._dense(operator, None)
        return self._detected(operator)

    def _detected(self, operator: lx.AbstractLinearOperator) -> _AutoStructuredState:
        pattern = detect(operator) if self.pattern is None else self.pattern
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
