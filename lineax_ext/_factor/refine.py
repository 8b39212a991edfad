"""Iterative refinement."""

from collections.abc import Callable

import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Inexact


def refined(
    substitute: Callable[[Array], Array],
    multiply: Callable[[Array], Array],
    b: Inexact[Array, "..."],
) -> Inexact[Array, "..."]:
    """`substitute(b)`, corrected for as long as its residual is too large.

    Products with inverses, unlike substitution, have residuals that grow with the
    condition number of a step. Rarely so far as to need a correction; but to know it
    costs one product with A, whose rows are to be of size one.

    Source: Skeel, *Iterative Refinement Implies Numerical Stability for Gaussian
    Elimination*, Math. Comp. 35 (1980), doi:10.1090/S0025-5718-1980-0572859-4.
    """
    # Relative to ‖x‖ is relative to ‖A‖ ‖x‖, or less.
    tolerance = 64 * jnp.finfo(b.dtype).eps
    most = 3

    def unfinished(state):
        x, residual, count = state
        too_large = jnp.linalg.norm(residual) > tolerance * jnp.linalg.norm(x)
        return (count == 0) | too_large & (count <= most)

    def correct(state):
        x, residual, count = state
        x = x + substitute(residual)
        return x, b - multiply(x), count + 1

    # The first substitution is one of the loop: what is not there twice, XLA compiles
    # once.
    return lax.while_loop(unfinished, correct, (jnp.zeros_like(b), b, 0))[0]
