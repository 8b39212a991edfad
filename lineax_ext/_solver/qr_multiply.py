"""QR that multiplies by Q and never forms it."""

import dataclasses
from typing import Any

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Inexact, PyTree

from .._factor.householder import (
    householder_qr,
    q_adjoint_multiply,
    q_multiply,
    solve_upper,
)
from .._factor.product import matmul
from .._factor.rank import default_rcond, is_singular
from .._result import result_of
from .orientation import frozen_matrix, orient, Orientation


class _RankRevealing(eqx.Module):
    """R = U L Vᴴ with U, V unitary and L lower triangular, of rank `rank`.

    Rows and columns of L from the rank on are those of the identity, to be masked.
    """

    u: Inexact[Array, "k k"]
    lh: Inexact[Array, "k k"]
    v: Inexact[Array, "k k"]
    rank: Array


class _QRMultiplyState(eqx.Module):
    householder: Inexact[Array, "m k"]
    taus: Inexact[Array, " k"]
    core: _RankRevealing | None
    singular: Bool[Array, ""]
    orientation: Orientation


def _complete(r: Inexact[Array, "k k"], rcond: Any) -> _RankRevealing:
    """The complete orthogonal decomposition of R, without ever slicing by the rank.

    R P = U [T; 0] with T of `rank` rows (`geqp3`), then Tᴴ = V [Lᴴ; 0].
    """
    k = r.shape[0]
    u, t, permutation = lax.linalg.qr(r, pivoting=True, full_matrices=False)
    magnitude = jnp.abs(jnp.diagonal(t))
    rank = jnp.sum(magnitude > jnp.asarray(rcond, magnitude.dtype) * magnitude[0])
    kept = jnp.arange(k) < rank
    t = jnp.where(kept[:, None], t, 0)
    v, lh = jnp.linalg.qr(jnp.conj(t.T))
    lh = jnp.where(kept, lh, jnp.eye(k, dtype=r.dtype))
    # R = U L Vᴴ Pᵀ = U L (P V)ᴴ.
    v = jnp.zeros_like(v).at[permutation].set(v, unique_indices=True)
    return _RankRevealing(u, lh, v, rank)


class QRMultiply(lx.AbstractLinearSolver[_QRMultiplyState]):
    """QR factorisation that keeps Q as Householder reflectors and multiplies by it.

    Computes the least-squares solution argmin ‖A x − b‖ of a tall operator, the
    minimum-norm solution argmin {‖x‖ : A x = b} of a wide one, and A⁻¹ b of a square
    one, all from one QR of A, or of Aᵀ when A is wide.

    Drop-in for `lineax.QR`, with two differences. Under `vmap` over the vectors
    alone the right-hand sides become the columns of one `ormqr` and one triangular
    solve, at any depth of nesting. And with `pivoting=True` operators may be
    rank-deficient: the answer is then the pseudoinverse solution A⁺ b, as by
    `lineax.SVD`, from a complete orthogonal decomposition, for less.

    Needs no tags. For an m×n operator with k = min(m, n): O(m n k) once, in `init`, and
    O(m n) a right-hand side. With `pivoting=True` only R, k×k, is pivoted.

    Without pivoting, an operator of which a column (of Aᵀ, when wide) depends on those
    before it is reported as `RESULTS.singular`.

    **Arguments:**

    - `rcond`: the relative size under which a diagonal entry of R counts as zero: with
        pivoting, relative to the largest one, and it determines the rank (default:
        2·eps·max(m, n), as `lineax.SVD`); without, relative to its own column, and it
        determines what is reported as singular (default: eps·max(m, n)).
    - `pivoting`: whether to reveal the rank by column pivoting (LAPACK's `geqp3`).

    **Returns:**

    From `lx.linear_solve`: a solution; `stats["rank"]` holds the rank with pivoting.

    **Raises:**

    `ValueError` for a negative `rcond`, and for an operator between a real and a
    complex space.

    ??? cite "References"

        Golub, Van Loan, *Matrix Computations*, 4th ed., §5.2 and §5.4.7 (2013). For
        pivoting on R alone: Chan, *An Improved Algorithm for Computing the Singular
        Value Decomposition*, ACM Trans. Math. Software 8 (1982),
        doi:10.1145/355984.355990.
    """

    rcond: float | None = None
    pivoting: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        if isinstance(self.rcond, float | int) and not self.rcond >= 0:
            raise ValueError(f"`QRMultiply(rcond={self.rcond})` must not be negative.")

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> _QRMultiplyState:
        del options
        orientation = orient(operator)
        matrix = frozen_matrix(operator, "QRMultiply")
        m, n = matrix.shape
        if n > m:
            matrix, orientation = matrix.T, orientation.of_transpose()
        k = min(m, n)
        householder, taus = householder_qr(matrix)
        r = jnp.triu(householder[:k])
        rcond = default_rcond(m, n, matrix.dtype) if self.rcond is None else self.rcond
        if self.pivoting and k > 0:
            rcond = 2 * rcond if self.rcond is None else rcond
            core, singular = _complete(r, rcond), ~jnp.all(jnp.isfinite(r))
        else:
            core, singular = None, is_singular(r, rcond)
        return _QRMultiplyState(householder, taus, core, singular, orientation)

    def compute(
        self,
        state: _QRMultiplyState,
        vector: PyTree[Array],
        options: dict[str, Any],
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        del options
        householder, taus, core = state.householder, state.taus, state.core
        k = taus.size

        def solve(b):  # (Q R)⁺ b = R⁺ Qᴴ b
            c = q_adjoint_multiply(householder, taus, b)
            if core is None:
                return solve_upper(householder[:k], c)
            c = matmul(jnp.conj(core.u.T), c)
            c = jnp.where(jnp.arange(k) < core.rank, c, 0)
            return matmul(core.v, solve_upper(core.lh, c, adjoint=True))

        def adjoint(c):  # ((Q R)⁺)ᴴ c = Q R⁺ᴴ c
            if core is None:
                c = solve_upper(householder[:k], c, adjoint=True)
            else:
                c = matmul(jnp.conj(core.v.T), c)
                c = jnp.where(jnp.arange(k) < core.rank, c, 0)
                c = matmul(core.u, solve_upper(core.lh, c))
            return q_multiply(householder, taus, c)

        solution = state.orientation.solve_flat(
            solve, adjoint, vector, householder.dtype
        )
        result = result_of(state.singular)
        return solution, result, {} if core is None else {"rank": core.rank}

    def transpose(self, state: _QRMultiplyState, options: dict[str, Any]):
        del options
        return dataclasses.replace(state, orientation=state.orientation.transpose()), {}

    def conj(self, state: _QRMultiplyState, options: dict[str, Any]):
        del options
        return dataclasses.replace(state, orientation=state.orientation.conj()), {}

    def assume_full_rank(self) -> bool:
        return not self.pivoting
