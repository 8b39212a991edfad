"""LU of a dense matrix that says when the matrix is singular."""

import equinox as eqx
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jaxtyping import Array, Bool, Inexact

from .rank import default_rcond


class CheckedLU(eqx.Module):
    """P A = L U, as returned by `checked_lu`."""

    lu: Inexact[Array, "n n"]
    pivots: Array
    singular: Bool[Array, ""]

    def solve(self, b: Inexact[Array, " n"], transposed: bool) -> Inexact[Array, " n"]:
        """A⁻¹ b, or A⁻ᵀ b."""
        return jsl.lu_solve((self.lu, self.pivots), b, trans=int(transposed))


def checked_lu(matrix: Inexact[Array, "n n"]) -> CheckedLU:
    """LAPACK's `getrf`, and a check of the pivots.

    A matrix whose columns depend on each other is seldom exactly singular once it is
    rounded: unchecked, its solutions are of the size of 1/eps.
    """
    n, _ = matrix.shape
    lu, pivots = jsl.lu_factor(matrix)
    # A pivot counts as zero if it is no larger than the rounding error in it, that of a
    # sum of which the absolute values add up to (|L| |U|)_jj. No scaling of rows or
    # columns makes a difference.
    magnitude = jnp.abs(lu)
    pivot = jnp.diagonal(magnitude)
    terms = jnp.sum(jnp.tril(magnitude, -1) * jnp.triu(magnitude, 1).T, axis=1)
    rcond = jnp.asarray(default_rcond(n, n, matrix.dtype), pivot.dtype)
    regular = (pivot > rcond * terms) & (pivot > 0) & jnp.isfinite(pivot)
    return CheckedLU(lu, pivots, ~jnp.all(regular))
