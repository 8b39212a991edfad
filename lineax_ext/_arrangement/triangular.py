"""A triangle."""

import jax.numpy as jnp
import jax.scipy.linalg as jsl

from . import cost
from .arrangement import AbstractArrangement


class Triangular(AbstractArrangement):
    """Substitution in a dense matrix, O(n²)."""

    kind = "triangular"

    def __init__(self, pattern, lower: bool):
        self.key, self.lower = pattern, lower
        self.cost = cost.triangular(pattern.shape[0])

    @classmethod
    def analyse(cls, pattern):
        lower, upper = pattern.bandwidth
        return cls(pattern, upper == 0) if 0 in (lower, upper) else None

    def factor(self, entries):
        return entries.matrix()

    def solve(self, factors, b, transposed):
        trans = "T" if transposed else "N"
        x = jsl.solve_triangular(factors, b, trans=trans, lower=self.lower)
        return x, jnp.array(False)
