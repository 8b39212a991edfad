"""Damped Newton descents that factorise on acceptance alone."""

import abc
import dataclasses
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jaxtyping import Array, Bool, Inexact, PyTree, Scalar, ScalarLike

from .._checks import called
from .._factor.sparse.lanes import in_lanes
from .._flat import (
    freeze,
    FrozenStructure,
    is_complex,
    ravel,
    result_dtype,
    thaw,
    unravel,
)
from .._materialise import as_matrix, sharded_columns
from .._rows import Rows
from .._solver.damped import AbstractDampedSolver, Secular
from .._solver.damped_qr import DampedQR
from .._solver.damped_sparse import as_sparse, DampedSparse
from .._solver.damped_svd import DampedSVD
from .._solver.sharding import check_summable, find_rows
from .._structure.pattern import Pattern
from .secular import secular_solution


_Y = TypeVar("_Y")
_Problem = TypeVar("_Problem")


#
# The linear problem at a point
#


@jax.custom_jvp
def _opaque(x: PyTree[Array]) -> PyTree[Array]:
    return x


@_opaque.defjvp
def _(primals, tangents):
    raise NotImplementedError(
        "The steps of `lineax_ext.LevenbergMarquardt` cannot be differentiated: a "
        "factorisation that is kept has no derivative. Differentiate the solution "
        "instead, by `adjoint=optimistix.ImplicitAdjoint()`, which is the default; or "
        "use `optimistix.LevenbergMarquardt`."
    )


def _is_split(f_info: Any) -> bool:
    """Whether residuals are complex and parameters real; errors for what cannot be."""
    if not isinstance(f_info, optx.FunctionInfo.ResidualJac):
        raise ValueError(
            "The descents of `lineax_ext` are for least squares, as in "
            "`optimistix.least_squares`. To damp a Hessian, use those of `optimistix`."
        )
    residual_complex = is_complex(f_info.residual)
    parameters = jax.tree.leaves(f_info.jac.in_structure())
    parameters_complex = [is_complex(leaf) for leaf in parameters]
    if any(parameters_complex) and not (all(parameters_complex) and residual_complex):
        raise ValueError(
            "Complex parameters need complex residuals, and no real parameters among "
            "them. Use their real and imaginary parts as the parameters."
        )
    return residual_complex and not any(parameters_complex)


def _linear_problem(
    f_info: Any, rows: Rows | None
) -> tuple[Inexact[Array, "m n"], Inexact[Array, " m"]]:
    """J and r, dense; with `rows`, in their order, and with zeros that fill a block."""
    if rows is None:
        matrix, residual = as_matrix(f_info.jac), ravel(f_info.residual)
    else:
        matrix = sharded_columns(f_info.jac, rows)
        residual = rows.blocks(f_info.residual)
    if _is_split(f_info):
        # |r|² = (Re r)² + (Im r)²
        join = lambda x: jnp.concatenate([x.real, x.imag], 0 if rows is None else -1)
        matrix, residual = join(matrix), join(residual)
    if rows is not None:
        matrix = matrix.reshape(matrix.shape[0], -1).T
        residual = residual.reshape(-1)
    return lax.stop_gradient(_opaque((matrix, residual)))


def _sparse_problem(
    f_info: Any, pattern: Pattern | None
) -> tuple[lx.AbstractLinearOperator, Inexact[Array, " m"]]:
    """As `_linear_problem`, of which only the entries of a pattern are made."""
    if _is_split(f_info):
        raise ValueError(
            "`DampedSparse` needs real residuals of real parameters, or complex ones "
            "of complex ones. Stack the real and the imaginary parts of the residuals."
        )
    matrix = as_sparse(f_info.jac, pattern)
    residual = ravel(f_info.residual).astype(matrix.values.dtype)
    return lax.stop_gradient(_opaque((matrix, residual)))


def as_operator(
    matrix: lx.AbstractLinearOperator | Inexact[Array, "m n"],
) -> lx.AbstractLinearOperator:
    if isinstance(matrix, lx.AbstractLinearOperator):
        return matrix
    return lx.MatrixLinearOperator(matrix)


class _State(eqx.Module, Generic[_Problem]):
    """What is kept between acceptances. Of size m if m < n or if J is small.

    `solver`: the one that was chosen, once for the whole fit.
    """

    problem: _Problem
    solver: AbstractDampedSolver
    finite: Bool[Array, ""]
    # Under `vmap`, a fit that has ended is stepped on until all have: by nothing.
    ended: Bool[Array, ""]
    structure: FrozenStructure = eqx.field(static=True)


class AbstractFactorisedDescent(
    optx.AbstractDescent[_Y, optx.FunctionInfo.ResidualJac, _State[_Problem]],
    Generic[_Y, _Problem],
):
    linear_solver: eqx.AbstractVar[AbstractDampedSolver]

    def __check_init__(self):
        name, solver = type(self).__name__, self.linear_solver
        if not isinstance(solver, AbstractDampedSolver):
            raise ValueError(
                f"`{name}(linear_solver=...)` needs a solver that can damp, "
                "`lineax_ext.DampedQR()`, `lineax_ext.DampedSVD()` or, for a sparse "
                f"Jacobian, `lineax_ext.DampedSparse()`; found {called(solver)}."
            )
        if getattr(solver, "damping", None) is not None:
            raise ValueError(
                f"`{name}` chooses the damping: use `linear_solver=DampedQR()`, "
                "without one."
            )

    @abc.abstractmethod
    def _prepare(
        self,
        y: Inexact[Array, " n"],
        matrix: Inexact[Array, "m n"] | lx.AbstractLinearOperator,
        residual: Inexact[Array, " m"],
        previous: _Problem | None,
    ) -> _Problem:
        """What `_solve` will need, from y, J, r, and what it was at the last point.

        `previous` is all zeros on the first acceptance, and `None` to ask for shapes.
        """

    @abc.abstractmethod
    def _solve(self, step_size: Scalar, problem: _Problem) -> Inexact[Array, " n"]:
        """The negative of a step."""

    def init(self, y: _Y, f_info_struct: Any) -> _State[_Problem]:
        # Not the shapes of `query`: tracing a Jacobian twice takes time.
        split = _is_split(f_info_struct)
        check_summable(f_info_struct.residual, type(self).__name__)
        m, n = f_info_struct.jac.out_size(), f_info_struct.jac.in_size()
        dtype = result_dtype(f_info_struct.residual)
        if split:
            m, dtype = 2 * m, jnp.finfo(dtype).dtype
        solver = self.linear_solver.chosen(f_info_struct.jac)
        if isinstance(solver, DampedSparse):
            # Of what the pattern is, only the Jacobian itself can tell.
            matrix, residual = eqx.filter_eval_shape(
                _sparse_problem, f_info_struct, solver.pattern
            )
        else:
            matrix = jax.ShapeDtypeStruct((m, n), dtype)
            residual = jax.ShapeDtypeStruct((m,), dtype)
        y_struct = jax.eval_shape(ravel, y)
        struct = eqx.filter_eval_shape(self._prepare, y_struct, matrix, residual, None)
        is_struct = lambda x: isinstance(x, jax.ShapeDtypeStruct)
        dynamic, static = eqx.partition(struct, is_struct)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), dynamic)
        problem = eqx.combine(zeros, static)
        structure = freeze(f_info_struct.jac.in_structure())
        return _State(problem, solver, jnp.array(True), jnp.array(False), structure)

    def query(self, y: _Y, f_info: Any, state: _State[_Problem]) -> _State[_Problem]:
        rows = find_rows(
            getattr(self.linear_solver, "rows", None), f_info.jac, type(self).__name__
        )
        if isinstance(state.solver, DampedSparse):
            matrix, residual = _sparse_problem(f_info, state.solver.pattern)
            residual = jnp.where(state.ended, jnp.nan, residual)
        else:
            matrix, residual = _linear_problem(f_info, rows)
        problem = self._prepare(ravel(y), matrix, residual, state.problem)
        finite = jnp.all(jnp.isfinite(residual))
        return dataclasses.replace(state, problem=problem, finite=finite)

    def query_if(
        self, wanted: Bool[Array, ""], y: _Y, f_info: Any, state: _State[_Problem]
    ) -> _State[_Problem]:
        """`query` where wanted, and the state as it is where not.

        Under `vmap` on a CPU one fit after the other. All at once, XLA computes what
        tangents pass for each column anew, where the entries of J are read: 16 steps
        of 500 poses took 3.5 ms for what takes 0.9.
        """
        given, known = eqx.partition((y, f_info, state), eqx.is_array)

        def query(given, wanted):
            y, f_info, state = eqx.combine(given, known)
            new = lambda: eqx.filter(self.query(y, f_info, state), eqx.is_array)
            return lax.cond(wanted, new, lambda: eqx.filter(state, eqx.is_array))

        return eqx.combine(in_lanes(query)(given, wanted), known[2])

    def step(
        self, step_size: Scalar, state: _State[_Problem]
    ) -> tuple[_Y, optx.RESULTS]:
        step_size = jnp.where(state.ended, jnp.nan, step_size)
        return self._checked(
            jnp.where(state.ended, 0, -self._solve(step_size, state.problem)), state
        )

    def _checked(
        self, step: Inexact[Array, " n"], state: _State[_Problem]
    ) -> tuple[_Y, optx.RESULTS]:
        # A nearly singular factor is no failure as long as it gives a step: the search
        # is the judge of that, and will damp more.
        # (Members of optimistix's enumeration: promoting lineax's is slow to trace.)
        results: Any = optx.RESULTS
        failure = results.where(state.finite, results.singular, results.nonfinite_input)
        finite = jnp.all(jnp.isfinite(step))
        result = results.where(finite, results.successful, failure)
        return unravel(step, thaw(state.structure)), result


#
# The damping is 1/step_size
#


def damping_of(step_size: Scalar, dtype: jnp.dtype) -> Scalar:
    """λ = 1/step_size, or the largest finite number; NaN as it is."""
    # As optimistix, where a step size below eps counts as 0.
    positive = ~(step_size <= jnp.finfo(step_size.dtype).eps)
    largest = jnp.asarray(jnp.finfo(dtype).max, dtype)
    damping = (1 / jnp.where(positive, step_size, 1)).astype(dtype)
    return jnp.where(positive, jnp.minimum(damping, largest), largest)


class DampedNewtonDescent(AbstractFactorisedDescent[_Y, Any]):
    """The damped Newton (Levenberg–Marquardt) descent, for least squares.

    With m residuals r and their Jacobian J in n parameters, a step is

        −argmin_p ‖J p − r‖² + λ ‖p‖²,    λ = 1/step_size.

    The steps are those of `optimistix.DampedNewtonDescent`, which it can replace in
    any `optimistix.AbstractGaussNewton`. That one makes and factorises the matrix
    [J; √λ I] in every step; this one makes J = Q R when a point is accepted, keeps R
    and Qᴴ r, and works on n×n for every step that is tried from there.

    O(m n²) on acceptance, O(n³) a step with `DampedQR`, O(n²) with `DampedSVD`; with
    `DampedSparse`, the factorisation of a sparse matrix a step.

    **Arguments:**

    - `linear_solver`: [`lineax_ext.DampedQR`][], [`lineax_ext.DampedSVD`][] or
        [`lineax_ext.DampedSparse`][].

    **Raises:**

    `ValueError` for any other solver, in a minimiser, and for complex
    parameters with real residuals. On differentiating through the steps (rather than
    implicitly, as optimistix does by default), a `NotImplementedError`.

    ??? cite "References"

        Moré, *The Levenberg–Marquardt algorithm: implementation and theory*, in
        Numerical Analysis, Lecture Notes in Mathematics 630 (1978),
        doi:10.1007/BFb0067700.
    """

    linear_solver: AbstractDampedSolver = DampedQR()

    def _prepare(self, y, matrix, residual, previous):
        del y, previous
        return self.linear_solver.path(as_operator(matrix), residual)

    def _solve(self, step_size, problem):
        leaves = [x for x in jax.tree.leaves(problem) if eqx.is_inexact_array(x)]
        return problem(damping_of(step_size, jnp.finfo(leaves[0].dtype).dtype))


#
# The step size is a trust region
#


class IndirectDampedNewtonDescent(AbstractFactorisedDescent[_Y, Secular]):
    """The damped Newton descent in a trust region, for least squares.

    With m residuals r, their Jacobian J in n parameters and the Newton step p₀, a step
    is

        −argmin_p ‖J p − r‖²    with  ‖p‖ ≤ step_size ‖p₀‖,

    which is the damped step for the λ that solves the secular equation ‖p(λ)‖ =
    step_size ‖p₀‖, to a hundredth. As `optimistix.IndirectDampedNewtonDescent`,
    where every λ that is tried costs a factorisation of [J; √λ I]. Here, J is
    factorised when a point is accepted, and so is R = U Σ Vᴴ; the iteration then costs
    O(k) a λ, k = min(m, n), and the step itself O(n k).

    **Arguments:**

    - `lambda_0`: the λ to begin with. Not critical: the iteration is safeguarded.
    - `linear_solver`: [`lineax_ext.DampedSVD`][], or [`lineax_ext.DampedQR`][], whose R
        is then decomposed, or [`lineax_ext.DampedSparse`][], where each λ costs a
        factorisation.
    - `root_finder`: solves the secular equation instead of the iteration of Hebden and
        Moré, if given.

    **Raises:**

    As [`lineax_ext.DampedNewtonDescent`][].

    ??? cite "References"

        Moré, *The Levenberg–Marquardt algorithm: implementation and theory*, in
        Numerical Analysis, Lecture Notes in Mathematics 630 (1978),
        doi:10.1007/BFb0067700. Nocedal, Wright, *Numerical Optimization*, 2nd ed., §4.3
        (2006).
    """

    lambda_0: ScalarLike = 1.0
    linear_solver: AbstractDampedSolver = DampedSVD()
    root_finder: optx.AbstractRootFinder | None = None

    def _prepare(self, y, matrix, residual, previous):
        del y, previous
        return self.linear_solver.spectrum(as_operator(matrix), residual)

    def _solve(self, step_size, problem):
        newton = problem.newton().norm
        radius = newton * step_size.astype(newton.dtype)
        x, _ = secular_solution(problem, radius, self.lambda_0, self.root_finder)
        return x
