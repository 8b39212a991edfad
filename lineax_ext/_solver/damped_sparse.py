"""Sparse damped least squares, by the normal equations, corrected."""

import dataclasses
import functools as ft
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Bool, Float, Inexact, PyTree, ScalarLike

from .._arrangement import cost, Entries
from .._factor import sparse
from .._factor.sparse.lanes import in_lanes, in_lanes_if
from .._factor.sparse_gram import dense_rows, gram
from .._factor.sparse_normal import (
    factorise,
    Factorised,
    has_null_space,
    is_singular,
    Normal,
    normal,
    solve,
)
from .._factor.sparse_product import sparse_product
from .._flat import freeze, FrozenStructure, ravel, result_dtype, thaw, unravel
from .._operator.sparse import SparseMatrixLinearOperator
from .._result import result_of
from .._structure.extract import untagged
from .._structure.pattern import check_is_pattern, Pattern
from .damped import (
    AbstractDampedSolver,
    check_state,
    Damping,
    Evaluated,
    resolve_damping,
    solve_stacked,
    unwrap,
)
from .orientation import orient, Orientation
from .sparse import entries_of


class DampedSparseState(eqx.Module):
    normal: Normal
    damping: Damping | None
    factorised: Factorised | None
    orientation: Orientation
    stacked: bool = eqx.field(static=True)


@ft.lru_cache(maxsize=64)
def way(pattern: Pattern) -> tuple[sparse.Way, cost.Cost]:
    """How JᵀJ of such a J is factorised: as it is predicted to cost least."""
    of = gram(pattern)
    found: list[tuple[sparse.Way, cost.Cost]] = []
    if (scalar := sparse.entry_by_entry(of, True)) is not None:
        found.append((scalar, cost.entry_by_entry(scalar)))
    # A batch of LAPACK's and a collective could wait for each other's threads.
    alone = jax.default_backend() != "cpu" or jax.device_count() == 1
    if alone and (bordered := sparse.bordered(of)) is not None:
        found.append((bordered, cost.bordered(bordered)))
    least = cost.multifrontal_at_least(pattern.shape[1]).total
    if all(predicted.total > least for _, predicted in found):
        fronts = sparse.analyse(of, symmetric=True)
        found.append((fronts, cost.multifrontal(fronts)))
    return min(found, key=lambda one: one[1].total)


def _normal(matrix: SparseMatrixLinearOperator) -> Normal:
    return normal(matrix.values, matrix.pattern, way(matrix.pattern)[0])


def as_sparse(
    operator: lx.AbstractLinearOperator, pattern: Pattern | None
) -> SparseMatrixLinearOperator:
    """The entries of an operator where its pattern has them, without tangents."""
    entries, pattern = entries_of(operator, "DampedSparse", pattern)
    if len(pattern) == 0:
        dtype = result_dtype(operator.out_structure())
        return SparseMatrixLinearOperator(jnp.zeros((0,), dtype), pattern)
    long = dense_rows(pattern)
    if len(long) == 0 or not isinstance(untagged(operator), _transposable):
        values = entries.values()
    else:
        values = _by_rows_and_columns(entries.operator, pattern, long)
    return SparseMatrixLinearOperator(lax.stop_gradient(values), pattern)


# Others have their entries at hand.
_transposable = lx.FunctionLinearOperator, lx.JacobianLinearOperator


def _by_rows_and_columns(
    operator: lx.AbstractLinearOperator, pattern: Pattern, long: np.ndarray
) -> Inexact[Array, " entries"]:
    """The rows `long` one by one; of the others the columns, by their colours.

    By columns alone a row that is full would need an application for each unknown.
    """
    m, _ = pattern.shape
    is_long = np.isin(pattern.rows, long)
    rest = Pattern(pattern.rows[~is_long], pattern.cols[~is_long], pattern.shape)
    dtype = result_dtype(operator.out_structure())
    transpose, structure = operator.T, operator.out_structure()
    units = jnp.asarray(np.equal.outer(long, np.arange(m)), dtype)
    rows = jax.vmap(lambda unit: ravel(transpose.mv(unravel(unit, structure))))(units)
    number = np.searchsorted(long, pattern.rows[is_long])
    taken = rows[number, pattern.cols[is_long]].astype(dtype)
    values = jnp.zeros((len(pattern),), dtype)
    values = values.at[np.flatnonzero(is_long)].set(taken, unique_indices=True)
    if len(rest) == 0:
        return values
    others = Entries(operator, rest).values().astype(dtype)
    return values.at[np.flatnonzero(~is_long)].set(others, unique_indices=True)


class DampedSparse(AbstractDampedSolver[DampedSparseState]):
    """Damped least squares of a sparse operator, in O(fill) memory and time.

    Solves min ‖A x − b‖² + λ ‖D x‖². `init` finds the pattern of A, reads its entries
    by colours, and makes AᴴA, once. `damp` factorises AᴴA + λ D² for one λ and one D,
    columns scaled to length one, by Cholesky's method; A is not read again. A solve is
    that of the seminormal equations, corrected by conjugate gradients that apply A
    itself, with the factors as preconditioner.

    How it is factorised is what is predicted to be the fastest. Entry by entry, on a
    CPU, where little fills in: splines, chains, trees. With a border, where many small
    blocks of unknowns meet each other only by way of up to 1000 others, as points do by
    cameras: the blocks are eliminated all at once, and of the border a dense matrix is
    left, their Schur complement. By fronts, the multifrontal method, everywhere else.

    In digits: the factors know the singular values of B = [A; √λ D], its columns scaled
    to length one, down to √ε of the largest, and the correction regains what is below
    it while there are few such. A solution has a gradient of some ε (‖r‖ + ‖x‖). With
    λ = 0 it is corrected until a correction is less than √ε of it, too: rows of very
    different sizes take some more. Where this is not reached, the result is
    `RESULTS.singular`. `DampedQR` loses nothing with any A, and is the choice for
    ill-conditioned dense ones. The steps of a fit are corrected only where their
    gradients are larger.

    Up to eight rows that are far longer than all others, such as a prior on a sum, stay
    out of the fronts: a matrix of low rank, added by Woodbury's formula, which costs a
    substitution a row. Those of a Jacobian are read by rows, the others by columns.

    Costs the squared lengths of the rows for `init`, a factorisation (see
    [`lineax_ext.SparseCholesky`][]) for `damp`, and twice or more O(fill) a solve.
    Without a damping the columns of A have to be independent. Under `vmap` on a CPU,
    one matrix goes after the other, and fits that have ended cost no factorisation.

    !!! Example

        ```python
        solver = lxe.LevenbergMarquardt(
            rtol=1e-8, atol=1e-8, linear_solver=lxe.DampedSparse()
        )
        sol = optx.least_squares(residuals, solver, y0)
        ```

    **Arguments:**

    - `pattern`: where A may have entries, for those who know: nothing is looked for
        then. An entry outside of it is taken for zero, on trust. optimistix makes
        arguments of the index arrays that a function closes over, and entries at such
        indices could be anywhere: with a graph, such as that of poses, pass
        `infer_pattern(residuals, y0, args)`.

    **Raises:**

    `ValueError` for an operator between a real and a complex space, for a pattern of
    another shape than the operator's, and for the state of another solver.

    ??? cite "References"

        Björck, *Stability analysis of the method of seminormal equations for linear
        least squares problems*, Linear Algebra Appl. 88 (1987),
        doi:10.1016/0024-3795(87)90101-7. Triggs, McLauchlan, Hartley, Fitzgibbon,
        *Bundle adjustment: a modern synthesis*, in Vision Algorithms, Lecture Notes in
        Computer Science 1883 (2000), doi:10.1007/3-540-44480-7_21.
    """

    pattern: Pattern | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.pattern is not None:
            check_is_pattern(self.pattern, "DampedSparse(pattern=…)")

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> DampedSparseState:
        del options
        operator, damped = unwrap(operator)
        matrix = as_sparse(operator, self.pattern)
        orientation = orient(operator)
        state = DampedSparseState(_normal(matrix), None, None, orientation, False)
        if damped is None:
            return state
        return self.damp(state, damped.damping, damped.scale)

    def damp(
        self,
        state: DampedSparseState,
        damping: ScalarLike,
        scale: PyTree[Array] | None = None,
    ) -> DampedSparseState:
        check_state(state, DampedSparseState, self)
        dtype = state.normal.values.dtype
        new = resolve_damping(damping, scale, state.orientation, dtype)
        made = factorise(state.normal, new.root, new.scale)
        return dataclasses.replace(state, damping=new, factorised=made, stacked=True)

    def compute(
        self,
        state: DampedSparseState,
        vector: PyTree[Array],
        options: dict[str, Any],
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        del options
        made = state.factorised
        dtype = state.normal.values.dtype
        m, n = state.normal.pattern.shape
        unless = False
        if made is None:
            real = jnp.finfo(dtype).dtype
            made = factorise(state.normal, jnp.zeros((), real), None)
        if state.damping is not None:
            unless = jnp.isnan(state.damping.root)
        lengths = made.lengths.astype(dtype)
        good = []

        def forward(pair):
            b, c = pair
            c = jnp.zeros((n,), dtype) if c is None else c
            z, _, converged = solve(made, (b, c), unless=unless, settled=~made.damped)
            good.append(converged)
            return z / lengths

        def adjoint(x):
            _, (b, c), converged = solve(made, None, x / lengths)
            good.append(converged)
            return b, c if state.stacked else None

        x = solve_stacked(
            state.orientation, state.stacked, forward, adjoint, vector, dtype
        )
        (converged,) = good
        return x, result_of(is_singular(made) | ~converged), {}

    def assume_full_rank(self) -> bool:
        return False

    def path(self, operator: lx.AbstractLinearOperator, vector: PyTree[Array]):
        matrix = as_sparse(operator, self.pattern)
        vector = ravel(vector).astype(matrix.values.dtype)
        return _Path(_normal(matrix), vector, freeze(operator.in_structure()))

    def spectrum(self, operator: lx.AbstractLinearOperator, vector: PyTree[Array]):
        matrix = as_sparse(operator, self.pattern)
        made = _normal(matrix)
        vector = ravel(vector).astype(made.values.dtype)
        return _Secular(made, vector, _newton(made, vector))


class _Path(eqx.Module):
    normal: Normal
    vector: Inexact[Array, " m"]
    structure: FrozenStructure = eqx.field(static=True)

    def __call__(self, damping: ScalarLike) -> PyTree[Array]:
        x = in_lanes(_Path._solution)(self, jnp.asarray(damping))
        return unravel(x, thaw(self.structure))

    def _solution(self, damping: Float[Array, ""]) -> Inexact[Array, " n"]:
        root = jnp.sqrt(damping).astype(self.normal.norms.dtype)
        made = factorise(self.normal, root, None)
        n = self.normal.pattern.shape[1]
        b = self.vector, jnp.zeros((n,), self.vector.dtype)
        z, *_ = solve(made, b, unless=jnp.isnan(root), corrected=False)
        return z / made.lengths.astype(z.dtype)

    def multiply(self, x: Inexact[Array, " n"]) -> Inexact[Array, " m"]:
        return self.normal.multiply(x)


def _newton(normal: Normal, vector: Inexact[Array, " m"]) -> Evaluated:
    """x(0); where that does not exist, as that of poses which nothing holds, x(λ) for a
    λ that is little beside A. One loop: a factorisation is compiled once."""
    # As large as a pivot has to be: then none is raised, and a solve takes two steps.
    dtype = normal.norms.dtype
    least = jnp.sqrt(jnp.asarray(jnp.finfo(dtype).eps, dtype))
    small = least * jnp.max(normal.norms, initial=0) ** 2

    def evaluate(state):
        _, good, count = state
        # Under `vmap`, one that is there is not asked for again.
        damping = jnp.where(count == 0, 0, jnp.where(good, jnp.nan, small))
        evaluated, good = _evaluate(normal, vector, damping)
        return evaluated, good, count + 1

    def unfinished(state):
        _, good, count = state
        return ~good & (count < 2)

    shape = eqx.filter_eval_shape(_evaluate, normal, vector, 0)[0]
    zeros = jax.tree_util.tree_map(lambda x: jnp.zeros(x.shape, x.dtype), shape)
    start = zeros, jnp.array(False), jnp.int32(0)
    return lax.while_loop(unfinished, evaluate, start)[0]


def _evaluate(
    normal: Normal, vector: Inexact[Array, " m"], damping: ScalarLike
) -> tuple[Evaluated, Bool[Array, ""]]:
    """Zeros for a λ or a vector that are not numbers, and that is what they cost."""
    damping = jnp.asarray(damping, normal.norms.dtype)
    damping = jnp.where(jnp.isfinite(jnp.linalg.norm(vector)), damping, jnp.nan)
    return in_lanes_if(_found)(normal, vector, damping, ~jnp.isnan(damping))


def _found(
    normal: Normal, vector: Inexact[Array, " m"], damping: Float[Array, ""]
) -> tuple[Evaluated, Bool[Array, ""]]:
    made = factorise(normal, jnp.sqrt(damping), None)
    zeros = jnp.zeros((normal.pattern.shape[1],), vector.dtype)
    singular = has_null_space(made)
    z, _, good = solve(made, (vector, zeros), unless=singular, corrected=False)
    x = z / made.lengths.astype(vector.dtype)
    # The derivative is −xᴴ (AᴴA + λ)⁻¹ x / ‖x‖.
    right = x / made.lengths.astype(x.dtype)
    enough = float(jnp.finfo(vector.dtype).eps) ** 0.4  # of a slope: six digits
    _, y, _ = solve(made, None, right, unless=~good, corrected=False, enough=enough)
    slope = -sum(jnp.sum(jnp.abs(part) ** 2) for part in y)
    norm = jnp.linalg.norm(x)
    slope = slope / jnp.where(norm > 0, norm, 1)
    evaluated = Evaluated(x, norm, slope, damping)
    return evaluated, good


class _Secular(eqx.Module):
    """As `Spectrum`, but each λ costs a factorisation."""

    normal: Normal
    vector: Inexact[Array, " m"]
    undamped: Evaluated

    def newton(self) -> Evaluated:
        return self.undamped

    def evaluate(self, damping: ScalarLike) -> Evaluated:
        return _evaluate(self.normal, self.vector, damping)[0]

    def solution(self, x: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        return x

    def multiply(self, x: Inexact[Array, " n"]) -> Inexact[Array, " m"]:
        return self.normal.multiply(x)

    def gradient(self) -> Float[Array, ""]:
        return jnp.linalg.norm(self.adjoint(self.vector))

    def adjoint(self, vector: Inexact[Array, " m"]) -> Inexact[Array, " n"]:
        pattern, values = self.normal.pattern, jnp.conj(self.normal.values)
        g = sparse_product(values, pattern, vector, transposed=True)
        return g * self.normal.norms.astype(g.dtype)

    def again(
        self, damping: Float[Array, ""], gradient: Inexact[Array, " n"]
    ) -> Inexact[Array, " n"]:
        return in_lanes(_again)(self.normal, gradient, damping)


def _again(
    normal: Normal, gradient: Inexact[Array, " n"], damping: Float[Array, ""]
) -> Inexact[Array, " n"]:
    made = factorise(normal, jnp.sqrt(damping), None)
    lengths = made.lengths.astype(gradient.dtype)
    unless = jnp.isnan(damping)
    z, *_ = solve(made, None, gradient / lengths, unless=unless, corrected=False)
    return z / lengths
