"""Signs of determinants."""

import jax.numpy as jnp
from jaxtyping import Array, Inexact


def phase(x: Array) -> Array:
    """x / |x|, or 0; with a derivative where x is complex (`jnp.sign` has none)."""
    if not jnp.iscomplexobj(x):
        return jnp.sign(x)
    zero = x == 0
    return jnp.where(zero, 0, x / jnp.abs(jnp.where(zero, 1, x)).astype(x.dtype))


def lu_slogdet(
    packed: Inexact[Array, "m n"], pivots: Array
) -> tuple[Inexact[Array, ""], Inexact[Array, ""]]:
    """Of the triangle U that `jax.lax.linalg.lu` returns, and of its permutation."""
    diagonal = jnp.diagonal(packed)
    swaps = jnp.sum(pivots != jnp.arange(pivots.size, dtype=pivots.dtype))
    sign = jnp.prod(phase(diagonal)) * (1 - 2 * (swaps % 2)).astype(packed.dtype)
    return sign, jnp.sum(jnp.log(jnp.abs(diagonal)))
