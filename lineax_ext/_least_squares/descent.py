"""Damped Newton descents that factorise on acceptance alone."""

import abc
from typing import Any, Generic, Literal, TypeVar

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jaxtyping import Array, Bool, Float, Inexact, PyTree, Scalar, ScalarLike

from .._flat import cast, freeze, FrozenStructure, ravel, result_dtype, thaw, unravel
from .._materialise import as_matrix
from .._solver.damped import AbstractDampedSolver, Spectrum
from .._solver.damped_qr import DampedQR
from .._solver.damped_svd import DampedSVD
from .._solver.householder import matmul
from .secular import damped_coefficients, secular_damping


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


def _is_complex(structure: PyTree[Any]) -> bool:
    return jnp.issubdtype(result_dtype(structure), jnp.complexfloating)


def _linear_problem(f_info: Any) -> tuple[Inexact[Array, "m n"], Inexact[Array, " m"]]:
    """J and r, dense."""
    if not isinstance(f_info, optx.FunctionInfo.ResidualJac):
        raise ValueError(
            "The descents of `lineax_ext` are for least squares, as in "
            "`optimistix.least_squares`. To damp a Hessian, use those of `optimistix`."
        )
    jac, residual = f_info.jac, ravel(f_info.residual)
    leaves = jax.tree.leaves(jac.in_structure())
    parameters_complex = [_is_complex(leaf) for leaf in leaves]
    matrix = as_matrix(jac)
    if any(parameters_complex):
        if not (all(parameters_complex) and _is_complex(residual)):
            raise ValueError(
                "Complex parameters need complex residuals, and no real parameters "
                "among them. Use their real and imaginary parts as the parameters."
            )
    elif _is_complex(residual):
        # |r|² = (Re r)² + (Im r)²
        matrix = jnp.concatenate([matrix.real, matrix.imag])
        residual = jnp.concatenate([residual.real, residual.imag])
    return lax.stop_gradient(_opaque((matrix, residual)))


def _column_norms(matrix: Inexact[Array, "m n"]) -> Float[Array, " n"]:
    magnitude = jnp.abs(matrix)
    largest = jnp.max(magnitude, axis=0, initial=0)
    # Neither under- nor overflows, even if the squares do.
    ratios = magnitude / jnp.where(largest > 0, largest, 1)[None, :]
    return largest * jnp.sqrt(jnp.sum(ratios**2, axis=0))


class _State(eqx.Module, Generic[_Problem]):
    """What is kept between acceptances. Nothing in it is of size m if m ≥ n."""

    problem: _Problem
    scale: Float[Array, " n"] | None
    finite: Bool[Array, ""]
    structure: FrozenStructure = eqx.field(static=True)


class _AbstractDampedDescent(
    optx.AbstractDescent[_Y, optx.FunctionInfo.ResidualJac, _State[_Problem]],
    Generic[_Y, _Problem],
):
    linear_solver: eqx.AbstractVar[AbstractDampedSolver]
    scale: eqx.AbstractVar[Literal["jacobian"] | None]

    def __check_init__(self):
        if not isinstance(self.linear_solver, AbstractDampedSolver):
            raise ValueError(
                f"`{type(self).__name__}(linear_solver=...)` needs a solver that can "
                "damp, `lineax_ext.DampedQR()` or `lineax_ext.DampedSVD()`; found a "
                f"`{type(self.linear_solver).__name__}`."
            )
        if getattr(self.linear_solver, "damping", None) is not None:
            raise ValueError(
                f"`{type(self).__name__}` chooses the damping: use "
                "`linear_solver=DampedQR()`, without one."
            )
        if self.scale not in (None, "jacobian"):
            raise ValueError(
                f"`scale` must be `None` or 'jacobian', but is {self.scale!r}."
            )

    @abc.abstractmethod
    def _prepare(self, state: PyTree[Array], vector: Inexact[Array, " k"]) -> _Problem:
        """What `step` will need, of a reduced problem."""

    @abc.abstractmethod
    def _solve(
        self, step_size: Scalar, problem: _Problem
    ) -> tuple[Inexact[Array, " n"], lx.RESULTS]:
        """argmin ‖J D⁻¹ z − r‖² + λ ‖z‖²"""

    def _factorise(self, f_info, scale: Float[Array, " n"] | None) -> _State[_Problem]:
        matrix, residual = _linear_problem(f_info)
        if self.scale is not None:
            norms = _column_norms(matrix)
            scale = norms if scale is None else jnp.maximum(norms, scale)
            scale = jnp.where(scale == 0, 1, scale)
            matrix = matrix / scale.astype(matrix.dtype)[None, :]
        # In z = D y, so that a step needs no D and a wide J no new factorisation.
        state = self.linear_solver.init(lx.MatrixLinearOperator(matrix), {})
        state, vector = self.linear_solver.reduce(state, residual)
        finite = jnp.all(jnp.isfinite(residual))
        structure = freeze(f_info.jac.in_structure())
        return _State(self._prepare(state, vector), scale, finite, structure)

    def init(self, y: _Y, f_info_struct: Any) -> _State[_Problem]:
        del y
        struct = eqx.filter_eval_shape(self._factorise, f_info_struct, None)
        is_struct = lambda x: isinstance(x, jax.ShapeDtypeStruct)
        dynamic, static = eqx.partition(struct, is_struct)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), dynamic)
        return eqx.combine(zeros, static)

    def query(self, y: _Y, f_info: Any, state: _State[_Problem]) -> _State[_Problem]:
        del y
        return self._factorise(f_info, state.scale)

    def step(
        self, step_size: Scalar, state: _State[_Problem]
    ) -> tuple[_Y, optx.RESULTS]:
        z, result = self._solve(step_size, state.problem)
        if state.scale is not None:
            z = z / state.scale.astype(z.dtype)
        # A nearly singular factor is no failure as long as it gives a step: the search
        # is the judge of that, and will damp more.
        tolerated = (result == lx.RESULTS.successful) | (result == lx.RESULTS.singular)
        failure = lx.RESULTS.where(
            state.finite, lx.RESULTS.singular, lx.RESULTS.nonfinite_input
        )
        finite = jnp.all(jnp.isfinite(z))
        outcome = lx.RESULTS.where(finite, lx.RESULTS.successful, failure)
        result = lx.RESULTS.where(tolerated, outcome, result)
        step = unravel(-z, thaw(state.structure))
        return step, optx.RESULTS.promote(result)


#
# The damping is 1/step_size
#


def _damping(step_size: Scalar, dtype: jnp.dtype) -> Scalar:
    """λ = 1/step_size, or the largest finite number."""
    # As optimistix, where a step size below eps counts as 0.
    positive = step_size > jnp.finfo(step_size.dtype).eps
    largest = jnp.asarray(jnp.finfo(dtype).max, dtype)
    damping = (1 / jnp.where(positive, step_size, 1)).astype(dtype)
    return jnp.where(positive, jnp.minimum(damping, largest), largest)


class _Reduced(eqx.Module):
    state: PyTree[Array]
    vector: Inexact[Array, " k"]


class DampedNewtonDescent(_AbstractDampedDescent[_Y, _Reduced]):
    """The damped Newton (Levenberg–Marquardt) descent, for least squares.

    With m residuals r and their Jacobian J in n parameters, a step is

        −argmin_p ‖J p − r‖² + λ ‖D p‖²,    λ = 1/step_size.

    The steps are those of [`optimistix.DampedNewtonDescent`][], which it can replace in
    any [`optimistix.AbstractGaussNewton`][]. That one makes and factorises the matrix
    [J; √λ I] in every step; this one makes J = Q R when a point is accepted, keeps R
    and Qᴴ r, and works on n×n for every step that is tried from there.

    O(m n²) on acceptance, O(n³) a step with `DampedQR`, O(n²) with `DampedSVD`.

    **Arguments:**

    - `linear_solver`: [`lineax_ext.DampedQR`][] or [`lineax_ext.DampedSVD`][].
    - `scale`: D. `None` for ones, or `"jacobian"` for the largest norms that the
        columns of J had so far, which makes the steps independent of the units of the
        parameters. A column of zeros counts as 1.

    **Raises:**

    `ValueError` for any other solver or scale, in a minimiser, and for complex
    parameters with real residuals. On differentiating through the steps (rather than
    implicitly, as optimistix does by default), a `NotImplementedError`.

    ??? cite "References"

        Moré, *The Levenberg–Marquardt algorithm: implementation and theory*, in
        Numerical Analysis, Lecture Notes in Mathematics 630 (1978),
        doi:10.1007/BFb0067700.
    """

    linear_solver: AbstractDampedSolver = DampedQR()
    scale: Literal["jacobian"] | None = None

    def _prepare(self, state, vector):
        return _Reduced(state, vector)

    def _solve(self, step_size, problem):
        dtype = jnp.finfo(problem.vector.dtype).dtype
        damping = _damping(step_size, dtype)
        state = self.linear_solver.damp(problem.state, damping)
        z, result, _ = self.linear_solver.compute(state, problem.vector, {})
        return z, result


#
# The step size is a trust region
#


class IndirectDampedNewtonDescent(_AbstractDampedDescent[_Y, Spectrum]):
    """The damped Newton descent in a trust region, for least squares.

    With m residuals r, their Jacobian J in n parameters, p₀ the Newton step and D as in
    [`lineax_ext.DampedNewtonDescent`][], a step is

        −argmin_p ‖J p − r‖²    with  ‖D p‖ ≤ step_size ‖D p₀‖,

    which is the damped step for the λ that solves the secular equation ‖D p(λ)‖ =
    step_size ‖D p₀‖, to a hundredth. As [`optimistix.IndirectDampedNewtonDescent`][],
    where every λ that is tried costs a factorisation of [J; √λ I]. Here, J is
    factorised when a point is accepted, and so is R = U Σ Vᴴ; the iteration then costs
    O(k) a λ, k = min(m, n), and the step itself O(n k).

    **Arguments:**

    - `lambda_0`: the λ to begin with. Not critical: the iteration is safeguarded.
    - `linear_solver`: [`lineax_ext.DampedSVD`][], or [`lineax_ext.DampedQR`][], whose R
        is then decomposed.
    - `root_finder`: solves the secular equation instead of the iteration of Hebden and
        Moré, if given.
    - `scale`: as for [`lineax_ext.DampedNewtonDescent`][].

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
    scale: Literal["jacobian"] | None = None

    def _prepare(self, state, vector):
        return self.linear_solver.spectrum(state, vector)

    def _solve(self, step_size, problem):
        sigma, coefficients, basis = problem
        newton = jnp.linalg.norm(damped_coefficients(sigma, coefficients, 0))
        step_size = cast(step_size, sigma.dtype)
        radius = newton * step_size
        damping = secular_damping(
            sigma, coefficients, radius, self.lambda_0, self.root_finder
        )
        damping = jnp.where(step_size < 1, damping, 0)
        z = matmul(basis, damped_coefficients(sigma, coefficients, damping))
        return z, lx.RESULTS.successful
