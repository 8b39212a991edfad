"""Factorisations that know their determinant, each with its derivatives by hand."""

import functools as ft
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.scipy as jsp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Inexact

from .block_elimination import blocks_of_inverse, eliminate_blocks
from .cholesky_inverse import cholesky_inverse
from .phase import lu_slogdet, phase
from .product import matmul
from .tridiagonal_minors import tridiagonal_minors, tridiagonal_of_inverse


_Scalar = Inexact[Array, ""]
_Vector = Inexact[Array, " n"]


class Factored(NamedTuple):
    """A, factorised: `sign` · exp(`logabsdet`) = det A and `solve(b)` = A⁻¹ b."""

    sign: _Scalar
    logabsdet: _Scalar
    solve: Callable[[_Vector], _Vector]  # of vectors of the dtype of `sign`

    def claimed(self, true: Bool[Array, ""]) -> "Factored":
        """nan, derivatives too, unless what was claimed of the operator is true."""
        one = jnp.where(true, 1, jnp.nan).astype(self.logabsdet.dtype)
        one_ = one.astype(self.sign.dtype)
        solve = lambda vector: self.solve(vector) * one_
        return Factored(self.sign * one_, self.logabsdet * one, solve)

    def scaled(self, scalar: _Scalar, n: int) -> "Factored":
        """scalar · A, of size n."""
        return Factored(
            self.sign * phase(scalar) ** n,
            self.logabsdet + n * jnp.log(jnp.abs(scalar)),
            lambda vector: self.solve(vector / scalar),
        )


#
# O(n)
#


def from_diagonal(diagonal: _Vector, solve: Callable[[_Vector], _Vector]) -> Factored:
    """Diagonal or triangular."""
    logabsdet = jnp.sum(jnp.log(jnp.abs(diagonal)))
    return Factored(jnp.prod(phase(diagonal)), logabsdet, solve)


def tridiagonal(
    diagonals: tuple[_Vector, _Vector, _Vector], solve: Callable[[_Vector], _Vector]
) -> tuple[Factored, Array]:
    """And whether, if it is Hermitian, it may be positive semidefinite."""
    sign, logabsdet, smallest = _tridiagonal_slogdet(*diagonals)
    # Of a singular matrix a minor that should vanish may be negative by rounding.
    rounding = jnp.finfo(smallest.dtype).eps ** 0.5
    return Factored(sign, logabsdet, solve), smallest >= -rounding


@jax.custom_jvp
def _tridiagonal_slogdet(diagonal, lower_diagonal, upper_diagonal):
    return _tridiagonal_values(
        tridiagonal_minors(diagonal, lower_diagonal, upper_diagonal)
    )


def _tridiagonal_values(minors):
    det = minors.leading[-1, 0]
    logabsdet = jnp.log(jnp.abs(det)) + minors.log_scale
    # Signs of leading minors: of a Hermitian matrix they count the eigenvalues.
    return phase(det), logabsdet, jnp.min(minors.leading[:, 0].real)


@_tridiagonal_slogdet.defjvp
def _(primals, tangents):
    minors = tridiagonal_minors(*primals)
    sign, logabsdet, smallest = _tridiagonal_values(minors)
    diagonal, lower, upper = tridiagonal_of_inverse(minors)
    # tr(A⁻¹ dA)
    trace = jnp.sum(diagonal * tangents[0])
    trace = trace + jnp.sum(upper * tangents[1]) + jnp.sum(lower * tangents[2])
    out = sign, logabsdet, smallest
    return out, (*slogdet_tangents(sign, trace), jnp.zeros_like(smallest))


@jax.custom_jvp
def block_tridiagonal_slogdet(diagonal, lower_diagonal, upper_diagonal):
    """`(sign, logabsdet)`, O(N k³)."""
    lower = jnp.pad(lower_diagonal, ((1, 0), (0, 0), (0, 0)))
    upper = jnp.pad(upper_diagonal, ((0, 1), (0, 0), (0, 0)))
    left = eliminate_blocks(diagonal, lower, upper)
    return left.sign, left.logabsdet


@block_tridiagonal_slogdet.defjvp
def _(primals, tangents):
    diagonal, lower, upper, sign, logabsdet = blocks_of_inverse(*primals)
    # tr(A⁻¹ dA)
    inner = lambda x, dx: jnp.sum(jnp.swapaxes(x, 1, 2) * dx)
    trace = inner(diagonal, tangents[0])
    trace = trace + inner(upper, tangents[1]) + inner(lower, tangents[2])
    return (sign, logabsdet), slogdet_tangents(sign, trace)


def slogdet_tangents(sign, trace):
    """Those of (sign, logabsdet): d log det = tr(A⁻¹ dA), for any logarithm."""
    if jnp.iscomplexobj(sign):
        return sign * lax.complex(jnp.zeros_like(trace.imag), trace.imag), trace.real
    return jnp.zeros_like(sign), trace.real


#
# Dense. The factors are constants to JAX; derivatives come from the matrix and from
# what the factors are used for, as in `lax.custom_linear_solve`.
#


@ft.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _inverse(invert: Callable, matrix, factors):
    return invert(factors)


@_inverse.defjvp
def _(invert, primals, tangents):
    inverse = _inverse(invert, *primals)
    # dA⁻¹ = −A⁻¹ dA A⁻¹
    return inverse, -matmul(matmul(inverse, tangents[0]), inverse)


@ft.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _dense_slogdet(invert: Callable, matrix, factors, sign, logabsdet):
    return sign, logabsdet


@_dense_slogdet.defjvp
def _(invert, primals, tangents):
    matrix, factors, sign, logabsdet = primals
    out = _dense_slogdet(invert, *primals)
    trace = jnp.sum(_inverse(invert, matrix, factors).T * tangents[0])
    return out, slogdet_tangents(out[0], trace)


def _dense(matrix, factors, sign, logabsdet, invert, solve, transpose_solve):
    sign, logabsdet = _dense_slogdet(invert, matrix, factors, sign, logabsdet)

    def solve_(vector):
        return lax.custom_linear_solve(
            lambda x: matmul(matrix, x),
            vector,
            lambda _, b: solve(factors, b),
            lambda _, b: transpose_solve(factors, b),
        )

    return Factored(sign, logabsdet, solve_)


def cholesky(matrix: Inexact[Array, "n n"]) -> Factored:
    """A = L Lᴴ."""
    frozen = lax.stop_gradient(matrix)
    factor = lax.linalg.cholesky(frozen, symmetrize_input=False)
    logabsdet = 2 * jnp.sum(jnp.log(jnp.diagonal(factor).real))
    failed = ~jnp.isfinite(logabsdet)
    # It fails for singular matrices, too. The other reason is a false tag.
    semidefinite = _is_semidefinite(frozen, failed)
    sign = jnp.where(failed, jnp.where(semidefinite, 0.0, jnp.nan), 1.0)
    singular = jnp.where(semidefinite, -jnp.inf, jnp.nan)
    logabsdet = jnp.where(failed, singular, logabsdet)
    sign = sign.astype(matrix.dtype)
    solve = lambda factor, b: jsp.linalg.cho_solve((factor, True), b)
    transpose_solve = lambda factor, b: jnp.conj(solve(factor, jnp.conj(b)))
    return _dense(
        matrix, factor, sign, logabsdet, cholesky_inverse, solve, transpose_solve
    )


@custom_vmap
def _is_semidefinite(matrix, failed):
    """Elementwise in any axes that come before those of the matrix.

    Written for these so as to look at eigenvalues only if something failed: a `cond`
    under `vmap` takes both branches.
    """

    def look():
        values = jnp.linalg.eigvalsh(matrix)
        n, eps = matrix.shape[-1], jnp.finfo(values.dtype).eps
        rounding = n * eps * jnp.max(jnp.abs(values), axis=-1)
        return jnp.min(values, axis=-1) >= -rounding

    return lax.cond(jnp.any(failed), look, lambda: jnp.ones_like(failed))


@_is_semidefinite.def_vmap
def _(axis_size, in_batched, matrix, failed):
    spread = lambda x, batched: (
        x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))
    )
    args = [spread(x, batched) for x, batched in zip((matrix, failed), in_batched)]
    return _is_semidefinite(*args), True


def lu(matrix: Inexact[Array, "n n"]) -> Factored:
    """P A = L U."""
    packed, pivots, _ = lax.linalg.lu(lax.stop_gradient(matrix))
    sign, logabsdet = lu_slogdet(packed, pivots)

    lu_solve = jsp.linalg.lu_solve
    invert = lambda factors: lu_solve(factors, jnp.eye(pivots.size, dtype=matrix.dtype))
    return _dense(
        matrix,
        (packed, pivots),
        sign,
        logabsdet,
        invert,
        lu_solve,
        lambda factors, b: lu_solve(factors, b, trans=1),
    )
