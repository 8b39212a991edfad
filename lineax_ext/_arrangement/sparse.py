"""A sparse matrix of any pattern."""

from .._factor import sparse
from .._structure.pattern import Pattern
from . import cost
from .arrangement import AbstractArrangement


class Sparse(AbstractArrangement):
    """Entry by entry where little fills in, on a CPU; elsewhere by the multifrontal
    method, with pivoting inside of fronts: O(fill).

    LU, or Cholesky of a positive definite matrix. The analysis takes up to a second,
    and raises a `ValueError` for a pattern of which every matrix is singular.
    """

    kind = "sparse"

    def __init__(self, pattern: Pattern, definite: int = 0):
        """`definite`: 1, −1 or 0, positive or negative definite, or neither."""
        self.key = pattern, definite
        self.sign = definite or 1
        self.symbolic = sparse.plan(pattern, definite != 0)
        if isinstance(self.symbolic, sparse.Scalar):
            self.cost = cost.entry_by_entry(self.symbolic)
        else:
            self.cost = cost.multifrontal(self.symbolic)

    @classmethod
    def analyse(cls, pattern, definite=0, fronts=True):
        """`fronts`: whether those may be what it takes."""
        try:
            if not fronts and sparse.entry_by_entry(pattern, definite != 0) is None:
                return None
            return cls(pattern, definite)
        except ValueError:  # structurally singular: the dense matrix will say so
            return None

    def factor(self, entries):
        return sparse.factor(self.symbolic, self.sign * entries.values())

    def solve(self, factors, b, transposed):
        b = self.sign * b[:, None]
        x, good = sparse.solve(self.symbolic, factors, b, transpose=transposed)
        return x[:, 0], ~good[0]
