"""Sparse direct solvers, of any pattern."""

from typing import Any

import lineax as lx
from jaxtyping import Array, PyTree

from .._arrangement import Entries, Sparse
from .._checks import check_state
from .._structure.detect import detect_in_shape
from .._structure.pattern import check_fits, full, Pattern
from .._tags import definiteness
from .arranged import Arranged
from .orientation import frozen


def entries_of(
    operator: lx.AbstractLinearOperator, solver: str, pattern: Pattern | None = None
) -> tuple[Entries, Pattern]:
    """The entries of an operator in the places of its pattern, without tangents.

    The pattern is found, unless it is given.
    """
    operator = frozen(operator, solver)
    if pattern is None:
        shape, found = detect_in_shape(operator)
        pattern = full(*shape) if found is None else found
    else:
        check_fits(pattern, operator, f"{solver}(pattern=…)")
    return Entries(operator, pattern), pattern


def _init(operator: lx.AbstractLinearOperator, solver: str, definite: int) -> Arranged:
    m, n = operator.out_size(), operator.in_size()
    if m != n:
        raise ValueError(
            f"`{solver}` was given an operator of shape {(m, n)}, which is not square."
        )
    entries, pattern = entries_of(operator, solver)
    return Arranged.of(entries.operator, Sparse(pattern, definite), entries)


class _AbstractSparse(lx.AbstractLinearSolver[Arranged]):
    """All but `init`, which says what may be assumed of the matrix."""

    def compute(
        self, state: Arranged, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        del options
        check_state(state, Arranged, self)
        return state.solve(vector)

    def transpose(self, state: Arranged, options: dict[str, Any]):
        return state.transpose(), options

    def conj(self, state: Arranged, options: dict[str, Any]):
        return state.conj(), options

    def assume_full_rank(self) -> bool:
        return True


class SparseLU(_AbstractSparse):
    """Sparse LU factorisation, A⁻¹ b, entry by entry or by the multifrontal method.

    Takes a [`lineax_ext.SparseMatrixLinearOperator`][], and any operator that is given
    by a function: its pattern is then found, and its entries are read by colours.

    Made of XLA operations alone: it runs wherever JAX does, in every precision, under
    `jit`, under `vmap` over values and over vectors (which become columns), and is
    differentiable any number of times. What is irregular is done once for each pattern,
    in NumPy, while JAX traces: rows are matched so that no zero is on the diagonal, the
    graph is dissected, and its parts are gathered into dense fronts. These are
    factorised level by level, many at once, with pivoting inside each of them. Where
    little fills in, as for a tree, a band, a circuit or a grid in the plane, a CPU goes
    through the entries in one loop, which compiles in a second, for one matrix after
    the other under `vmap`; there rows do not change places. A pivot that is too small
    is raised, and the residual is taken down by refinement and then by GMRES, with the
    factors as preconditioner. Where entries are factorised one by one and |L| |D| |U|
    is of the size of A, no residual has to be looked at.

    Rows and columns are scaled by powers of two. A solution has a residual of 64 ε
    (‖A‖ ‖x‖ + ‖b‖) at most; where that cannot be reached, `RESULTS.singular` says so.

    Costs O(fill) memory, O(fill) a right-hand side, and once the arithmetic of the
    fronts: O(n^1.5) on a grid in the plane, O(n²) in space, O(n) for a tree.

    !!! Example

        ```python
        solution = lx.linear_solve(operator, vector, lxe.SparseLU())
        ```

    **Returns:**

    From `lx.linear_solve`: a solution; `RESULTS.singular` for an operator that is
    singular to working precision or not finite.

    **Raises:**

    `ValueError` for an operator that is not square, for one between a real and a
    complex space, and for a pattern of which every matrix is singular.

    ??? cite "References"

        Duff, Reid, *The multifrontal solution of indefinite sparse symmetric linear
        equations*, ACM Trans. Math. Softw. 9 (1983), doi:10.1145/356044.356047. George,
        *Nested dissection of a regular finite element mesh*, SIAM J. Numer. Anal. 10
        (1973), doi:10.1137/0710032. Li, Demmel, *Making sparse Gaussian elimination
        scalable by static pivoting*, SC '98, doi:10.1109/SC.1998.10030.
    """

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> Arranged:
        del options
        return _init(operator, "SparseLU", definite=0)


class SparseCholesky(_AbstractSparse):
    """Sparse Cholesky factorisation, A⁻¹ b for a Hermitian positive definite A.

    As [`lineax_ext.SparseLU`][], without pivoting; fronts take less time, and entry by
    entry it is half of the operations. Needs an operator that is tagged positive or
    negative semidefinite, and is then definite.

    !!! Example

        ```python
        tagged = lx.TaggedLinearOperator(operator, lx.positive_semidefinite_tag)
        solution = lx.linear_solve(tagged, vector, lxe.SparseCholesky())
        ```

    **Returns:**

    From `lx.linear_solve`: a solution; `RESULTS.singular` for an operator that is
    not definite to working precision, or not finite.

    **Raises:**

    `ValueError` for an operator without such a tag, and otherwise as `SparseLU`.

    ??? cite "Reference"

        Liu, *The multifrontal method for sparse matrix solution: theory and practice*,
        SIAM Review 34 (1992), doi:10.1137/1034004.
    """

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> Arranged:
        del options
        definite = definiteness(operator)
        if definite == 0:
            raise ValueError(
                "`SparseCholesky` needs an operator that is tagged positive or "
                f"negative semidefinite; this `{type(operator).__name__}` is not. Use "
                "`lineax_ext.SparseLU`, or tag it."
            )
        return _init(operator, "SparseCholesky", definite)
