"""LU and Cholesky factorisation entry by entry, where little fills in.

A front of a tree, or of a circuit, has one pivot and a neighbour or two. As a dense
matrix it is mostly padding, and a kernel for each of them takes longer than its
arithmetic. Here a factorisation is a list of operations a ← a − b c on an array of
entries, and one loop goes through it: some 3 ns each on a CPU, 6 for four matrices at
once or for four entries that stand next to each other, and two kernels to compile.
"""

import functools as ft
from collections.abc import Callable

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Inexact, Real

from ..._structure.pattern import Pattern
from .lanes import lanes_last
from .runs import eliminations, Steps, sweep
from .scaling import equilibrated


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
    column `cols[k]`, those of column j from `starts[j]` on, and the k-th above it the
    other way round, for the pattern of the factors is symmetric. In the array are first
    the diagonal, then those below, and those above. Of a Hermitian matrix A = L D Lᴴ
    the places below are for L, and those above have the column of A that it is made
    of.

    The entries `kept` of the pattern go to `places`. `steps` and `sweep`: those of a
    factorisation, of `operations`, and of a substitution, of up to `width` entries.
    """

    def __init__(self, pattern: Pattern, symmetric: bool, matched, order, rows, cols):
        n = pattern.shape[0]
        self.pattern, self.symmetric = pattern, symmetric
        self.row_order, self.col_order = matched[order], order
        self.rows, self.cols = rows.astype(np.int32), cols.astype(np.int32)
        count = len(rows)
        self.fill = n + 2 * count
        lower, upper = n, n + count
        key = cols * n + rows

        def place(i, j):
            k = np.searchsorted(key, np.minimum(i, j) * n + np.maximum(i, j))
            off = np.where((i > j) & (not symmetric), lower, upper) + k
            return np.where(i == j, i, off)

        row_place, col_place = np.empty(n, np.int64), np.empty(n, np.int64)
        row_place[self.row_order] = col_place[order] = np.arange(n)
        i, j = row_place[pattern.rows], col_place[pattern.cols]
        self.kept = np.flatnonzero(i >= j) if symmetric else np.arange(len(i))
        self.places = place(i, j)[self.kept].astype(np.int32)

        # Of those above a pivot's row, from entry i and what is to its right the k-th
        # below the pivot times what is above k; of those left of its column likewise.
        size = np.bincount(cols, minlength=n)
        start = np.cumsum(size) - size
        pairs = size**2
        column = np.repeat(np.arange(n), pairs)
        number = np.arange(len(column)) - np.repeat(np.cumsum(pairs) - pairs, pairs)
        k = start[column] + number // size[column]
        i = start[column] + number % size[column]
        right, below = i >= k, (i > k) & (not symmetric)
        pivots = np.append(column[right], column[below])
        factors = np.append(lower + k[right], upper + k[below])
        source = np.append(upper + i[right], lower + i[below])
        target = np.append(
            place(rows[k[right]], rows[i[right]]),
            place(rows[i[below]], rows[k[below]]),
        )
        turn = np.argsort(pivots, kind="stable")
        self.operations = n + count + len(turn)
        operations = (x[turn] for x in (pivots, factors, source, target))
        self.steps, self.width = eliminations(n, *operations)
        self.sweep = sweep(rows, cols, self.width)
        self.starts = np.searchsorted(cols, np.arange(n + 1)).astype(np.int32)

    def __eq__(self, other):
        if not isinstance(other, Scalar):
            return NotImplemented
        return (self.pattern, self.symmetric) == (other.pattern, other.symmetric)

    def __hash__(self):
        return hash((self.pattern, self.symmetric))

    def __repr__(self):
        return f"Scalar({self.pattern}, symmetric={self.symmetric}, fill={self.fill})"


# A grid of 80×80, 4,900,000 operations and 215,000 entries, takes three quarters of the
# time of fronts, one of 100×100 all of it; but its lists take seconds to make.
_OPERATIONS = 3_000_000
_FILL = 250_000  # entries of the factors
_ENTRIES = 100_000  # of the pattern, beyond which nothing is ordered


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
    size = np.bincount(cols, minlength=n).astype(np.int64)
    pairs = size * (size + 1) // 2 if symmetric else size**2
    if n + 2 * len(rows) > _FILL or (pairs + size + 1).sum() > _OPERATIONS:
        return None
    return Scalar(pattern, symmetric, matched, order, rows, cols)


class ScalarFactors(eqx.Module):
    """What `factor` returns: L D U of the matrix scaled by `row_scale`, `col_scale`.

    `lower` and `upper`: the entries of L and of U, which have a diagonal of ones; there
    is no `upper` where U is the adjoint of L.
    `reciprocals`: of D.
    `sound`: whether |L| |D| |U| is of the size of A, so that a substitution is backward
    stable as it stands.
    `norms`, `failed`: as those of `Factors`.
    """

    values: Inexact[Array, " entries"]
    row_scale: Real[Array, " n"]
    col_scale: Real[Array, " n"]
    norms: tuple[Real[Array, ""], Real[Array, ""]]
    lower: Inexact[Array, " count"]
    reciprocals: Inexact[Array, " n"]
    upper: Inexact[Array, " count"] | None
    sound: Bool[Array, ""]
    failed: Bool[Array, ""]


def factor_entries(plan: Scalar, values: Inexact[Array, " entries"]) -> ScalarFactors:
    """A pivot that is too small is raised; rows do not change places.

    Cost: 3 ns an operation, or 6 for four next to each other, `plan.operations` in all.
    """
    n, count = plan.pattern.shape[0], len(plan.rows)

    def reduced(axis, x, how):
        index = (plan.pattern.rows, plan.pattern.cols)[axis]
        return _gathered(jnp.add if how is jnp.sum else jnp.maximum, index, x, n)

    scaled, row_scale, col_scale, norms = equilibrated(
        plan.pattern, values, plan.symmetric, reduced
    )
    eps = float(jnp.finfo(row_scale.dtype).eps)
    least = jnp.asarray(eps**0.5, row_scale.dtype)
    # What a step reads beyond the last one is there.
    entries = jnp.zeros((plan.fill + plan.width,), values.dtype)
    entries = entries.at[plan.places].set(scaled[plan.kept], unique_indices=True)
    if n > 0:
        index = jax.tree_util.tree_map(jnp.asarray, (plan.starts, plan.steps))
        eliminate = lanes_last(ft.partial(_eliminated, plan.symmetric, n, plan.width))
        entries = eliminate(index, entries)
    reciprocals, lower, right, _ = jnp.split(entries, [n, n + count, plan.fill])
    upper, failed = None, jnp.array(False)
    if plan.symmetric:
        failed = ~jnp.all(reciprocals.real > 0)
    else:
        upper = right * reciprocals.at[plan.cols].get(mode="promise_in_bounds")
    pivots = 1 / jnp.abs(reciprocals)
    sums = pivots + _gathered(jnp.add, plan.cols, jnp.abs(right), n)
    below = jnp.abs(lower) * sums.at[plan.cols].get(mode="promise_in_bounds")
    sums = sums + _gathered(jnp.add, plan.rows, below, n)
    raised = jnp.any(pivots <= least * (1 + 8 * eps))
    sound = (jnp.max(sums, initial=0) <= 8 * norms[0]) & ~raised
    return ScalarFactors(
        values, row_scale, col_scale, norms, lower, reciprocals, upper, sound, failed
    )


def _eliminated(
    symmetric: bool, n: int, width: int, index: tuple[Array, Steps], entries
):
    """The reciprocals of D; L; and D U, or its adjoint."""
    starts, steps = index
    count = (len(entries) - width - n) // 2
    lower, upper = n, n + count
    real = jnp.finfo(entries.dtype).dtype
    least = jnp.asarray(float(jnp.finfo(real).eps) ** 0.5, real)

    def eliminate(j, entries):
        x = _at(entries, j)
        size = jnp.abs(x)
        factor = jnp.where(size > 0, least / size, 1).astype(x.dtype)
        raised = jnp.where(size > 0, x * factor, least.astype(x.dtype))
        reciprocal = 1 / jnp.where(size < least, raised, x)
        entries = _put(entries, reciprocal, j)
        if count == 0:
            return entries

        def divide(k, entries):
            x = _at(entries, k + (upper if symmetric else lower))
            return _put(entries, x * reciprocal, k + lower)

        def row(r, entries):
            b = _at(entries, _number(steps.factors, r))
            b = jnp.conj(b) if symmetric else b

            def subtract(k, entries):
                source, target = (_number(steps.places, 2 * k + i) for i in range(2))
                change = _own(width, source, b * _some(entries, source >> 3, width))
                return _put(entries, _some(entries, target, width) - change, target)

            first, end = _number(steps.rows, r), _number(steps.rows, r + 1)
            return lax.fori_loop(first, end, subtract, entries)

        first, end = _number(starts, j), _number(starts, j + 1)
        entries = lax.fori_loop(first, end, divide, entries)
        first, end = _number(steps.columns, j), _number(steps.columns, j + 1)
        return lax.fori_loop(first, end, row, entries)

    return lax.fori_loop(jnp.int32(0), jnp.int32(n), eliminate, entries)


def _gathered(
    combine: Callable[[Array, Array], Array],
    index: np.ndarray,
    x: Real[Array, " entries"],
    size: int,
) -> Real[Array, " size"]:
    """Of each number below `size` the entries that have it as `index`, one by one: for
    30,000 entries a scatter took three times as long."""

    def gather(index, x):
        def step(k, out):
            i = _number(index, k)
            return _put(out, combine(_at(out, i), _at(x, k)), i)

        out = jnp.zeros((size, x.shape[1]), x.dtype)
        return lax.fori_loop(jnp.int32(0), jnp.int32(len(index)), step, out)

    if len(index) == 0:
        return jnp.zeros((size,), x.dtype)
    return lanes_last(gather)(jnp.asarray(index.astype(np.int32)), x)


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
    beyond = lambda x: jnp.pad(x, [(0, width), *[(0, 0)] * (x.ndim - 1)])
    lower, upper = beyond(lower)[:, None], beyond(upper)[:, None]

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
