"""Determinants of tridiagonal matrices, and the inverse near their diagonal."""

from typing import NamedTuple

import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Inexact


class TridiagonalMinors(NamedTuple):
    """What `tridiagonal_minors` returns.

    They are those of the matrix with its rows divided by `rows`. `leading[i]` is
    (θᵢ, θᵢ₋₁) up to a common positive factor, θᵢ the determinant of the
    first i + 1 rows and columns; `trailing[i]` is the same of those after i,
    (φᵢ₊₁, φᵢ₊₂).
    """

    rows: Inexact[Array, " n"]
    lower: Inexact[Array, " n-1"]
    upper: Inexact[Array, " n-1"]
    leading: Inexact[Array, "n 2"]
    trailing: Inexact[Array, "n 2"]
    log_scale: Inexact[Array, ""]


def tridiagonal_minors(diagonal, lower_diagonal, upper_diagonal) -> TridiagonalMinors:
    """The leading and trailing minors of a tridiagonal matrix, in O(n).

    By θᵢ = aᵢ θᵢ₋₁ − lᵢ₋₁ uᵢ₋₁ θᵢ₋₂, with no division and so with no pivoting: what is
    computed are the minors of a matrix whose entries differ from the given ones by a
    few units in the last place.

    ??? cite "Reference"

        Wilkinson, *The Algebraic Eigenvalue Problem*, §5.37 (1965).
    """
    size = jnp.abs(diagonal)
    size = size.at[1:].max(jnp.abs(lower_diagonal))
    size = size.at[:-1].max(jnp.abs(upper_diagonal))
    # Rows of size one: l u can then not overflow.
    rows = lax.stop_gradient(jnp.where(size > 0, size, 1)).astype(diagonal.dtype)
    a, lower, upper = (
        diagonal / rows,
        lower_diagonal / rows[1:],
        upper_diagonal / rows[:-1],
    )
    product = jnp.pad(lower * upper, (1, 0))
    # Both ends at once.
    a = jnp.stack([a, a[::-1]], axis=1)
    product = jnp.stack([product, jnp.roll(product, -1)[::-1]], axis=1)

    def step(pair, coefficients):
        a, product = coefficients
        # Of the size of the two terms: neither over- nor underflows, however small the
        # ratio of one minor to the next.
        size = _size(pair * jnp.stack([jnp.ones_like(product), product]))
        first, second = pair / size.astype(pair.dtype)[None]
        new = jnp.stack([a * first - product * second, first])
        return new, (new, size[0])

    start = jnp.stack([jnp.ones_like(a[0]), jnp.zeros_like(a[0])])
    _, (pairs, sizes) = lax.scan(step, start, (a, product), unroll=8)
    last = jax.vmap(_size)(pairs)
    pairs = pairs / last.astype(pairs.dtype)[:, None]
    backward = jnp.concatenate([start[None, :, 1], pairs[:-1, :, 1]])[::-1]
    log_scale = jnp.sum(jnp.log(sizes)) + jnp.sum(jnp.log(rows.real))
    log_scale = log_scale + jnp.log(last[-1, 0])
    return TridiagonalMinors(rows, lower, upper, pairs[:, :, 0], backward, log_scale)


def _size(pair):
    size = jnp.max(jnp.abs(pair), axis=0)
    return lax.stop_gradient(jnp.where(size > 0, size, 1))


def tridiagonal_of_inverse(minors: TridiagonalMinors):
    """The diagonal, lower and upper diagonal of the inverse, in O(n).

    Expanding the determinant between rows i and i + 1,

        det = θᵢ φᵢ₊₁ − lᵢ uᵢ θᵢ₋₁ φᵢ₊₂,

    (A⁻¹)ᵢᵢ = θᵢ₋₁ φᵢ₊₁ / det, (A⁻¹)ᵢ₊₁,ᵢ = −lᵢ θᵢ₋₁ φᵢ₊₂ / det and (A⁻¹)ᵢ,ᵢ₊₁ =
    −uᵢ θᵢ₋₁ φᵢ₊₂ / det. The scales of the minors cancel.

    ??? cite "Reference"

        Usmani, *Inversion of Jacobi's tridiagonal matrix*, Computers & Mathematics with
        Applications 27 (1994), doi:10.1016/0898-1221(94)90066-3.
    """
    rows, lower, upper, leading, trailing, _ = minors
    product = jnp.pad(lower * upper, (0, 1))
    terms = trailing * jnp.stack([jnp.ones_like(product), product], axis=1)
    # As in `tridiagonal_minors`, so that the determinant does not underflow.
    size = jax.vmap(_size)(terms).astype(terms.dtype)[:, None]
    terms, trailing = terms / size, trailing / size
    det = leading[:, 0] * terms[:, 0] - leading[:, 1] * terms[:, 1]
    diagonal = leading[:, 1] * trailing[:, 0] / det / rows
    outer = leading[:-1, 1] * trailing[:-1, 1] / det[:-1]
    return diagonal, -lower * outer / rows[:-1], -upper * outer / rows[1:]
