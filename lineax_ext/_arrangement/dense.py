"""A matrix of which nothing is to be gained."""

from .._factor.checked_lu import checked_lu
from . import cost
from .arrangement import AbstractArrangement


class Dense(AbstractArrangement):
    """LU, O(n³), of a matrix that is read by its colours."""

    kind = "dense"

    def __init__(self, n: int):
        self.key, self.cost = n, cost.dense(n)

    @classmethod
    def analyse(cls, pattern):
        return cls(pattern.shape[0])

    def factor(self, entries):
        return checked_lu(entries.matrix())

    def solve(self, factors, b, transposed):
        return factors.solve(b, transposed), factors.singular
