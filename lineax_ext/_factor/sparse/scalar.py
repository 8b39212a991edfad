"""LU and Cholesky factorisation entry by entry, where little fills in.

A front of a tree, or of a circuit, has one pivot and a neighbour or two. As a dense
matrix it is mostly padding, and a kernel for each of them takes longer than its
arithmetic. Here a factorisation is a list of operations a ← a − b c on an array of
entries, and one loop goes through it: some 5 ns on a CPU for eight of them, on entries
that stand next to each other, and few kernels to compile.
"""

import functools as ft
from collections.abc import Callable

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Inexact, Real

from ..._structure.pattern import Pattern
from ..constant import constant
from .columns import at, backward, beyond, forward, some, steps
from .elimination import BEYOND, eliminated
from .scaling import equilibrated
from .supernodes import changes, supernodes


class Scalar:
    """The analysis of a pattern: compares and hashes by value. Made by `list_of`.

    Row `row_order[i]` and column `col_order[i]` of the matrix are row and column i of
    the one that is factorised. Entry k below its diagonal is in the row `rows[k]` and
    column `cols[k]`, and the k-th above it the other way round, for the pattern of the
    factors is symmetric.

    The entries `kept` of the pattern go to `places`, of the array that is eliminated
    by `supernodes`: it has two rows, one for entries below the diagonal and one for
    those above and on it; or one, those on it and below, of a Hermitian matrix.

    `steps`: how many a factorisation has. `sweep`: those of a substitution.
    """

    def __init__(self, pattern: Pattern, symmetric: bool, matched, order, rows, cols):
        n = pattern.shape[0]
        self.pattern, self.symmetric = pattern, symmetric
        self.row_order, self.col_order = matched[order], order
        self.rows, self.cols = rows.astype(np.int32), cols.astype(np.int32)
        self.fill = n + 2 * len(rows)
        self.operations = _operations(n, symmetric, cols)
        self.supernodes = supernodes(n, rows, cols)
        self.halves = 1 if symmetric else 2
        self.steps = changes(self.supernodes, 8 // self.halves)

        row_place, col_place = np.empty(n, np.int64), np.empty(n, np.int64)
        row_place[self.row_order] = col_place[order] = np.arange(n)
        i, j = row_place[pattern.rows], col_place[pattern.cols]
        self.kept = np.flatnonzero(i >= j) if symmetric else np.arange(len(i))
        i, j = i[self.kept], j[self.kept]
        k = np.searchsorted(cols * n + rows, np.minimum(i, j) * n + np.maximum(i, j))
        place = self.supernodes.diagonal[i]
        place[i != j] = self.supernodes.below[k[i != j]]
        half = (i <= j) & (not symmetric)
        size = self.supernodes.size + BEYOND
        self.places = (half * size + place).astype(np.int32)
        self.sweep = steps(rows, cols, self.supernodes.below, n)

    def __eq__(self, other):
        if not isinstance(other, Scalar):
            return NotImplemented
        return (self.pattern, self.symmetric) == (other.pattern, other.symmetric)

    def __hash__(self):
        return hash((self.pattern, self.symmetric))

    def __repr__(self):
        return f"Scalar({self.pattern}, symmetric={self.symmetric}, fill={self.fill})"


# A grid of 100×100 with 2 species, 75 million operations, takes as long as by fronts,
# and 0.8 of it if definite; of 16×16×16, with 60, twice as long: its rows are longer. A
# matrix that small fronts would be half launches for goes entry by entry whatever its
# rows are.
_OPERATIONS, _PER_ENTRY = 3_000_000, 60
_FILL = 1_500_000  # entries of the factors
_ENTRIES = 250_000  # of the pattern, beyond which nothing is ordered


def _operations(n: int, symmetric: bool, cols: np.ndarray) -> int:
    """Divisions and products, with entries below the diagonal in the columns `cols`."""
    size = np.bincount(cols, minlength=n).astype(np.int64)
    pairs = size * (size + 1) // 2 if symmetric else size**2
    return int((1 + size + pairs).sum())


@ft.lru_cache(maxsize=64)
def list_of(pattern: Pattern, symmetric: bool = False) -> Scalar | None:
    """The operations of a factorisation, or `None` if they, or its entries, are too
    many.

    Cost: that of a factorisation by SuperLU, for the ordering, and O(operations).

    **Raises:**

    `ValueError` for a pattern of which every matrix is singular.
    """
    from .matching import matched_graph
    from .minimum_degree import ordering

    n = pattern.shape[0]
    matched, _, graph = matched_graph(pattern, symmetric)
    if n + len(graph.indices) > _ENTRIES:
        return None
    order, rows, cols = ordering(pattern, symmetric)
    fill, operations = n + 2 * len(rows), _operations(n, False, cols)
    if fill > _FILL or operations > max(_OPERATIONS, _PER_ENTRY * fill):
        return None
    return Scalar(pattern, symmetric, matched, order, rows, cols)


class ScalarFactors(eqx.Module):
    """What `factor` returns: L D U of the matrix scaled by `row_scale`, `col_scale`.

    `entries`: those of L D, and of D U in a second row, at the places of
    `plan.supernodes`; L and U have a diagonal of ones. There is one row where U is the
    adjoint of L.
    `reciprocals`: of D.
    `sound`: whether |L| |D| |U| is of the size of A, and no pivot was raised, so that a
    substitution is backward stable as it stands.
    `norms`, `failed`: as those of `Factors`.
    """

    values: Inexact[Array, " entries"]
    row_scale: Real[Array, " n"]
    col_scale: Real[Array, " n"]
    norms: tuple[Real[Array, ""], Real[Array, ""]]
    entries: Inexact[Array, "half size 1"]
    reciprocals: Inexact[Array, " n"]
    sound: Bool[Array, ""]
    failed: Bool[Array, ""]


def factor_entries(plan: Scalar, values: Inexact[Array, " entries"]) -> ScalarFactors:
    """A pivot that is too small is raised; rows do not change places.

    Cost: 1 to 3 ns an operation, of `plan.operations`; the less the longer its rows.
    """
    n = plan.pattern.shape[0]

    def reduced(axis, x, how):
        index = (plan.pattern.rows, plan.pattern.cols)[axis]
        return _gathered(jnp.add if how is jnp.sum else jnp.maximum, index, x, n)

    scaled, row_scale, col_scale, norms = equilibrated(
        plan.pattern, values, plan.symmetric, reduced
    )
    eps = float(jnp.finfo(row_scale.dtype).eps)
    least = jnp.asarray(eps**0.5, row_scale.dtype)
    nodes, halves = plan.supernodes, plan.halves
    # What a step reads beyond the last one is there.
    entries = jnp.zeros((halves * (nodes.size + BEYOND),), values.dtype)
    entries = entries.at[plan.places].set(scaled[plan.kept], unique_indices=True)
    entries = entries.reshape(halves, -1, 1)
    if n > 0:
        entries = eliminated(nodes, least, entries)
    reciprocals = entries[-1, :, 0].at[nodes.diagonal].get(mode="promise_in_bounds")
    pivots = 1 / jnp.abs(reciprocals)
    sound = ~jnp.any(pivots <= least * (1 + 8 * eps))
    if plan.symmetric:
        # No more needs to be looked at: (|L| |D| |Lᴴ|)ᵢⱼ² ≤ aᵢᵢ aⱼⱼ (Higham: Accuracy
        # and Stability of Numerical Algorithms, 2nd ed., 10.1).
        failed = ~jnp.all(reciprocals.real > 0)
    else:
        failed = jnp.array(False)
        sound = sound & (_growth(plan, entries, pivots) <= 8 * norms[0])
    return ScalarFactors(
        values, row_scale, col_scale, norms, entries, reciprocals, sound, failed
    )


def _growth(
    plan: Scalar, entries: Inexact[Array, "2 size 1"], pivots: Real[Array, " n"]
) -> Real[Array, ""]:
    """‖ |L| |D| |U| ‖ in the maximum norm: a product in place of a substitution."""
    of_size = lambda half: lambda i, many: jnp.abs(some(entries, half, i, many))
    ones = beyond(plan.sweep, jnp.ones_like(pivots))
    size = beyond(plan.sweep, pivots)
    minus = lambda _: jnp.asarray([[-1]], pivots.dtype)
    sums = backward(plan.sweep, of_size(1), lambda _, i: at(ones, i), minus, size)
    each = -sums / jnp.where(size > 0, size, 1)
    sums = forward(plan.sweep, of_size(0), lambda _, j: at(each, j), sums)
    return jnp.max(sums[: len(pivots)], initial=0)


def _gathered(
    combine: Callable[[Array, Array], Array],
    index: np.ndarray,
    x: Real[Array, " entries"],
    size: int,
) -> Real[Array, " size"]:
    """Of each number below `size` the entries that have it as `index`, one by one: for
    30,000 entries a scatter took three times as long."""

    if len(index) == 0:
        return jnp.zeros((size,), x.dtype)
    places = constant(index.astype(np.int32))
    # No index is negative: looking took a fifth of the time.
    at = ft.partial(lax.dynamic_index_in_dim, allow_negative_indices=False)
    put = ft.partial(lax.dynamic_update_slice, allow_negative_indices=False)

    def step(k, out):
        i = at(places, k, keepdims=False)
        return put(out, combine(at(out, i), at(x, k)), (i,))

    out = jnp.zeros((size,), x.dtype)
    return lax.fori_loop(jnp.int32(0), jnp.int32(len(index)), step, out)


def substitute(
    plan: Scalar,
    factors: ScalarFactors,
    b: Inexact[Array, "n columns"],
    transpose: bool = False,
) -> Inexact[Array, "n columns"]:
    """M⁻¹ b, or M⁻ᵀ b, of what was factorised: O(fill) a column."""
    halves, n = len(factors.entries), len(factors.reciprocals)
    row_scale, col_scale = factors.row_scale, factors.col_scale
    rows, cols = plan.row_order, plan.col_order
    if transpose:
        row_scale, col_scale = col_scale, row_scale
        rows, cols = cols, rows

    def triangle(upper: bool):
        """L D, or D U, or those of the transposed."""
        adjoint = plan.symmetric and upper != transpose
        half = min(int(upper != transpose), halves - 1)

        def entries(first, many):
            x = some(factors.entries, half, first, many)
            return jnp.conj(x) if adjoint else x

        return entries

    reciprocals = factors.reciprocals[:, None]
    divided = lambda x, j: at(x, j) * at(reciprocals, j)

    def swept(b):
        x = beyond(plan.sweep, b)
        x = forward(plan.sweep, triangle(False), divided, x)
        x = beyond(plan.sweep, x[:n, 0] * factors.reciprocals)
        scale = lambda j: at(reciprocals, j)
        x = backward(plan.sweep, triangle(True), at, scale, x)
        return x[:n, 0]

    b = b * row_scale[:, None].astype(b.dtype)
    b = b.at[rows].get(mode="promise_in_bounds")
    if b.shape[1] == 1:
        b = swept(b[:, 0])[:, None]
    else:
        # A step that changes a row of several is no longer compiled into the loop.
        b = lax.map(swept, b.T).T
    b = b.at[np.argsort(cols)].get(mode="promise_in_bounds")
    return b * col_scale[:, None].astype(b.dtype)
