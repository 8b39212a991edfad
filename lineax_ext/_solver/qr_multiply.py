"""QR that multiplies by Q and never forms it."""

import dataclasses
from typing import Any

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Inexact, PyTree

from .._checks import check_state
from .._factor.householder import householder_qr, HouseholderQR, solve_upper
from .._factor.product import matmul
from .._factor.rank import default_rcond, is_singular
from .._factor.tsqr import TSQR, tsqr
from .._result import result_of
from .orientation import frozen_matrix, orient, Orientation
from .sharding import check_rows, find_rows


class _RankRevealing(eqx.Module):
    """R = U L Vᴴ with U, V unitary and L lower triangular, of rank `rank`.

    Rows and columns of L from the rank on are those of the identity, to be masked.
    """

    u: Inexact[Array, "k k"]
    lh: Inexact[Array, "k k"]
    v: Inexact[Array, "k k"]
    rank: Array


class _QRMultiplyState(eqx.Module):
    qr: HouseholderQR | TSQR
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
    - `rows`: how the rows of a tall operator lie on a mesh of devices (the leading axis
        of every leaf of its output). No device then holds more than its own rows, and
        an n×n triangle of each other; see *Past one device* in the documentation.
        Default: all on one device, unless the type of the operator's output says
        otherwise (`jax.sharding.AxisType.Explicit`).

    **Returns:**

    From `lx.linear_solve`: a solution; `stats["rank"]` holds the rank with pivoting.

    **Raises:**

    `ValueError` for an `rcond` that is negative or no number; for an operator between a
    real and a complex space; with `rows`, for one that is wide, or a
    `JacobianLinearOperator` with `jac="bwd"`, and for `rows` that name no axis of a
    mesh.

    ??? cite "References"

        Golub, Van Loan, *Matrix Computations*, 4th ed., §5.2 and §5.4.7 (2013). For
        pivoting on R alone: Chan, *An Improved Algorithm for Computing the Singular
        Value Decomposition*, ACM Trans. Math. Software 8 (1982),
        doi:10.1145/355984.355990.
    """

    rcond: float | None = None
    pivoting: bool = eqx.field(static=True, default=False)
    rows: NamedSharding | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        check_rows(self.rows, "QRMultiply")
        if isinstance(self.rcond, bool | str):
            raise ValueError(
                f"`QRMultiply(rcond={self.rcond!r})` must be a number or `None`. "
                "Pivoting is asked for by name: `QRMultiply(pivoting=True)`."
            )
        if isinstance(self.rcond, float | int) and not self.rcond >= 0:
            raise ValueError(f"`QRMultiply(rcond={self.rcond})` must not be negative.")

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> _QRMultiplyState:
        del options
        rows = find_rows(self.rows, operator, "QRMultiply")
        orientation = orient(operator, rows)
        matrix = frozen_matrix(operator, "QRMultiply", rows)
        m, n = operator.out_size(), operator.in_size()
        if n > m:
            matrix, orientation = matrix.T, orientation.of_transpose()
        k = min(m, n)
        if rows is None:
            qr = HouseholderQR(*householder_qr(matrix))
        else:
            qr = tsqr(matrix, rows)
        r = jnp.triu(qr.r)
        rcond = default_rcond(m, n, matrix.dtype) if self.rcond is None else self.rcond
        if self.pivoting and k > 0:
            rcond = 2 * rcond if self.rcond is None else rcond
            core, singular = _complete(r, rcond), ~jnp.all(jnp.isfinite(r))
        else:
            core, singular = None, is_singular(r, rcond)
        return _QRMultiplyState(qr, core, singular, orientation)

    def compute(
        self,
        state: _QRMultiplyState,
        vector: PyTree[Array],
        options: dict[str, Any],
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        del options
        check_state(state, _QRMultiplyState, self)
        qr, core = state.qr, state.core
        k = qr.shape[1]

        def solve(b):  # (Q R)⁺ b = R⁺ Qᴴ b
            c = qr.q_adjoint_multiply(b)
            if core is None:
                return solve_upper(qr.r, c)
            c = matmul(jnp.conj(core.u.T), c)
            c = jnp.where(jnp.arange(k) < core.rank, c, 0)
            return matmul(core.v, solve_upper(core.lh, c, adjoint=True))

        def adjoint(c):  # ((Q R)⁺)ᴴ c = Q R⁺ᴴ c
            if core is None:
                c = solve_upper(qr.r, c, adjoint=True)
            else:
                c = matmul(jnp.conj(core.v.T), c)
                c = jnp.where(jnp.arange(k) < core.rank, c, 0)
                c = matmul(core.u, solve_upper(core.lh, c))
            return qr.q_multiply(c)

        solution = state.orientation.solve_flat(solve, adjoint, vector, qr.dtype)
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
