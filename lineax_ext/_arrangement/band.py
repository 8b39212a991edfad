"""A band, as it stands or after a reverse Cuthill–McKee order."""

import functools as ft

import jax
import jax.numpy as jnp

from .._factor.band import block_size, pack_band
from .._factor.block_lu import block_lu
from . import cost
from .arrangement import AbstractArrangement
from .ordering import cuthill_mckee


class Band(AbstractArrangement):
    """Block-tridiagonal elimination, pivoted across two block rows: O(n k²)."""

    kind = "band"

    def __init__(self, pattern, order):
        self.key = self.pattern = pattern
        self.order = order
        n, _ = pattern.shape
        self.rows = order.row_places[pattern.rows]
        self.columns = order.column_places[pattern.cols]
        offsets = self.columns - self.rows
        self.lower = int(-offsets.min(initial=0))
        self.upper = int(offsets.max(initial=0))
        self.half_bandwidth = max(self.lower, self.upper)
        self.block = block_size(self.half_bandwidth)
        self.cost = cost.block_tridiagonal(-(-n // self.block), self.block)

    @classmethod
    def analyse(cls, pattern):
        return cls(pattern, cuthill_mckee(pattern).order)

    def factor(self, entries):
        band = entries.diagonals(self.rows, self.columns, self.lower, self.upper)
        return _factor(band, self.pattern.shape[0], self.block)

    def solve(self, factors, b, transposed):
        (n,) = b.shape
        b = jnp.pad(self.order.into(b, transposed), (0, -n % self.block))
        b = b.reshape(-1, self.block)
        if transposed:
            x = jnp.conj(factors.solve_adjoint(jnp.conj(b)))
        else:
            x = factors.solve(b)
        return self.order.out_of(x.reshape(-1)[:n], transposed), factors.singular


# Traced once for all of the places from which it is called.
@ft.partial(jax.jit, static_argnums=(1, 2))
def _factor(band, n, k):
    return block_lu(pack_band(band, n, k))
