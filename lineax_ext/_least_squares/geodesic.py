"""Geodesic acceleration: steps that follow the curve of the residuals."""

import abc
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float, Inexact, Scalar

from .._solver.damped import AbstractDampedSolver, Secular
from .._solver.damped_qr import DampedQR
from .descent import AbstractFactorisedDescent, as_operator, damping_of


_Y = TypeVar("_Y")
_Problem = TypeVar("_Problem")

# Of Transtrum and Sethna: ‖a‖ beyond this part of ‖v‖ is no correction.
_MOST = 0.75


class AbstractGeodesicDescent(
    AbstractFactorisedDescent[_Y, _Problem], Generic[_Y, _Problem]
):
    """One that can solve a second time with the λ of a step."""

    @abc.abstractmethod
    def _units(self, problem: _Problem) -> tuple[Secular, Float[Array, " n"] | None]:
        """The problem in z = D y, and D, if not 1."""

    @abc.abstractmethod
    def _damped(
        self, step_size: Scalar, problem: _Problem
    ) -> tuple[Inexact[Array, " n"], Float[Array, ""]]:
        """The negative of a step, in z, and its λ."""

    def _solve(self, step_size, problem):
        z, _ = self._damped(step_size, problem)
        _, scale = self._units(problem)
        return _over(z, scale)

    def accelerated(
        self,
        step_size: Scalar,
        state: Any,
        curvature: Callable[[Inexact[Array, " n"]], Inexact[Array, " n"]],
    ) -> tuple[Inexact[Array, " n"], _Y, optx.RESULTS]:
        """v, δ and a result, where v is what `step` would return, and

            a = −(JᴴJ + λ D²)⁻¹ Jᴴ r″(v),    δ = v + a/2  if  2 ‖D a‖ ≤ ¾ ‖D v‖,

        with r″(v) the second derivative of r along v; otherwise, δ = v.

        `curvature`: v ↦ Jᴴ r″(v).
        """
        step_size = jnp.where(state.ended, jnp.nan, step_size)
        spectrum, scale = self._units(state.problem)
        z, damping = self._damped(step_size, state.problem)
        z = jnp.where(state.ended, 0, -z)
        v = _over(z, scale)
        a = -spectrum.again(damping, _over(curvature(v), scale))
        length = jnp.linalg.norm
        bent = jnp.where(2 * length(a) <= _MOST * length(z), z + a / 2, z)
        return v, *self._checked(_over(bent, scale), state)


class DampedSpectrumDescent(AbstractGeodesicDescent[_Y, Secular]):
    """`DampedNewtonDescent` by the singular values, for a second solve with each λ."""

    linear_solver: AbstractDampedSolver = DampedQR()

    def _prepare(self, y, matrix, residual, previous):
        del y, previous
        return self.linear_solver.spectrum(as_operator(matrix), residual)

    def _units(self, problem):
        return problem, None

    def _damped(self, step_size, problem):
        damping = damping_of(step_size, problem.newton().norm.dtype)
        return problem.solution(problem.evaluate(damping).x), damping


def _over(z: Inexact[Array, " n"], scale: Float[Array, " n"] | None):
    return z if scale is None else z / scale.astype(z.dtype)
