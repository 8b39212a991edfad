"""The inverse of a positive definite matrix, from its Cholesky factor."""

import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from .householder import matmul


def _leaf(n: int) -> int:
    """The size of the blocks that are left to LAPACK.

    Of 32 to 256, measured at n = 300 to 2000. The second bound is for the time to
    compile.
    """
    return max(64, n // 32)


def cholesky_inverse(factor: Inexact[Array, "n n"]) -> Inexact[Array, "n n"]:
    """A⁻¹ from the lower triangular L of A = L Lᴴ; LAPACK's `potri`, which JAX lacks.

    By halves: with L = [L₁ 0; B L₂], T = B L₁⁻¹ and X₂ = L₂⁻ᴴ L₂⁻¹,

        A⁻¹ = [ X₁ − Tᴴ Y   Yᴴ ]        X₁ = L₁⁻ᴴ L₁⁻¹,
              [     Y       X₂ ],       Y = −X₂ T.

    Nearly all of the 22/21 n³ operations (`potri` does with 2/3 n³; two triangular
    solves take 2 n³) are then in products of large square matrices, the one thing that
    XLA does as fast as the machine can.

    ??? cite "Reference"

        Elmroth, Gustavson, Jonsson, Kågström, *Recursive blocked algorithms and hybrid
        data structures for dense matrix library software*, SIAM Review 46 (2004),
        doi:10.1137/S0036144503428693.
    """
    return _inverses(factor, _leaf(factor.shape[0]), with_triangle=False)[1]


def _inverses(factor, leaf, with_triangle):
    """(L⁻¹ or `None`, A⁻¹)"""
    n = factor.shape[0]
    if n <= leaf:
        eye = jnp.eye(n, dtype=factor.dtype)
        w = lax.linalg.triangular_solve(factor, eye, left_side=True, lower=True)
        return w, matmul(_adjoint(w), w)
    half = n // 2
    w1, x1 = _inverses(factor[:half, :half], leaf, True)
    w2, x2 = _inverses(factor[half:, half:], leaf, with_triangle)
    t = matmul(factor[half:, :half], w1)
    y = -matmul(x2, t)
    inverse = _block(x1 - matmul(_adjoint(t), y), _adjoint(y), y, x2)
    if not with_triangle:
        return None, inverse
    zeros = jnp.zeros((half, n - half), factor.dtype)
    return _block(w1, zeros, -matmul(w2, t), w2), inverse


def _adjoint(x):
    return jnp.conj(x.T)


def _block(a, b, c, d):
    return jnp.concatenate([jnp.concatenate([a, b], 1), jnp.concatenate([c, d], 1)])
