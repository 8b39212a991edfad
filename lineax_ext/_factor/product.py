"""Products in full precision."""

import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array


def matmul(a: Array, b: Array) -> Array:
    # Without it accelerators multiply in reduced precision.
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
