"""A solver that finds the structure of a Jacobian itself."""

import dataclasses
from typing import Any, TypeAlias

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, PyTree

from .._arrangement import arrange, Dense, Entries
from .._checks import check_state
from .._flat import thaw, unravel
from .._operator.block_tridiagonal import BlockTridiagonalLinearOperator
from .._structure.detect import detect
from .._structure.extract import untagged
from .._structure.known import known_pattern
from .._structure.pattern import (
    check_fits,
    check_is_pattern,
    has_structure,
    Pattern,
)
from .._tags import definiteness
from .arranged import Arranged
from .block_tridiagonal import BlockTridiagonal
from .orientation import frozen, orient, Orientation
from .qr_multiply import QRMultiply


class _Delegated(eqx.Module):
    """The state of another solver: for the operator itself, if there is no orientation;
    else for its matrix."""

    state: PyTree[Any]
    solver: lx.AbstractLinearSolver = eqx.field(static=True)
    orientation: Orientation | None = None
    conjugated: bool = eqx.field(static=True, default=False)


_AutoStructuredState: TypeAlias = Arranged | _Delegated


# Operators that have their entries at hand, of which no pattern is known.
_explicit = (
    lx.MatrixLinearOperator,
    lx.PyTreeLinearOperator,
    BlockTridiagonalLinearOperator,
)

_tags = {
    0: (),
    1: lx.positive_semidefinite_tag,
    -1: lx.negative_semidefinite_tag,
}


class AutoStructuredLinearSolver(lx.AbstractLinearSolver[_AutoStructuredState]):
    """Finds the structure of a Jacobian by itself, and solves with that.

    Solves A x = b as `lineax.AutoLinearSolver` does, with the same answers; of A, where
    it is only given by a function, it finds out first which entries can be other than
    zero. That is done once, while JAX traces, from the operations of the function and
    not from their values. What is then chosen:

    - a diagonal, a tridiagonal or a triangular matrix is solved as such;
    - connected components of the unknowns are solved side by side: blocks of up to 16
        are eliminated or inverted all at once, larger ones go to LAPACK one by one;
    - a band, as it stands or after a reverse Cuthill–McKee ordering, is eliminated in
        blocks, as by [`lineax_ext.BlockTridiagonal`][];
    - any other sparse matrix is factorised as by [`lineax_ext.SparseLU`][];
    - everything else is dense: LU if it is square, or Cholesky if it is tagged
        semidefinite, and [`lineax_ext.QRMultiply`][] if not.

    Of those that have room for the pattern it is the one that is predicted to be the
    fastest, from counts of operations that were calibrated on two CPU cores.

    In all cases the entries are read by colours: a band of five diagonals with five
    applications of the operator, whatever n is.

    Needs no tags. Those that the operator has, diagonal, tridiagonal or triangular, are
    used first, and then nothing is looked for; neither is it for operators that hold
    their entries, such as `lineax.MatrixLinearOperator`.

    For n unknowns and a bandwidth of k: O(n k²) once, in `init`, and O(n k) for each
    right-hand side, in O(n k) memory; O(fill) memory for a sparse matrix. To find the
    pattern of a band takes hundredths of a second for n = 1000, less than a second for
    n = 100,000; and once, as patterns are cached. (A triangle takes time and memory in
    proportion to its entries.)

    The pattern is one for all values. What depends on values is counted as if it could
    be anywhere: a gather by indices that are computed from the unknowns, a sort along
    its axis, and what a loop may reach in any number of steps. So does a gather by an
    array of indices, or a product with a constant matrix, by the time that
    `lx.linear_solve` or optimistix has made arguments out of such constants. A
    primitive without a rule, such as a callback, makes all of its outputs depend on all
    that reaches it; a warning names it if the matrix becomes dense for it.

    A tridiagonal matrix is faster than a dense one from n = 8 on, and so it is always
    used. A band that needs blocks of size k is so from about n = 64 or n = 8 k on,
    whichever is more; below, the matrix is dense.

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
    - `pattern`: where the operator may have entries, for those who know: nothing is
        looked for then. An entry outside of it is taken for zero, on trust;
        [`lineax_ext.check_pattern`][] finds out.

    **Returns:**

    From `lx.linear_solve`: a solution; `RESULTS.singular` for a singular operator. (Of
    a tridiagonal one only if a pivot is exactly zero, as by `lineax.Tridiagonal`; and
    of a band also if it is regular, but singular to working precision.)

    **Raises:**

    `ValueError` for a non-square operator with `well_posed=True`, for one between a
    real and a complex space, and for a pattern of another shape than the operator's.

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
        if isinstance(self.well_posed, Pattern):
            raise ValueError(
                "`AutoStructuredLinearSolver` was given a pattern for its first "
                "argument, `well_posed`. Pass it by name: `pattern=…`."
            )
        if not any(self.well_posed is x for x in (None, True, False)):
            raise ValueError(
                f"`AutoStructuredLinearSolver(well_posed={self.well_posed!r})` must be "
                "`None`, `True` or `False`."
            )
        if self.pattern is not None:
            check_is_pattern(self.pattern, "AutoStructuredLinearSolver(pattern=…)")

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
        pattern = known_pattern(operator) if self.pattern is None else self.pattern
        if pattern is not None:
            check_fits(pattern, operator, "AutoStructuredLinearSolver(pattern=…)")
        inner, solver = untagged(operator), None
        if pattern is None and has_structure(operator):
            # As without the tags: lineax's `None` takes a pseudoinverse for diagonals.
            regular = self.well_posed is None and m == n
            solver = lx.AutoLinearSolver(True if regular else self.well_posed)
        elif isinstance(inner, BlockTridiagonalLinearOperator):
            solver = None if self.well_posed is False else BlockTridiagonal()
        if solver is not None and m > 0:
            return _Delegated(solver.init(operator, options), solver)
        operator = frozen(operator, "AutoStructuredLinearSolver")
        if pattern is None and not isinstance(inner, _explicit) and m * n > 0:
            pattern = detect(operator)
        return self._init(operator, Entries(operator, pattern))

    def _init(
        self, operator: lx.AbstractLinearOperator, entries: Entries
    ) -> _AutoStructuredState:
        m, n = operator.out_size(), operator.in_size()
        definite, pattern = definiteness(operator), entries.pattern
        if self.well_posed is not False and m == n > 0:
            found = None if pattern is None else arrange(pattern, definite)
            arrangement = Dense(n) if found is None else found
            if definite == 0 or not isinstance(arrangement, Dense):
                return Arranged.of(operator, arrangement, entries)
            solver = lx.Cholesky()
        elif self.well_posed is False:
            solver = QRMultiply(pivoting=True)
            # Of a matrix without entries lineax asks for the largest one.
            if m == n > 0 and pattern is not None and pattern.bandwidth == (0, 0):
                solver = lx.Diagonal()
        else:
            solver = QRMultiply()
        # Once more for what the operator closes over.
        if isinstance(solver, lx.Diagonal):
            diagonal = lax.stop_gradient(entries.band(0, 0)[0])
            matrix = lx.DiagonalLinearOperator(diagonal)
        else:
            matrix = lx.MatrixLinearOperator(
                lax.stop_gradient(entries.matrix()), _tags[definite]
            )
        return _Delegated(solver.init(matrix, {}), solver, orient(operator))

    def compute(
        self,
        state: _AutoStructuredState,
        vector: PyTree[Array],
        options: dict[str, Any],
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        check_state(state, Arranged | _Delegated, self)
        if isinstance(state, Arranged):
            return state.solve(vector)
        # Ā⁻¹ b = conj(A⁻¹ b̄).
        conj = lambda tree: jtu.tree_map(jnp.conj, tree) if state.conjugated else tree
        vector, orientation = conj(vector), state.orientation
        if orientation is None:
            x, result, _ = state.solver.compute(state.state, vector, options)
            return conj(x), result, {}
        flat = orientation.flat(vector)
        x, result, _ = state.solver.compute(state.state, flat, {})
        structures = orientation.in_structure, orientation.out_structure
        x = unravel(x, thaw(structures[orientation.transposed]))
        return conj(x), result, {}

    def transpose(self, state: _AutoStructuredState, options: dict[str, Any]):
        if isinstance(state, Arranged):
            return state.transpose(), options
        inner, options = state.solver.transpose(state.state, options)
        orientation = state.orientation
        orientation = None if orientation is None else orientation.transpose()
        return dataclasses.replace(state, state=inner, orientation=orientation), options

    def conj(self, state: _AutoStructuredState, options: dict[str, Any]):
        if isinstance(state, Arranged):
            return state.conj(), options
        conjugated = not state.conjugated
        return dataclasses.replace(state, conjugated=conjugated), options

    def assume_full_rank(self) -> bool:
        return self.well_posed is not False
