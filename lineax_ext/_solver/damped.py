"""What every solver of damped least-squares problems offers."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Inexact, PyTree, ScalarLike

from .._checks import check_state as check_state
from .._factor.householder import (
    householder_qr,
    HouseholderQR,
    q_multiply_columns,
)
from .._factor.product import matmul
from .._factor.triangular_stack import condense
from .._factor.tsqr import condense_rows, TSQR
from .._flat import freeze, ravel, thaw, unravel
from .._operator.damped import check_damping, check_scale, DampedLinearOperator
from .._structure.extract import untagged
from .orientation import frozen_matrix, Orientation
from .sharding import find_rows


_State = TypeVar("_State")


class AbstractDampedSolver(lx.AbstractLinearSolver[_State]):
    """A solver that factorises an operator once and serves every damping from that.

    `init` of an ordinary operator gives a state that solves min ‖A x − b‖; `damp` of
    that state gives one that solves min ‖A x − b‖² + λ ‖D x‖², which is the problem of
    [`lineax_ext.DampedLinearOperator`][]. `init` of a `DampedLinearOperator` does both.
    """

    def chosen(self, operator: lx.AbstractLinearOperator) -> "AbstractDampedSolver":
        """The solver that serves an operator: itself, unless it chooses one."""
        del operator
        return self

    @abc.abstractmethod
    def damp(
        self, state: _State, damping: ScalarLike, scale: PyTree[Array] | None = None
    ) -> _State:
        """The state for one damping, from the state of the undamped operator.

        **Arguments:**

        - `state`: as returned by `init` of the operator A, m×n. May itself be damped:
            the new damping replaces the old one.
        - `damping`: λ ≥ 0, a scalar.
        - `scale`: the diagonal of D > 0, a pytree like the input of A; default 1.

        **Returns:**

        The state of `DampedLinearOperator(A, damping, scale)`. `compute` takes the pair
        (b, c) that this operator maps to, and also b alone, for c = 0.
        """

    def path(
        self, operator: lx.AbstractLinearOperator, vector: PyTree[Array]
    ) -> Callable[[ScalarLike], PyTree[Array]]:
        """The solution of min ‖A x − b‖² + λ ‖x‖² as a function of λ, for one b.

        For a loop over λ that needs nothing else: no result, no derivative.

        **Arguments:**

        - `operator`: A, m×n.
        - `vector`: b, with the structure of the output of A.

        **Returns:**

        A function from λ to x, which is a pytree of arrays. With the solvers of this
        package none of these has size m where m ≥ n, unless A is small.
        """
        return _Path(self, self.init(operator, {}), vector)

    def spectrum(
        self, operator: lx.AbstractLinearOperator, vector: PyTree[Array]
    ) -> "Secular":
        """The problem in the basis of the singular vectors of A.

        **Arguments:**

        - `operator`: A, m×n.
        - `vector`: b, with the structure of the output of A.

        **Returns:**

        A tuple `(sigma, coefficients, basis)`, of shapes (k,), (k,) and (n, k), k =
        min(m, n): the singular values of A, those too small to count set to zero; Uᴴ b;
        and V. The solution of min ‖A x − b‖² + λ ‖x‖² is V (Σ² + λ)⁻¹ Σ Uᴴ b.
        `DampedSparse` has no such vectors, and returns what gives solutions and their
        lengths for one λ after the other.
        """
        raise NotImplementedError(
            f"`{type(self).__name__}` has no `spectrum`, which is needed here. Use "
            "`lineax_ext.DampedSVD()`, `DampedQR()` or `DampedSparse()`."
        )

    def transpose(self, state: _State, options: dict[str, Any]):
        del options
        # Of all states here, what turns is the orientation.
        turned: Any = state
        orientation = turned.orientation.transpose()
        return dataclasses.replace(turned, orientation=orientation), {}

    def conj(self, state: _State, options: dict[str, Any]):
        del options
        turned: Any = state
        orientation = turned.orientation.conj()
        return dataclasses.replace(turned, orientation=orientation), {}


class _Path(eqx.Module):
    solver: AbstractDampedSolver
    state: PyTree[Array]
    vector: PyTree[Array]

    def __call__(self, damping: ScalarLike) -> PyTree[Array]:
        state = self.solver.damp(self.state, damping)
        return self.solver.compute(state, self.vector, {})[0]


class Evaluated(NamedTuple):
    """x(λ), in any orthonormal basis, its length, the derivative of that, and λ."""

    x: Inexact[Array, " k"]
    norm: Float[Array, ""]
    slope: Float[Array, ""]
    damping: Float[Array, ""]


class Secular(Protocol):
    """x(λ) = argmin ‖A x − b‖² + λ ‖x‖², for the λ that gives it a length."""

    def newton(self) -> Evaluated:
        """That of λ = 0; where there is none, of a λ that is little beside A."""
        ...

    def evaluate(self, damping: ScalarLike) -> Evaluated:
        """Of a λ that is not a number, anything: nobody will ask for it."""
        ...

    def solution(self, x: Inexact[Array, " k"]) -> Inexact[Array, " n"]:
        """In the basis of the parameters."""
        ...

    def gradient(self) -> Float[Array, ""]:
        """‖Aᴴ b‖"""
        ...

    def again(
        self, damping: Float[Array, ""], gradient: Inexact[Array, " n"]
    ) -> Inexact[Array, " n"]:
        """(AᴴA + λ)⁻¹ g, for a g in the range of Aᴴ."""
        ...


class Spectrum(NamedTuple):
    """A = U Σ Vᴴ, with Uᴴ b in place of U."""

    sigma: Float[Array, " k"]
    coefficients: Inexact[Array, " k"]
    basis: Inexact[Array, "n k"]

    def newton(self) -> Evaluated:
        return self.evaluate(0)

    def evaluate(self, damping: ScalarLike) -> Evaluated:
        """x = (Σ² + λ)⁻¹ Σ Uᴴ b, where zero singular values have no part."""
        sigma, coefficients, _ = self
        positive = sigma > 0
        safe = jnp.where(positive, sigma, 1)
        damping = jnp.asarray(damping).astype(sigma.dtype)
        h = safe + damping / safe
        x = jnp.where(positive, 1 / h, 0).astype(coefficients.dtype) * coefficients
        terms = jnp.abs(x) ** 2
        norm = jnp.sqrt(jnp.sum(terms))
        slope = -jnp.sum(terms / (safe * h))
        return Evaluated(x, norm, slope / jnp.where(norm > 0, norm, 1), damping)

    def solution(self, x: Inexact[Array, " k"]) -> Inexact[Array, " n"]:
        return matmul(self.basis, x)

    def gradient(self) -> Float[Array, ""]:
        squared = jnp.abs(self.coefficients) ** 2
        return jnp.sqrt(jnp.sum(jnp.where(self.sigma > 0, self.sigma**2 * squared, 0)))

    def again(
        self, damping: Float[Array, ""], gradient: Inexact[Array, " n"]
    ) -> Inexact[Array, " n"]:
        """V (Σ² + λ)⁻¹ Vᴴ g"""
        positive = self.sigma > 0
        safe = jnp.where(positive, self.sigma, 1)
        by = jnp.where(positive, 1 / (safe + damping / safe) / safe, 0)
        coefficients = matmul(jnp.conj(self.basis.T), gradient)
        return matmul(self.basis, by.astype(gradient.dtype) * coefficients)


def unwrap(
    operator: lx.AbstractLinearOperator,
) -> tuple[lx.AbstractLinearOperator, DampedLinearOperator | None]:
    """The operator to factorise, and what damps it."""
    inner = untagged(operator)
    if isinstance(inner, DampedLinearOperator):
        return inner.operator, inner
    return operator, None


class Damping(eqx.Module):
    """λ and D as a solver's state holds them: without tangents, flat, √ taken."""

    root: Float[Array, ""]
    scale: Float[Array, " n"] | None

    @property
    def inverse_root(self) -> Float[Array, ""]:
        # λ = 0 weighs the lower half of the right-hand side with nothing at all.
        positive = self.root > 0
        return jnp.where(positive, 1 / jnp.where(positive, self.root, 1), 0)


def resolve_damping(
    damping: ScalarLike,
    scale: PyTree[Array] | None,
    orientation: Orientation,
    dtype: jnp.dtype,
) -> Damping:
    if orientation.transposed or orientation.conjugated:
        raise ValueError(
            "`damp` takes the state that `init` returned, not its transpose or "
            "conjugate."
        )
    real = jnp.finfo(dtype).dtype
    damping = check_damping(damping)
    if scale is not None:
        scale = check_scale(scale, thaw(orientation.in_structure))
    return _without_tangents(damping, scale, real)


@eqx.filter_jit
def _without_tangents(
    damping: Float[Array, ""], scale: PyTree[Array] | None, real: jnp.dtype
) -> Damping:
    damping = lax.stop_gradient(damping).astype(real)
    valid = (damping >= 0) & (damping < jnp.inf)
    flat = None
    if scale is not None:
        flat = lax.stop_gradient(ravel(scale)).astype(real)
        valid &= jnp.all((flat > 0) & (flat < jnp.inf))
    # What could not be seen at trace time becomes a failed solve.
    return Damping(jnp.sqrt(jnp.where(valid, damping, jnp.nan)), flat)


def factorise(matrix: Inexact[Array, "m n"], damping: Damping | None) -> HouseholderQR:
    """The QR of A when tall; of D⁻¹ Aᴴ when wide.

    A wide problem in z = D x, with A D⁻¹ for A, has 1 in place of D. The part of z
    outside of the range of D⁻¹ Aᴴ is then decoupled, and the rest is m×m.
    """
    m, n = matrix.shape
    if m < n:
        matrix = jnp.conj(matrix.T)
        if damping is not None and damping.scale is not None:
            matrix = matrix / damping.scale.astype(matrix.dtype)[:, None]
    return HouseholderQR(*householder_qr(matrix))


def condensed(
    operator: lx.AbstractLinearOperator,
    vector: PyTree[Array],
    sharding: NamedSharding | None,
    solver: str,
    *,
    triangle: bool = True,
) -> tuple[Inexact[Array, "n k"], Inexact[Array, " k"]]:
    """As `condense`, of a tall operator and a right-hand side."""
    rows = find_rows(sharding, operator, solver)
    matrix = frozen_matrix(operator, solver, rows)
    if rows is None:
        rhs = ravel(vector).astype(matrix.dtype)
        return condense(matrix, rhs, triangle=triangle)
    return condense_rows(matrix, rows.blocks(vector).astype(matrix.dtype), rows)


def refactorise(
    qr: HouseholderQR | TSQR, old: Damping | None, new: Damping
) -> HouseholderQR:
    """For a wide A: from the QR of D_old⁻¹ Aᴴ to that of D_new⁻¹ Aᴴ."""
    assert isinstance(qr, HouseholderQR)  # wide: all on one device
    old_scale = None if old is None else old.scale
    if old_scale is None and new.scale is None:
        return qr
    return _rescale(qr, old_scale, new.scale)


@eqx.filter_jit
def _rescale(qr: HouseholderQR, old: Array | None, new: Array | None) -> HouseholderQR:
    matrix = q_multiply_columns(qr.householder, qr.taus, jnp.triu(qr.r))
    if old is not None:
        matrix = matrix * old.astype(matrix.dtype)[:, None]
    if new is not None:
        matrix = matrix / new.astype(matrix.dtype)[:, None]
    return HouseholderQR(*householder_qr(matrix))


def solve_stacked(
    orientation: Orientation,
    stacked: bool,
    solve: Callable[[tuple[Array, Array | None]], Array],
    adjoint: Callable[[Array], tuple[Array, Array | None]],
    vector: PyTree[Array],
    dtype: jnp.dtype,
) -> PyTree[Array]:
    """`Orientation.apply` for B = [A; √λ D], whose right-hand sides are pairs.

    `solve` maps flat (b, c), with `None` for c = 0, to x = B⁺ (b, c); `adjoint` maps x
    to (B⁺)ᴴ x. With `stacked` false the state stands in for one of A alone, and c is
    left out on both sides.
    """
    in_structure = thaw(orientation.in_structure)
    out_structure = thaw(orientation.out_structure)
    if orientation.transposed:
        flat = ravel(vector).astype(dtype)
        b, c = orientation.apply(solve, adjoint, flat)
        b = orientation.unravel_out(b)
        return (b, unravel(c, in_structure)) if stacked else b
    found = freeze(jax.eval_shape(lambda: vector))
    if found == orientation.out_structure:
        flat = orientation.ravel_out(vector).astype(dtype), None
    elif stacked and found == freeze((out_structure, in_structure)):
        b, c = vector
        flat = orientation.ravel_out(b).astype(dtype), ravel(c).astype(dtype)
    else:
        raise ValueError(
            f"A damped solve of an operator onto {out_structure} was given a vector of "
            f"structure {jax.eval_shape(lambda: vector)}."
        )
    return unravel(orientation.apply(solve, adjoint, flat), in_structure)
