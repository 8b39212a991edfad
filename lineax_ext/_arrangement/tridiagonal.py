"""A tridiagonal matrix, as it stands or after a reverse Cuthill–McKee order."""

import jax.lax as lax
import jax.numpy as jnp

from .arrangement import AbstractArrangement
from .cost import Cost
from .ordering import cuthill_mckee, natural


class Tridiagonal(AbstractArrangement):
    """LAPACK's `gtsv`: pivots between neighbouring rows, O(n).

    Faster than a dense matrix from n = 8 on, and so it counts as free.
    """

    kind = "tridiagonal"

    def __init__(self, pattern, order):
        self.key = self.pattern = pattern
        self.order, self.cost = order, Cost(0, 0)

    @classmethod
    def analyse(cls, pattern):
        if max(pattern.bandwidth) <= 1:
            return cls(pattern, natural(pattern.shape[0]))
        found = cuthill_mckee(pattern)
        return cls(pattern, found.order) if found.half_bandwidth <= 1 else None

    def factor(self, entries):
        n, _ = self.pattern.shape
        if self.order.natural:
            band = entries.band(*self.pattern.bandwidth)
        else:
            rows = self.order.row_places[self.pattern.rows]
            columns = self.order.column_places[self.pattern.cols]
            band = entries.diagonals(rows, columns, 1, 1)
        zeros = jnp.zeros((n - 1,), band[0].dtype)
        return band.get(-1, zeros), band[0], band.get(1, zeros)

    def solve(self, factors, b, transposed):
        lower, diagonal, upper = factors[::-1] if transposed else factors
        zero = jnp.zeros((1,), diagonal.dtype)
        lower, upper = jnp.append(zero, lower), jnp.append(upper, zero)
        b = self.order.into(b, transposed)
        x = lax.linalg.tridiagonal_solve(lower, diagonal, upper, b[:, None])[:, 0]
        return self.order.out_of(x, transposed), jnp.array(False)
