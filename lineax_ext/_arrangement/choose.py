"""Which kind of matrix a pattern is solved as."""

import functools as ft

from .._structure.pattern import Pattern
from . import cost
from .arrangement import AbstractArrangement
from .band import Band
from .blocks import Blocks
from .dense import Dense
from .diagonal import Diagonal
from .sparse import Sparse
from .triangular import Triangular
from .tridiagonal import Tridiagonal


# The order matters little: the cheapest is taken. It decides between equals, and the
# first ones cost nothing, so that the search ends there.
_kinds: tuple[type[AbstractArrangement], ...] = (
    Diagonal,
    Tridiagonal,
    Blocks,
    Band,
    Triangular,
    Dense,
)


@ft.lru_cache(maxsize=64)
def arrange(pattern: Pattern, definite: int = 0) -> AbstractArrangement:
    """The kind that is predicted to be solved fastest, of a square pattern.

    `definite`: 1, −1 or 0, if the matrix will be positive or negative definite, or
    neither is known.
    """
    best = None
    for kind in _kinds:
        found = kind.analyse(pattern)
        if found is not None and (best is None or found.cost.total < best.cost.total):
            best = found
        if best is not None and best.cost.total == 0:
            break
    assert best is not None
    n = pattern.shape[0]
    if best.cost.total > cost.sparse_at_least(n).total:
        # Only then: to order takes tenths of a second, and fronts up to one.
        fronts = best.cost.total > cost.multifrontal_at_least(n).total
        found = Sparse.analyse(pattern, definite, fronts)
        if found is not None and found.cost.total < best.cost.total:
            best = found
    return best
