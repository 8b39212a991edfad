"""All that is known of a sparse factorisation before a number is."""

import functools as ft

import numpy as np

from ..._structure.pattern import Pattern
from .fronts import flops, Fronts, fronts_of, seconds
from .schedule import classify, Schedule, schedule
from .sweep import Sweep, sweep


class Symbolic:
    """The analysis of a pattern: compares and hashes by value.

    Made by `analyse`. Row `row_order[i]` and column `col_order[i]` of the matrix are
    row and column i of the one that is factorised, with pivoting inside of fronts.

    `seconds`, `fill`, `flops`: predictions, of a factorisation on two cores, of the
    entries of its factors, and of its arithmetic. `kernels`: loops to be compiled.
    """

    pattern: Pattern
    symmetric: bool
    row_order: np.ndarray
    col_order: np.ndarray
    parity: int
    fronts: Fronts
    schedule: Schedule
    sweep: Sweep
    seconds: float
    fill: int
    flops: int
    kernels: int

    def __init__(self, pattern: Pattern, symmetric: bool):
        # Not at the top: SciPy's graphs take half a second to import.
        from . import matching as graph_of

        n = pattern.shape[0]
        self.pattern, self.symmetric = pattern, symmetric
        matched, row_of, _ = graph_of.matched_graph(pattern, symmetric)
        self.fronts, kind = _fronts(pattern, symmetric)
        order = self.fronts.order
        self.col_order = order
        self.row_order = matched[order]
        self.parity = graph_of.parity(matched)
        place = np.empty(n, np.int64)
        place[order] = np.arange(n)
        rows, cols = place[row_of[pattern.rows]], place[pattern.cols]
        self.schedule = schedule(self.fronts, kind, rows, cols, symmetric)
        self.sweep = sweep(self.fronts)
        p = np.array([c.p for c in self.schedule.classes])
        u = np.array([c.u for c in self.schedule.classes])
        number = np.array([c.steps * c.batch for c in self.schedule.classes])
        self.seconds = float((number * seconds(p, u)).sum())
        self.flops = int((number * flops(p, u)).sum())
        panels = 1 if symmetric else 2
        self.fill = sum(
            g.members.size * g.p * (g.p + panels * g.u) for g in self.sweep.groups
        )
        classes, groups = len(self.schedule.classes), len(self.sweep.groups)
        self.kernels = 13 * classes + 3 * groups + 25

    def __eq__(self, other):
        if not isinstance(other, Symbolic):
            return NotImplemented
        return (self.pattern, self.symmetric) == (other.pattern, other.symmetric)

    def __hash__(self):
        return hash((self.pattern, self.symmetric))

    def __repr__(self):
        return f"Symbolic({self.pattern}, symmetric={self.symmetric}, fill={self.fill})"


_MOST = 10**10  # operations that are worth another ordering: some seconds of SuperLU's


def _fronts(pattern: Pattern, symmetric: bool) -> tuple[Fronts, np.ndarray]:
    """Those of the ordering that takes less time, and their classes."""
    from .blocks import completed
    from .matching import matched_graph
    from .minimum_degree import minimum_degree, ordered, ordering
    from .ordering import dissect

    graph = matched_graph(pattern, symmetric)[2]
    found = [fronts_of(graph, dissect(graph, 16))]
    if 0 < flops(found[0].pivots, found[0].boundaries).sum() < _MOST:
        found.append(fronts_of(graph, *minimum_degree(*ordering(pattern, symmetric))))
        if (joined := completed(graph)) is not None:
            found.append(fronts_of(joined, *minimum_degree(*ordered(joined))))
    classified = [(fronts, *classify(fronts)) for fronts in found]
    fronts, kind, _ = min(classified, key=lambda one: one[2])
    return fronts, kind


@ft.lru_cache(maxsize=64)
def analyse(pattern: Pattern, symmetric: bool = False) -> Symbolic:
    """Ordering, fronts and index arrays for matrices of this pattern.

    Cost: O(entries · log n) and O(fill / n) a front, once for each pattern.

    **Arguments:**

    - `pattern`: that of a square matrix.
    - `symmetric`: whether the values will be symmetric (Hermitian) positive definite.

    **Raises:**

    `ValueError` for a pattern that is not square, or of which every matrix is singular.
    """
    if pattern.shape[0] != pattern.shape[1]:
        raise ValueError(
            "A sparse factorisation needs a square matrix; found the shape "
            f"{pattern.shape}."
        )
    return Symbolic(pattern, symmetric)
