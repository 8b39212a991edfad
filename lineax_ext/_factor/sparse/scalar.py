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
from .elimination import BEYOND, eliminated
from .runs import sweep
from .scaling import equilibrated
from .supernodes import changes, supernodes


# No index is negative: looking took a fifth of the time.
_at = ft.partial(lax.dynamic_index_in_dim, allow_negative_indices=False)
_number = ft.partial(_at, keepdims=False)
_some = ft.partial(lax.dynamic_slice_in_dim, allow_negative_indices=False)
_put = ft.partial(lax.dynamic_update_slice_in_dim, axis=0, allow_negative_indices=False)


def _own(width: int, source: Array, x: Array) -> Array:
    """Zeros in place of what is beyond a step: 8 times where it starts, and how many
    it has, are `source`."""
    if width == 1:
        return x
    number = lax.broadcasted_iota(jnp.int32, (width, 1), 0)
    return jnp.where(number < (source & 7), x, 0)


class Scalar:
    """The analysis of a pattern: compares and hashes by value. Made by `list_of`.

    Row `row_order[i]` and column `col_order[i]` of the matrix are row and column i of
    the one that is factorised. Entry k below its diagonal is in the row `rows[k]` and
    column `cols[k]`, and the k-th above it the other way round, for the pattern of the
    factors is symmetric.

    The entries `kept` of the pattern go to `places`, of the array that is eliminated
    by `supernodes`: it has two rows, one for entries below the diagonal and one for
    those above and on it; or one, those on it and below, of a Hermitian matrix.

    `steps`: how many a factorisation has. `sweep`: those of a substitution, of up to
    `width` entries.
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
        self.sweep, self.width = sweep(rows, cols)

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

    `lower` and `upper`: the entries of L and of U, which have a diagonal of ones, and
    a step's zeros beyond; there is no `upper` where U is the adjoint of L.
    `reciprocals`: of D.
    `sound`: whether |L| |D| |U| is of the size of A, and no pivot was raised, so that a
    substitution is backward stable as it stands.
    `norms`, `failed`: as those of `Factors`.
    """

    values: Inexact[Array, " entries"]
    row_scale: Real[Array, " n"]
    col_scale: Real[Array, " n"]
    norms: tuple[Real[Array, ""], Real[Array, ""]]
    lower: Inexact[Array, " count_and_width"]
    reciprocals: Inexact[Array, " n"]
    upper: Inexact[Array, " count_and_width"] | None
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
    taken = lambda at, half: entries[half, :, 0].at[at].get(mode="promise_in_bounds")
    reciprocals = taken(nodes.diagonal, halves - 1)
    by_column = reciprocals.at[plan.cols].get(mode="promise_in_bounds")
    lower, right = (taken(nodes.below, half) for half in (0, halves - 1))
    lower = lower * by_column
    pivots = 1 / jnp.abs(reciprocals)
    sound = ~jnp.any(pivots <= least * (1 + 8 * eps))
    if plan.symmetric:
        # No more needs to be looked at: (|L| |D| |Lᴴ|)ᵢⱼ² ≤ aᵢᵢ aⱼⱼ (Higham: Accuracy
        # and Stability of Numerical Algorithms, 2nd ed., 10.1).
        upper, failed = None, ~jnp.all(reciprocals.real > 0)
    else:
        upper, failed = right * by_column, jnp.array(False)
        sums = pivots + _gathered(jnp.add, plan.cols, jnp.abs(right), n)
        below = jnp.abs(lower) * sums.at[plan.cols].get(mode="promise_in_bounds")
        sums = sums + _gathered(jnp.add, plan.rows, below, n)
        sound = sound & (jnp.max(sums, initial=0) <= 8 * norms[0])
    # What a step of a substitution reads beyond the last one is there, too.
    lower = jnp.pad(lower, (0, plan.width))
    if upper is not None:
        upper = jnp.pad(upper, (0, plan.width))
    return ScalarFactors(
        values, row_scale, col_scale, norms, lower, reciprocals, upper, sound, failed
    )


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

    def step(k, out):
        i = _number(places, k)
        return _put(out, combine(_at(out, i), _at(x, k)), i)

    out = jnp.zeros((size,), x.dtype)
    return lax.fori_loop(jnp.int32(0), jnp.int32(len(index)), step, out)


def substitute(
    plan: Scalar,
    factors: ScalarFactors,
    b: Inexact[Array, "n columns"],
    transpose: bool = False,
) -> Inexact[Array, "n columns"]:
    """M⁻¹ b, or M⁻ᵀ b, of what was factorised: O(fill) a column."""
    lower, upper = factors.lower, factors.upper
    if upper is None:
        upper = jnp.conj(lower)
    row_scale, col_scale = factors.row_scale, factors.col_scale
    rows, cols = plan.row_order, plan.col_order
    if transpose:
        lower, upper = upper, lower
        row_scale, col_scale = col_scale, row_scale
        rows, cols = cols, rows
    b = b * row_scale[:, None].astype(b.dtype)
    reciprocals = factors.reciprocals[:, None]
    width, count = plan.width, len(plan.sweep[0])
    places = [jnp.asarray(x) for x in plan.sweep]
    beyond = lambda x: jnp.pad(x, [(0, width), (0, 0)])
    lower, upper = lower[:, None], upper[:, None]

    def swept(b):
        def some(entries, k):
            """Those of step k, the first of their rows, and their column; `source`."""
            row, column, source = (_number(x, k) for x in places)
            # Without a look at `source`, if it is k.
            at = k if width == 1 else source >> 3
            return _some(entries, at, width), row, column, source

        def up(k, b):
            entries, row, column, source = some(lower, k)
            change = _own(width, source, entries * _at(b, column))
            return _put(b, _some(b, row, width) - change, row)

        def down(k, b):
            entries, row, column, source = some(upper, count - 1 - k)
            change = _own(width, source, entries * _some(b, row, width))
            total = jnp.sum(change, axis=0, keepdims=True)
            return _put(b, _at(b, column) - total, column)

        if count == 0:
            return b * reciprocals
        b = lax.fori_loop(jnp.int32(0), jnp.int32(count), up, beyond(b))
        b = b * beyond(reciprocals)
        b = lax.fori_loop(jnp.int32(0), jnp.int32(count), down, b)
        return b[: len(reciprocals)]

    b = b.at[rows].get(mode="promise_in_bounds")
    if b.shape[1] == 1:
        b = swept(b)
    else:
        # A step that changes a row of several is no longer compiled into the loop.
        b = lax.map(lambda column: swept(column[:, None])[:, 0], b.T).T
    b = b.at[np.argsort(cols)].get(mode="promise_in_bounds")
    return b * col_scale[:, None].astype(b.dtype)
