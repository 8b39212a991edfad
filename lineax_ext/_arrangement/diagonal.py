"""A diagonal matrix."""

import jax.numpy as jnp

from .arrangement import AbstractArrangement
from .cost import Cost


class Diagonal(AbstractArrangement):
    """Divides."""

    kind = "diagonal"

    def __init__(self, pattern):
        self.key, self.cost = pattern, Cost(0, 0)

    @classmethod
    def analyse(cls, pattern):
        return cls(pattern) if pattern.bandwidth == (0, 0) else None

    def factor(self, entries):
        return entries.band(0, 0)[0]

    def solve(self, factors, b, transposed):
        del transposed
        return b / factors, jnp.array(False)
