"""One QR of the operator, then a small one for each damping."""

import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Inexact, PyTree, ScalarLike

from .._factor.householder import (
    HouseholderQR,
    solve_lower_transposed,
    solve_upper,
)
from .._factor.panels import TriangularStackQR
from .._factor.rank import default_rcond, is_singular
from .._factor.triangular_stack import (
    is_long,
    is_small,
    solve_condensed,
    triangular_stack_qr,
)
from .._factor.tsqr import TSQR, tsqr
from .._flat import freeze, FrozenStructure, thaw, unravel
from .._operator.damped import check_damping
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
    unwrap,
)
from .damped_svd import DampedSVD
from .orientation import frozen_matrix, orient, Orientation
from .sharding import check_rows, find_rows


class _DampedCore(eqx.Module):
    """The QR of [R; √λ E], with the larger of the two on top.

    E = D when A is tall, and 1 when it is wide. Were a large √λ below, an answer of
    relative size σ/√λ would be the difference of numbers of size 1.
    """

    damping: Damping
    qr: TriangularStackQR
    swapped: Bool[Array, ""]

    def order(self, upper: Array, lower: Array) -> tuple[Array, Array]:
        """Between (R, √λ E) and (top, bottom), either way."""
        return (
            jnp.where(self.swapped, lower, upper),
            jnp.where(self.swapped, upper, lower),
        )


class DampedQRState(eqx.Module):
    # Q R = A when tall, Q R = D⁻¹ Aᴴ when wide (m < n).
    qr: HouseholderQR | TSQR
    core: _DampedCore | None
    singular: Bool[Array, ""]
    orientation: Orientation
    wide: bool = eqx.field(static=True)
    # Whether this is the state of [A; √λ D], or stands in for one of A.
    stacked: bool = eqx.field(static=True)


class TallPath(eqx.Module):
    st: Inexact[Array, "n k"]
    c: Inexact[Array, " k"]
    in_structure: FrozenStructure = eqx.field(static=True)
    # Whether these are Aᵀ and b themselves.
    whole: bool = eqx.field(static=True)
    # Whether m is so large that a step costs little beside what made these.
    long: bool = eqx.field(static=True)

    def __call__(self, damping: ScalarLike) -> PyTree[Array]:
        real = jnp.finfo(self.st.dtype).dtype
        root = jnp.sqrt(jnp.asarray(damping).astype(real))
        x = solve_condensed(self.st, self.c, root, looped=self.long)
        return unravel(x, thaw(self.in_structure))


class DampedQR(AbstractDampedSolver[DampedQRState]):
    """Damped least squares by one QR of the operator, reused for every damping.

    Solves min ‖A x − b‖² + λ ‖D x‖². `init` computes A = Q R once. `damp` computes, for
    one λ and one D, the QR of [R; √λ D], two triangles, at a cost that does not depend
    on m. The stack [A; √λ D] is never formed, nor are its normal equations: the method
    is backward stable for all λ ≥ 0.

    With an m×n operator: O(m n²) for `init`, 2n³/3 flops for `damp`, O(m n) for a
    right-hand side. When m < n it is Aᴴ that is factorised, and the damped problem is
    m×m; a `scale` then enters the factorisation, and `damp` costs O(n m²).

    It can be used in three ways.

    - [`lineax_ext.damped_solve`][], and `lx.linear_solve` of a
        [`lineax_ext.DampedLinearOperator`][]: differentiable in everything.
    - `lx.linear_solve` of any other operator with `DampedQR()`: ordinary least squares,
        minimum norm when wide, as [`lineax_ext.QRMultiply`][].
    - `lx.linear_solve` of any other operator with `DampedQR(damping=λ)`: returns the
        damped solution, for software that accepts a solver and knows of no damping.
        Differentiable in the vector. lineax derives the derivative in the operator from
        A x = b, which the solution does not satisfy, so that derivative is refused.

    **Arguments:**

    - `damping`: λ ≥ 0, a real scalar, or `None` for none.
    - `rows`: as for [`lineax_ext.QRMultiply`][].

    **Raises:**

    `ValueError` for a negative or non-finite damping; for `rows` as
    [`lineax_ext.QRMultiply`][]; for a damping together with a
    `DampedLinearOperator`, which has its own; on differentiation with respect to the
    operator with `damping=λ`. A rank-deficient operator is reported as
    `RESULTS.singular` if λ = 0, or if √λ is smaller than a rounding error in its
    columns.

    ??? cite "References"

        Moré, *The Levenberg–Marquardt algorithm: implementation and theory*, in
        Numerical Analysis, Lecture Notes in Mathematics 630 (1978),
        doi:10.1007/BFb0067700, for the two-stage QR; there, the second stage is by
        Givens rotations.
    """

    damping: ScalarLike | None = None
    rows: NamedSharding | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        check_rows(self.rows, "DampedQR")
        if self.damping is not None:
            check_damping(self.damping)

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> DampedQRState:
        del options
        operator, damped = unwrap(operator)
        if damped is not None and self.damping is not None:
            raise ValueError(
                "`DampedQR(damping=...)` was given a `DampedLinearOperator`, which has "
                "a damping of its own. Use `DampedQR()`."
            )
        rows = find_rows(self.rows, operator, "DampedQR")
        orientation = orient(operator, rows)
        matrix = frozen_matrix(operator, "DampedQR", rows)
        m, n = operator.out_size(), operator.in_size()
        wide = m < n
        if damped is not None:
            damping = resolve_damping(
                damped.damping, damped.scale, orientation, matrix.dtype
            )
        elif self.damping is not None:
            damping = resolve_damping(self.damping, None, orientation, matrix.dtype)
        else:
            damping = None
        qr = factorise(matrix, damping) if rows is None else tsqr(matrix, rows)
        singular = is_singular(qr.r, default_rcond(m, n, matrix.dtype))
        stacked = damped is not None
        state = DampedQRState(qr, None, singular, orientation, wide, stacked)
        return state if damping is None else _damp(state, damping)

    def damp(
        self,
        state: DampedQRState,
        damping: ScalarLike,
        scale: PyTree[Array] | None = None,
    ) -> DampedQRState:
        check_state(state, DampedQRState, self)
        new = resolve_damping(damping, scale, state.orientation, state.qr.dtype)
        if state.wide:
            old = None if state.core is None else state.core.damping
            state = dataclasses.replace(state, qr=refactorise(state.qr, old, new))
        return dataclasses.replace(_damp(state, new), stacked=True)

    def path(self, operator: lx.AbstractLinearOperator, vector: PyTree[Array]):
        m, n = operator.out_size(), operator.in_size()
        if m < n and self.rows is None:
            return super().path(operator, vector)
        st, c = condensed(operator, vector, self.rows, "DampedQR", triangle=False)
        whole = self.rows is None and is_small(m, n)
        return TallPath(st, c, freeze(operator.in_structure()), whole, is_long(m, n))

    def spectrum(self, operator: lx.AbstractLinearOperator, vector: PyTree[Array]):
        return DampedSVD(rows=self.rows).spectrum(operator, vector)

    def compute(
        self,
        state: DampedQRState,
        vector: PyTree[Array],
        options: dict[str, Any],
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        del options
        solve, adjoint = (
            _undamped(state)
            if state.core is None
            else (_damped_wide(state) if state.wide else _damped_tall(state))
        )
        solution = solve_stacked(
            state.orientation,
            state.stacked,
            solve,
            adjoint,
            vector,
            state.qr.dtype,
        )
        return solution, result_of(state.singular), {}

    def assume_full_rank(self) -> bool:
        # lineax asks this for one reason alone: to differentiate in the operator.
        if self.damping is not None:
            raise ValueError(
                "`DampedQR(damping=...)` cannot be differentiated with respect to the "
                "operator: lineax takes the derivative from A x = b, and knows nothing "
                "of a damping inside the solver. Use `lineax_ext.damped_solve("
                "operator, vector, damping)`, which is differentiable with respect to "
                "the operator, the vector and the damping."
            )
        # B = [A; √λ D] has independent columns, save for a wide A at λ = 0.
        return False


def _damp(state: DampedQRState, damping: Damping) -> DampedQRState:
    core, singular = _core(state.qr.r, damping, state.wide)
    return dataclasses.replace(state, core=core, singular=singular)


# Outside of anyone's `jit`, one operation after the other would be compiled.
@eqx.filter_jit
def _core(
    r: Inexact[Array, "k k"], damping: Damping, wide: bool
) -> tuple[_DampedCore, Bool[Array, ""]]:
    r = jnp.triu(r)
    k = r.shape[0]
    diagonal = jnp.broadcast_to(damping.root, (k,))
    if damping.scale is not None and not wide:
        diagonal = diagonal * damping.scale
    largest = jnp.max(jnp.abs(r), initial=0)
    swapped = jnp.max(diagonal, initial=0) > largest
    lower = jnp.diag(diagonal.astype(r.dtype))
    qr = triangular_stack_qr(jnp.where(swapped, lower, r), jnp.where(swapped, r, lower))
    # With λ > 0 the columns are independent, if √λ can be told from 0 next to them.
    rcond = jnp.where(
        damping.root > 0, default_rcond(1, 1, r.dtype), default_rcond(k, k, r.dtype)
    )
    return _DampedCore(damping, qr, swapped), is_singular(qr.rt.T, rcond)


# Each returns A⁺ or B⁺ as `solve`, and its adjoint, on flat vectors.


def _undamped(state):
    qr = state.qr

    def thin_solve(b):
        return solve_upper(qr.r, qr.q_adjoint_multiply(b))

    def thin_adjoint(c):
        return qr.q_multiply(solve_upper(qr.r, c, adjoint=True))

    # Aᴴ = Q R when wide.
    solve, adjoint = (
        (thin_adjoint, thin_solve) if state.wide else (thin_solve, thin_adjoint)
    )
    return lambda pair: solve(pair[0]), lambda x: (adjoint(x), None)


def _damped_tall(state):
    # With [R; √λ D] = Q̃ [R̃; 0], and Q = [Q₁ Q₂; Q₃ Q₄] for Q̃ in the rows of R, √λ D:
    #
    #   x = R̃⁻¹ (Q₁ᴴ Qᴴ b + Q₃ᴴ c)
    qr, core = state.qr, state.core

    def solve(pair):
        b, c = pair
        qhb = qr.q_adjoint_multiply(b)
        c = jnp.zeros_like(qhb) if c is None else c
        y, _ = core.qr.q_adjoint_multiply(*core.order(qhb, c))
        return solve_lower_transposed(core.qr.rt, y)

    def adjoint(x):
        y = solve_lower_transposed(core.qr.rt, x, adjoint=True)
        upper, lower = core.order(*core.qr.q_multiply(y, jnp.zeros_like(y)))
        return qr.q_multiply(upper), lower

    return solve, adjoint


def _damped_wide(state):
    # With D⁻¹ Aᴴ = Q R and z = D x, split z = Q p + z⊥. The problem
    #
    #   min ‖Rᴴ Qᴴ z − b‖² + ‖√λ z − c‖²
    #
    # decouples: z⊥ = (c − Q Qᴴ c)/√λ, and p solves min ‖Rᴴ p − b‖² + ‖√λ p − Qᴴ c‖².
    # For c = 0 that is the upper part of the minimum-norm solution of
    # [Rᴴ √λ] (p; s) = b, which the QR of [R; √λ] gives. With the blocks of the tall
    # case,
    #
    #   p = Q₁ R̃⁻ᴴ b + Q₂ Q₂ᴴ Qᴴ c / √λ,
    #
    # where 1 − Q₁ Q₁ᴴ = Q₂ Q₂ᴴ, the first without cancellation.
    qr, core = state.qr, state.core
    inverse_root = core.damping.inverse_root.astype(qr.dtype)
    scale = core.damping.scale
    unscale = lambda x: x if scale is None else x / scale.astype(qr.dtype)

    def outside(qhc, rest):  # Q₂ Q₂ᴴ Qᴴ c
        upper, _ = core.order(*core.qr.q_multiply(jnp.zeros_like(qhc), rest))
        return upper

    def solve(pair):
        b, c = pair
        y = solve_lower_transposed(core.qr.rt, b, adjoint=True)
        p, _ = core.order(*core.qr.q_multiply(y, jnp.zeros_like(y)))
        if c is None:
            return unscale(qr.q_multiply(p))
        qhc = qr.q_adjoint_multiply(c)
        _, rest = core.qr.q_adjoint_multiply(*core.order(qhc, jnp.zeros_like(qhc)))
        p = p + inverse_root * (outside(qhc, rest) - qhc)
        return unscale(qr.q_multiply(p) + inverse_root * c)

    def adjoint(x):
        x = unscale(x)
        qhx = qr.q_adjoint_multiply(x)
        y, rest = core.qr.q_adjoint_multiply(*core.order(qhx, jnp.zeros_like(qhx)))
        lower = inverse_root * (outside(qhx, rest) - qhx)
        b = solve_lower_transposed(core.qr.rt, y)
        return b, qr.q_multiply(lower) + inverse_root * x

    return solve, adjoint
