"""One SVD of the operator, then O(n) for each damping."""

import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Inexact, PyTree, ScalarLike

from .._factor.householder import HouseholderQR, q_multiply_columns
from .._factor.product import matmul
from .._factor.rank import default_rcond
from .._factor.tsqr import TSQR, tsqr
from .._flat import freeze, FrozenStructure, ravel, thaw, unravel
from .._result import result_of
from .damped import (
    AbstractDampedSolver,
    check_state,
    condensed,
    Damping,
    factorise,
    refactorise,
    resolve_damping,
    solve_stacked,
    Spectrum,
    unwrap,
)
from .orientation import frozen_matrix, orient, Orientation
from .sharding import check_rows, find_rows


class _DampedSVDState(eqx.Module):
    # Q U Σ Vᴴ = A D⁻¹ when tall, its adjoint when wide (m < n); U, V are k×k.
    qr: HouseholderQR | TSQR
    u: Inexact[Array, "k k"]
    sigma: Float[Array, " k"]
    vh: Inexact[Array, "k k"]
    damping: Damping | None
    orientation: Orientation
    wide: bool = eqx.field(static=True)
    stacked: bool = eqx.field(static=True)


def _svd(core: Inexact[Array, "k k"]):
    if core.size == 0:
        return core, jnp.abs(core[:, :0].reshape(0)), core
    return jnp.linalg.svd(core, full_matrices=False)


def _svd_of_r(qr: HouseholderQR | TSQR, damping: Damping | None, wide: bool):
    """The SVD of R D⁻¹ when tall; of R when wide."""
    core = jnp.triu(qr.r)
    if not wide and damping is not None and damping.scale is not None:
        core = core / damping.scale.astype(core.dtype)[None, :]
    return _svd(core)


class _Path(eqx.Module):
    spectrum: Spectrum
    in_structure: FrozenStructure = eqx.field(static=True)

    def __call__(self, damping: ScalarLike) -> PyTree[Array]:
        x = self.spectrum.solution(self.spectrum.evaluate(damping).x)
        return unravel(x, thaw(self.in_structure))


class DampedSVD(AbstractDampedSolver[_DampedSVDState]):
    """Damped least squares by one SVD of the operator, for many dampings.

    Solves min ‖A x − b‖² + λ ‖D x‖². `init` computes A = Q R and R = U Σ Vᴴ; `damp`
    then does no arithmetic at all, unless it is given a `scale`: that asks for the SVD
    of R D⁻¹. In the basis of the singular vectors, the solution is

        x = D⁻¹ V (Σ² + λ)⁻¹ Σ Uᴴ Qᴴ b.

    O(m n² + n³) for `init`, with a larger constant than [`lineax_ext.DampedQR`][];
    O(m n) for a right-hand side.

    Singular values below `rcond` times the largest count as zero, so rank-deficient
    operators are fine with any λ ≥ 0, and λ = 0 gives the pseudoinverse solution:
    `init` of an ordinary operator makes this a faster `lineax.SVD` for tall and
    wide ones.

    **Arguments:**

    - `rcond`: default 2·eps·max(m, n), as for `lineax.SVD`.
    - `rows`: as for [`lineax_ext.QRMultiply`][].

    **Returns:**

    From `lx.linear_solve`: a solution; `stats["rank"]` holds the numerical rank of
    A D⁻¹.

    **Raises:**

    `ValueError` for a negative `rcond`, and for `rows` as
    [`lineax_ext.QRMultiply`][]. A non-finite operator, and a damping or a scale out of
    range, are reported as `RESULTS.singular`.

    ??? cite "References"

        Golub, Van Loan, *Matrix Computations*, 4th ed., §6.1.4 (2013).
    """

    rcond: float | None = None
    rows: NamedSharding | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        check_rows(self.rows, "DampedSVD")
        if isinstance(self.rcond, float | int) and not self.rcond >= 0:
            raise ValueError(f"`DampedSVD(rcond={self.rcond})` must not be negative.")

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> _DampedSVDState:
        del options
        operator, damped = unwrap(operator)
        rows = find_rows(self.rows, operator, "DampedSVD")
        orientation = orient(operator, rows)
        matrix = frozen_matrix(operator, "DampedSVD", rows)
        wide = operator.out_size() < operator.in_size()
        damping = None
        if damped is not None:
            damping = resolve_damping(
                damped.damping, damped.scale, orientation, matrix.dtype
            )
        qr = factorise(matrix, damping) if rows is None else tsqr(matrix, rows)
        u, sigma, vh = _svd_of_r(qr, damping, wide)
        return _DampedSVDState(
            qr=qr,
            u=u,
            sigma=sigma,
            vh=vh,
            damping=damping,
            orientation=orientation,
            wide=wide,
            stacked=damped is not None,
        )

    def damp(
        self,
        state: _DampedSVDState,
        damping: ScalarLike,
        scale: PyTree[Array] | None = None,
    ) -> _DampedSVDState:
        check_state(state, _DampedSVDState, self)
        qr, old = state.qr, state.damping
        new = resolve_damping(damping, scale, state.orientation, qr.dtype)
        state = dataclasses.replace(state, damping=new, stacked=True)
        if new.scale is None and (old is None or old.scale is None):
            return state
        if state.wide:
            qr = refactorise(qr, old, new)
        u, sigma, vh = _svd_of_r(qr, new, state.wide)
        return dataclasses.replace(state, qr=qr, u=u, sigma=sigma, vh=vh)

    def _kept(self, sigma: Float[Array, " k"], m: int, n: int) -> Bool[Array, " k"]:
        rcond = self.rcond
        if rcond is None:
            rcond = 2 * default_rcond(m, n, sigma.dtype)
        return sigma > jnp.asarray(rcond, sigma.dtype) * jnp.max(sigma, initial=0)

    def path(self, operator: lx.AbstractLinearOperator, vector: PyTree[Array]):
        structure = freeze(operator.in_structure())
        return _Path(self.spectrum(operator, vector), structure)

    def spectrum(self, operator: lx.AbstractLinearOperator, vector: PyTree[Array]):
        m, n = operator.out_size(), operator.in_size()
        if m < n and self.rows is None:
            matrix = frozen_matrix(operator, "DampedSVD")
            qr = factorise(matrix, None)
            u, sigma, vh = _svd_of_r(qr, None, wide=True)
            coefficients = matmul(vh, ravel(vector).astype(matrix.dtype))
            basis = q_multiply_columns(qr.householder, qr.taus, u)
        else:
            st, c = condensed(operator, vector, self.rows, "DampedSVD")
            u, sigma, vh = _svd(st.T)
            coefficients, basis = matmul(jnp.conj(u.T), c), jnp.conj(vh.T)
        sigma = jnp.where(self._kept(sigma, m, n), sigma, 0)
        return Spectrum(sigma, coefficients, basis)

    def compute(
        self,
        state: _DampedSVDState,
        vector: PyTree[Array],
        options: dict[str, Any],
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        del options
        qr, dtype = state.qr, state.qr.dtype
        damping = state.damping
        scale = None if damping is None else damping.scale
        unscale = lambda x: x if scale is None else x / scale.astype(dtype)

        kept = self._kept(state.sigma, *qr.shape)
        sigma = jnp.where(kept, state.sigma, 0)
        root = jnp.zeros((), sigma.dtype) if damping is None else damping.root
        # (Σ² + λ)⁻¹ Σ and (Σ² + λ)⁻¹ √λ, by way of the hypotenuse: nothing overflows.
        hypotenuse = jnp.hypot(sigma, root)
        positive = hypotenuse > 0
        safe = jnp.where(positive, hypotenuse, 1)
        # Each a factor of at most 1, with another 1/h left for after the product.
        on_b = jnp.where(positive, sigma / safe, 0).astype(dtype)
        on_c = jnp.where(positive, root / safe, 0).astype(dtype)
        h = safe.astype(dtype)

        # The two bases: A D⁻¹ = L Σ Mᴴ, with M square when A is tall. When A is wide
        # there is a part of c orthogonal to M, and the solution there is c/√λ.
        def q_and_u(x):
            return qr.q_multiply(matmul(state.u, x))

        def q_and_u_adjoint(x):
            return matmul(jnp.conj(state.u.T), qr.q_adjoint_multiply(x))

        def v(x):
            return matmul(jnp.conj(state.vh.T), x)

        def v_adjoint(x):
            return matmul(state.vh, x)

        left, left_adjoint, right, right_adjoint = (
            (v, v_adjoint, q_and_u, q_and_u_adjoint)
            if state.wide
            else (q_and_u, q_and_u_adjoint, v, v_adjoint)
        )
        outside = jnp.zeros((), dtype)
        if state.wide and damping is not None:
            outside = damping.inverse_root.astype(dtype)

        def solve(pair):
            b, c = pair
            y = on_b * left_adjoint(b) / h
            if c is None:
                return unscale(right(y))
            y = y + (on_c / h - outside) * right_adjoint(c)
            return unscale(right(y) + outside * c)

        def adjoint(x):
            x = unscale(x)
            y = right_adjoint(x)
            c = right((on_c / h - outside) * y) + outside * x
            return left(on_b * y / h), c

        solution = solve_stacked(
            state.orientation, state.stacked, solve, adjoint, vector, dtype
        )
        valid = jnp.all(jnp.isfinite(hypotenuse) & jnp.isfinite(state.sigma))
        return solution, result_of(~valid), {"rank": jnp.sum(kept)}

    def assume_full_rank(self) -> bool:
        return False
