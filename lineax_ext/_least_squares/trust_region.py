"""Moré's scaled trust region: a descent and a search that belong together."""

import dataclasses
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Float, Inexact, PyTree, Scalar, ScalarLike

from .._factor.sparse_normal import column_norms
from .._operator.sparse import SparseMatrixLinearOperator
from .._solver.damped import AbstractDampedSolver, Secular
from .._solver.damped_qr import DampedQR
from .descent import as_operator
from .geodesic import AbstractGeodesicDescent
from .secular import secular_solution


_Y = TypeVar("_Y")


#
# The descent
#


def _column_norms(matrix: Any) -> Float[Array, " n"]:
    if isinstance(matrix, SparseMatrixLinearOperator):
        return column_norms(matrix.values, matrix.pattern)
    magnitude = jnp.abs(matrix)
    largest = jnp.max(magnitude, axis=0, initial=0)
    # Neither under- nor overflows, even if the squares do.
    ratios = magnitude / jnp.where(largest > 0, largest, 1)[None, :]
    return largest * jnp.sqrt(jnp.sum(ratios**2, axis=0))


def _divided(matrix: Any, scale: Float[Array, " n"]) -> Any:
    """The matrix, its columns divided by `scale`."""
    if isinstance(matrix, SparseMatrixLinearOperator):
        pattern = matrix.pattern
        by = scale.astype(matrix.values.dtype)[pattern.cols]
        return SparseMatrixLinearOperator(matrix.values / by, pattern)
    return matrix / scale.astype(matrix.dtype)[None, :]


class _Problem(eqx.Module):
    spectrum: Secular
    scale: Float[Array, " n"]
    # The length that a step size of 1 stands for.
    unit: Float[Array, ""]
    y: Inexact[Array, " n"]
    begun: Bool[Array, ""]

    def multiply(self, x: Inexact[Array, " n"]) -> Inexact[Array, " m"]:
        """J x, of a sparse J."""
        spectrum: Any = self.spectrum
        return spectrum.multiply(self.scale.astype(x.dtype) * x)

    def adjoint(self, x: Inexact[Array, " m"]) -> Inexact[Array, " n"]:
        spectrum: Any = self.spectrum
        return spectrum.adjoint(x) * self.scale.astype(x.dtype)


class ScaledTrustRegionDescent(AbstractGeodesicDescent[_Y, _Problem]):
    """The damped Newton descent in a trust region that is scaled by the Jacobian.

    With m residuals r and their Jacobian J in n parameters y, a step is

        −argmin_p ‖J p − r‖²    with  ‖D p‖ ≤ step_size · Δ,

    which is the damped step for some λ: ‖J p − r‖² + λ ‖D p‖² is least. D is diagonal:
    the largest norms that the columns of J had so far, where a column of zeros counts
    as 1. So the steps do not depend on the units of the parameters. Δ is ‖D y‖ at the
    first point (1 where that is zero), and from then on the length ‖D p‖ of the last
    accepted step, or five times that of the Newton step if this is shorter.

    For [`lineax_ext.GainRatioTrustRegion`][], whose step sizes are multiples of the
    last step. Costs as much as [`lineax_ext.IndirectDampedNewtonDescent`][].

    **Arguments:**

    - `linear_solver`: [`lineax_ext.DampedQR`][], [`lineax_ext.DampedSVD`][] or
        [`lineax_ext.DampedSparse`][].

    **Raises:**

    As [`lineax_ext.DampedNewtonDescent`][].

    ??? cite "References"

        Moré, *The Levenberg–Marquardt algorithm: implementation and theory*, in
        Numerical Analysis, Lecture Notes in Mathematics 630 (1978),
        doi:10.1007/BFb0067700.
    """

    linear_solver: AbstractDampedSolver = DampedQR()

    def _prepare(self, y, matrix, residual, previous):
        norms = _column_norms(matrix)
        if previous is None:
            last_scale, last_y, begun = norms, y, jnp.array(False)
        else:
            last_scale, last_y, begun = previous.scale, previous.y, previous.begun
        scale = jnp.maximum(norms, last_scale)
        scale = jnp.where(scale == 0, 1, scale)
        # In z = D y, so that a step needs no D and a wide J no new factorisation.
        operator = as_operator(_divided(matrix, scale))
        spectrum = self.linear_solver.spectrum(operator, residual)
        newton = spectrum.newton().norm

        last = _length((y - last_y), last_scale)
        first = _length(y, scale)
        first = jnp.where(first > 0, first, 1)
        unit = jnp.where(begun, jnp.minimum(last, 5 * newton), first)
        return _Problem(spectrum, scale, unit, y, jnp.array(True))

    def _units(self, problem):
        return problem.spectrum, problem.scale

    def _damped(self, step_size, problem):
        radius = step_size.astype(problem.unit.dtype) * problem.unit
        return secular_solution(problem.spectrum, radius)


def _length(z: Inexact[Array, " n"], scale: Float[Array, " n"] | None = None):
    magnitude = jnp.abs(z)
    if scale is not None:
        magnitude = magnitude.astype(scale.dtype) * scale
    return jnp.linalg.norm(magnitude)


#
# The search
#


class _State(eqx.Module):
    step_size: Float[Array, ""]


def _inner(a: PyTree[Array], b: PyTree[Array]) -> Scalar:
    """Re aᴴ b, over leaves of any dtypes."""
    dtype = jnp.zeros(()).dtype
    terms = jax.tree.map(lambda x, y: jnp.sum(jnp.real(jnp.conj(x) * y)), a, b)
    return sum((x.astype(dtype) for x in jax.tree.leaves(terms)), jnp.zeros((), dtype))


def _add(a: PyTree[Array], b: PyTree[Array], factor: float = 1) -> PyTree[Array]:
    return jax.tree.map(lambda x, y: x + factor * y, a, b)


class Model(optx.FunctionInfo.ResidualJac):
    """J and r, or R and Qᴴ r of J = Q R; ½ ‖r‖², and r itself."""

    loss: Scalar
    r: PyTree[Array]

    def as_min(self):
        return self.loss


class _Reductions(NamedTuple):
    """Of ½ ‖r‖²: the one that the linear model predicts, the one that there is; how
    steep it is along the step; and whether the prediction is a rounding error, or might
    be one, where less than its part `threshold` is there; or the step changes nothing.
    """

    predicted: Scalar
    actual: Scalar
    slope: Scalar
    settled: Bool[Array, ""]


def _reductions(y, y_eval, f_info, f_eval_info, threshold) -> _Reductions:
    seen = f_info.residual
    r, r_eval = (
        x.r if isinstance(x, Model) else x.residual for x in (f_info, f_eval_info)
    )
    j_step = f_info.jac.mv(_add(y_eval, y, -1))
    # Both are halves of differences of squares, taken by their factors.
    predicted = -_inner(j_step, _add(seen, j_step, 0.5))
    actual = 0.5 * _inner(_add(r, r_eval, -1), _add(r, r_eval))
    # Residuals that are differences of larger numbers have larger errors themselves.
    # Of ‖r‖², which is twice the loss.
    loss = f_info.as_min().astype(predicted.dtype)
    noise = 10 * jnp.finfo(predicted.dtype).eps * loss
    loud = 1000 * noise
    missed = (predicted <= loud) & (actual < threshold * predicted)
    settled = ((predicted <= noise) | missed) & (jnp.abs(actual) <= loud)
    # Beside residuals of zero nothing is small: XLA may round the same one in two ways.
    same = jax.tree.map(lambda x, y: jnp.all(x == y), y, y_eval)
    settled = settled | jnp.all(jnp.array(jax.tree.leaves(same), bool))
    return _Reductions(predicted, actual, _inner(j_step, seen), settled)


class ClassicalTrustRegion(optx.ClassicalTrustRegion):
    """That of optimistix, which knows where a reduction is no more than rounding.

    There a step is accepted, for the solver to see that it has converged, and the next
    one damped more: to compare rounding errors would reject one of two.
    """

    def step(self, first_step, y, y_eval, f_info, f_eval_info, state):
        predicted, actual, _, settled = _reductions(
            y, y_eval, f_info, f_eval_info, self.low_cutoff
        )
        settled = settled & ~first_step
        enough = actual >= self.low_cutoff * predicted
        good = (actual > self.high_cutoff * predicted) & (predicted > 0) & ~first_step
        factor = jnp.where(good, self.high_constant, 1.0)
        factor = jnp.where(enough | first_step, factor, self.low_constant)
        factor = jnp.where(settled, self.low_constant, factor)
        step_size = factor * state.step_size
        accept = enough | settled | first_step
        state = dataclasses.replace(state, step_size=step_size)
        return step_size, accept, optx.RESULTS.successful, state


class GainRatioTrustRegion(
    optx.AbstractSearch[
        _Y, optx.FunctionInfo.ResidualJac, optx.FunctionInfo.ResidualJac, _State
    ]
):
    """Moré's update of a trust region for least squares, as in MINPACK.

    With ρ the reduction of ½ ‖r‖² over the one that the linear model predicts, a step
    is accepted if ρ ≥ `threshold`. The next radius is twice the length of the step if
    ρ ≥ 3/4, that length if ρ ≥ 1/4, and otherwise a part of it, between 1/10 and 1/2,
    from a parabola through what is known. A residual that is not finite is a rejection.

    Step sizes are multiples of the length of the last accepted step, as
    [`lineax_ext.ScaledTrustRegionDescent`][] takes them. Where the reductions are too
    small to be told from rounding, a step is accepted and the radius is halved, for the
    solver to see that it has converged. One application of the Jacobian a step.

    **Arguments:**

    - `threshold`: the least ρ.

    ??? cite "References"

        Moré, *The Levenberg–Marquardt algorithm: implementation and theory*, in
        Numerical Analysis, Lecture Notes in Mathematics 630 (1978),
        doi:10.1007/BFb0067700, algorithm 7.1.
    """

    threshold: ScalarLike = 1e-4

    def init(self, y, f_info_struct):
        del y, f_info_struct
        return _State(jnp.ones(()))

    def step(
        self,
        first_step: Bool[Array, ""],
        y,
        y_eval,
        f_info,
        f_eval_info,
        state: _State,
    ):
        predicted, reduction, slope, settled = _reductions(
            y, y_eval, f_info, f_eval_info, self.threshold
        )
        ratio = reduction / jnp.where(predicted > 0, predicted, 1)
        ratio = jnp.where((predicted > 0) & jnp.isfinite(ratio), ratio, -jnp.inf)

        parabola = 0.5 * slope / (slope + reduction)
        shrink = jnp.where(jnp.isfinite(reduction), jnp.clip(parabola, 0.1, 0.5), 0.1)
        shrink = jnp.where(reduction >= 0, 0.5, shrink)
        factor = jnp.where(ratio >= 0.75, 2.0, jnp.where(ratio > 0.25, 1.0, shrink))
        # Halved, or steps to and fro in a flat direction would never meet a tolerance.
        factor = jnp.where(first_step, 1.0, jnp.where(settled, 0.5, factor))
        accept = (ratio >= self.threshold) | settled | first_step
        step_size = jnp.where(accept, factor, factor * state.step_size)
        return step_size, accept, optx.RESULTS.successful, _State(step_size)
