"""LU factorisation entry by entry, where little fills in.

A front of a tree, or of a circuit, has one pivot and a neighbour or two. As a dense
matrix it is mostly padding, and a kernel for each of them takes longer than its
arithmetic. Here a factorisation is a list of operations a ← a − b c on an array of
entries, and one loop goes through it: some 10 ns each on a CPU, and two kernels to
compile.
"""

import functools as ft
from collections.abc import Callable

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Inexact, Real

from ..._structure.pattern import Pattern
from .scaling import equilibrated


class Scalar:
    """The analysis of a pattern: compares and hashes by value. Made by `list_of`.

    Row `row_order[i]` and column `col_order[i]` of the matrix are row and column i of
    the one that is factorised. Entry k below its diagonal is in the row `rows[k]` and
    column `cols[k]`, and the k-th above it the other way round, for the pattern of the
    factors is symmetric. In the array are first the diagonal, then those below, those
    above, and a zero; `places` says where the entries of the pattern go.

    `targets`, `bases`, `lefts`, `rights`, `pivots`: of each operation, in turn.
    """

    def __init__(self, pattern: Pattern, symmetric: bool, matched, order, rows, cols):
        n = pattern.shape[0]
        self.pattern, self.symmetric = pattern, symmetric
        self.row_order, self.col_order = matched[order], order
        self.rows, self.cols = rows.astype(np.int32), cols.astype(np.int32)
        count = len(rows)
        self.fill = n + 2 * count
        key = cols * n + rows

        def place(i, j):
            k = np.searchsorted(key, np.minimum(i, j) * n + np.maximum(i, j))
            return np.where(i == j, i, np.where(i > j, n, n + count) + k)

        row_place, col_place = np.empty(n, np.int64), np.empty(n, np.int64)
        row_place[self.row_order] = col_place[order] = np.arange(n)
        entries = place(row_place[pattern.rows], col_place[pattern.cols])
        self.places = entries.astype(np.int32)

        # The negative reciprocal of a pivot, the factors below it, and what is taken
        # from the entries that are to the right of the one and below the other.
        size = np.bincount(cols, minlength=n)
        start = np.cumsum(size) - size
        pairs = size**2
        column = np.repeat(np.arange(n), pairs)
        number = np.arange(len(column)) - np.repeat(np.cumsum(pairs) - pairs, pairs)
        below = start[column] + number // size[column]
        right = start[column] + number % size[column]
        diagonal, lower, zero = np.arange(n), n + np.arange(count), self.fill
        none = np.full(n, zero), np.full(count, zero)
        target = place(rows[below], rows[right])
        operations = np.stack(
            [
                np.concatenate([diagonal, lower, target]),
                np.concatenate([diagonal, none[1], target]),
                np.concatenate([none[0], lower, n + below]),
                np.concatenate([none[0], cols, n + count + right]),
            ]
        )
        step = np.concatenate([diagonal, cols, column])
        kind = np.repeat([0, 1, 2], [n, count, len(column)])
        turn = np.lexsort((kind, step))
        self.targets, self.bases, self.lefts, self.rights = operations[:, turn].astype(
            np.int32
        )
        self.is_pivot = kind[turn] == 0

    def __eq__(self, other):
        if not isinstance(other, Scalar):
            return NotImplemented
        return (self.pattern, self.symmetric) == (other.pattern, other.symmetric)

    def __hash__(self):
        return hash((self.pattern, self.symmetric))

    @property
    def operations(self) -> int:
        return len(self.targets)

    def __repr__(self):
        return f"Scalar({self.pattern}, symmetric={self.symmetric}, fill={self.fill})"


_OPERATIONS = 600_000  # some ms, and ten megabytes of indices
_FILL = (
    100_000  # entries, a megabyte: beyond caches an operation takes ten times as long
)


@ft.lru_cache(maxsize=64)
def list_of(pattern: Pattern, symmetric: bool = False) -> Scalar | None:
    """The operations of a factorisation, or `None` if they, or its entries, are too
    many.

    Cost: that of a factorisation by SuperLU, for the ordering, and O(operations).

    **Raises:**

    `ValueError` for a pattern of which every matrix is singular.
    """
    from .matching import matched_graph
    from .minimum_degree import ordered

    n = pattern.shape[0]
    matched, _, graph = matched_graph(pattern, symmetric)
    if n + len(graph.indices) > _FILL:  # before anything is ordered
        return None
    order, rows, cols = ordered(graph)
    size = np.bincount(cols, minlength=n).astype(np.int64)
    if n + 2 * len(rows) > _FILL or (size**2 + size + 1).sum() > _OPERATIONS:
        return None
    return Scalar(pattern, symmetric, matched, order, rows, cols)


class ScalarFactors(eqx.Module):
    """What `factor` returns: L D U of the matrix scaled by `row_scale`, `col_scale`.

    `lower` and `upper`: the entries of L and of U, which have a diagonal of ones.
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
    upper: Inexact[Array, " count"]
    sound: Bool[Array, ""]
    failed: Bool[Array, ""]


def factor_entries(plan: Scalar, values: Inexact[Array, " entries"]) -> ScalarFactors:
    """A pivot that is too small is raised; rows do not change places.

    Cost: 10 ns an operation, of which there are `plan.operations`.
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
    entries = jnp.zeros((plan.fill + 1,), values.dtype)
    entries = entries.at[plan.places].set(scaled, unique_indices=True)
    targets, bases = jnp.asarray(plan.targets), jnp.asarray(plan.bases)
    lefts, rights = jnp.asarray(plan.lefts), jnp.asarray(plan.rights)
    is_pivot = jnp.asarray(plan.is_pivot)

    def step(k, entries):
        at = lambda index: lax.dynamic_index_in_dim(entries, index[k], keepdims=False)
        x = at(bases) - at(lefts) * at(rights)
        size = jnp.abs(x)
        factor = jnp.where(size > 0, least / size, 1).astype(x.dtype)
        raised = jnp.where(size > 0, x * factor, least.astype(x.dtype))
        pivot = jnp.where(size < least, raised, x)
        x = jnp.where(is_pivot[k], -1 / pivot, x)
        return lax.dynamic_update_index_in_dim(entries, x, targets[k], 0)

    if n > 0:
        entries = lax.fori_loop(0, plan.operations, step, entries)
    reciprocals = -entries[:n]
    lower, upper = entries[n : n + count], entries[n + count : plan.fill]
    right = upper
    upper = upper * reciprocals.at[plan.cols].get(mode="promise_in_bounds")
    failed = jnp.array(False)
    if plan.symmetric:
        failed = ~jnp.all(reciprocals.real > 0)
    pivots = 1 / jnp.abs(reciprocals)
    sums = pivots + _gathered(jnp.add, plan.cols, jnp.abs(right), n)
    below = jnp.abs(lower) * sums.at[plan.cols].get(mode="promise_in_bounds")
    sums = sums + _gathered(jnp.add, plan.rows, below, n)
    raised = jnp.any(pivots <= least * (1 + 8 * eps))
    sound = (jnp.max(sums, initial=0) <= 8 * norms[0]) & ~raised
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
    index_ = jnp.asarray(index.astype(np.int32))

    def step(k, out):
        i = index_[k]
        at = lax.dynamic_index_in_dim(out, i, keepdims=False)
        return lax.dynamic_update_index_in_dim(out, combine(at, x[k]), i, 0)

    out = jnp.zeros((size,), x.dtype)
    return lax.fori_loop(0, len(index), step, out) if len(index) > 0 else out


def substitute(
    plan: Scalar,
    factors: ScalarFactors,
    b: Inexact[Array, "n columns"],
    transpose: bool = False,
) -> Inexact[Array, "n columns"]:
    """M⁻¹ b, or M⁻ᵀ b, of what was factorised: O(fill) a column."""
    lower, upper = factors.lower, factors.upper
    row_scale, col_scale = factors.row_scale, factors.col_scale
    rows, cols = plan.row_order, plan.col_order
    if transpose:
        lower, upper = upper, lower
        row_scale, col_scale = col_scale, row_scale
        rows, cols = cols, rows
    b = b * row_scale[:, None].astype(b.dtype)
    reciprocals = factors.reciprocals[:, None]
    later, own = jnp.asarray(plan.rows), jnp.asarray(plan.cols)
    last = len(plan.rows) - 1

    def swept(b):
        at = lambda x, i: lax.dynamic_index_in_dim(x, i)

        def up(k, b):
            x = at(b, later[k]) - at(lower, k)[:, None] * at(b, own[k])
            return lax.dynamic_update_index_in_dim(b, x, later[k], 0)

        def down(k, b):
            k = last - k
            x = at(b, own[k]) - at(upper, k)[:, None] * at(b, later[k])
            return lax.dynamic_update_index_in_dim(b, x, own[k], 0)

        if last < 0:
            return b * reciprocals
        b = lax.fori_loop(0, last + 1, up, b) * reciprocals
        return lax.fori_loop(0, last + 1, down, b)

    b = b.at[rows].get(mode="promise_in_bounds")
    if b.shape[1] == 1:
        b = swept(b)
    else:
        # A step that changes a row of several is no longer compiled into the loop.
        b = lax.map(lambda column: swept(column[:, None])[:, 0], b.T).T
    b = jnp.zeros_like(b).at[cols].set(b, unique_indices=True)
    return b * col_scale[:, None].astype(b.dtype)
