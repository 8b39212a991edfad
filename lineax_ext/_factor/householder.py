"""Householder factorisations that stay factored, and are batched by hand."""

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact

from .product import matmul


# With more, OpenBLAS calls its threads, which spin for 25 ms afterwards.
_most_right_hand_sides = 7


def householder_qr(
    matrix: Inexact[Array, "*batch m k"],
) -> tuple[Inexact[Array, "*batch m k"], Inexact[Array, "*batch k"]]:
    """LAPACK's `geqrf` of a tall matrix: `(householder, taus)`.

    R is the upper triangle of the first k rows, the reflectors lie under it.
    """
    if matrix.shape[-1] == 0:
        return matrix, jnp.zeros((*matrix.shape[:-2], 0), matrix.dtype)
    transposed, taus = jnp.linalg.qr(matrix, mode="raw")  # pyright: ignore
    return transposed.mT, taus


def compact_wy(vt: Array, taus: Array) -> Array:
    """T of I − V T Vᴴ = H₁ H₂ ⋯, Hⱼ = I − τⱼ vⱼ vⱼᴴ; of V = [I; V₂], V₂ is enough.

    T⁻¹ = diag(1/τ) + U with U the strict upper triangle of Vᴴ V. Written
    T = diag(τ) (I + U diag(τ))⁻¹, τⱼ = 0 is no special case: row and column j vanish.
    """
    w = taus.size
    # In a batch of few right-hand sides each. (Constants need no code, nor time.)
    width = next(i for i in range(_most_right_hand_sides, 0, -1) if w % i == 0)
    eye = np.eye(w, dtype=vt.dtype)
    columns = np.ascontiguousarray(eye.reshape(w, w // width, width).swapaxes(0, 1))
    gram = matmul(jnp.conj(vt), vt.T)
    matrix = jnp.where(np.triu(np.ones((w, w), bool), 1), gram * taus[None, :], eye)
    matrix = jnp.broadcast_to(matrix, (w // width, w, w))
    inverse = lax.linalg.triangular_solve(matrix, columns, left_side=True, lower=False)
    return taus[:, None] * jnp.moveaxis(inverse, 0, 1).reshape(w, w)


def _ormqr(adjoint: bool):
    """`ormqr` whose `vmap` over right-hand sides alone makes columns of them.

    JAX's own batching rule broadcasts the factors: B right-hand sides read B copies of
    them, and B matrix-vector products run where one matrix product would.
    """

    @jax.custom_batching.custom_vmap
    def apply(householder, taus, columns):
        return lax.linalg.ormqr(householder, taus, columns, transpose=adjoint)

    @apply.def_vmap
    def _(axis_size, in_batched, householder, taus, columns):
        *factor_batched, columns_batched = in_batched
        if any(factor_batched):
            # Several factorisations: `ormqr` takes leading batch dimensions itself.
            args = [
                x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))
                for x, batched in zip((householder, taus, columns), in_batched)
            ]
            return apply(*args), True
        assert columns_batched
        columns = jnp.moveaxis(columns, 0, -2)  # (*batch, m, axis_size, c)
        *lead, axis, c = columns.shape
        out = apply(householder, taus, columns.reshape(*lead, axis * c))
        return jnp.moveaxis(out.reshape(*lead, axis, c), -2, 0), True

    return apply


_multiply_q = _ormqr(adjoint=False)
_multiply_q_adjoint = _ormqr(adjoint=True)


def q_adjoint_multiply(householder: Array, taus: Array, vector: Array) -> Array:
    """The first k entries of Qᴴ b, for b of m entries: (m,) to (k,)."""
    k = taus.shape[-1]
    if k == 0:
        return jnp.zeros((0,), vector.dtype)
    return _multiply_q_adjoint(householder, taus, vector[:, None])[:k, 0]


def q_multiply_columns(householder: Array, taus: Array, columns: Array) -> Array:
    """Q [C; 0], for C of shape (k, c): to (m, c)."""
    m, k = householder.shape[-2:]
    if k == 0:
        return jnp.zeros((m, columns.shape[1]), columns.dtype)
    zeros = jnp.zeros((m - k, columns.shape[1]), columns.dtype)
    return _multiply_q(householder, taus, jnp.concatenate([columns, zeros]))


def q_multiply(householder: Array, taus: Array, vector: Array) -> Array:
    """Q [c; 0], for c of k entries: (k,) to (m,)."""
    return q_multiply_columns(householder, taus, vector[:, None])[:, 0]


class HouseholderQR(eqx.Module):
    """A = Q R of a tall A, as `householder_qr` returns it."""

    householder: Inexact[Array, "*batch m k"]
    taus: Inexact[Array, "*batch k"]

    @property
    def shape(self) -> tuple[int, int]:
        m, k = self.householder.shape[-2:]
        return m, k

    @property
    def dtype(self) -> jnp.dtype:
        return self.householder.dtype

    @property
    def r(self) -> Inexact[Array, "k k"]:
        """R in the upper triangle; below it is something else."""
        return self.householder[: self.taus.shape[-1]]

    def q_adjoint_multiply(self, vector: Inexact[Array, " m"]) -> Inexact[Array, " k"]:
        return q_adjoint_multiply(self.householder, self.taus, vector)

    def q_multiply(self, vector: Inexact[Array, " k"]) -> Inexact[Array, " m"]:
        return q_multiply(self.householder, self.taus, vector)


def solve_upper(r: Array, vector: Array, *, adjoint: bool = False) -> Array:
    """R⁻¹ c, or R⁻ᴴ c; reads the upper triangle alone.

    The rule of `triangular_solve` itself folds a `vmap` over right-hand sides.
    """
    if vector.size == 0:
        return vector
    return lax.linalg.triangular_solve(
        r,
        vector[:, None],
        left_side=True,
        lower=False,
        transpose_a=adjoint,
        conjugate_a=adjoint,
    )[:, 0]


def solve_lower_transposed(rt: Array, vector: Array, *, adjoint: bool = False) -> Array:
    """As `solve_upper`, with Rᵀ, lower triangular, in place of R."""
    if vector.size == 0:
        return vector
    return lax.linalg.triangular_solve(
        rt,
        vector[:, None],
        left_side=True,
        lower=True,
        transpose_a=not adjoint,
        conjugate_a=adjoint,
    )[:, 0]
