"""The entries of JᵀJ: sums of products of two entries of J."""

import functools as ft
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact

from .._structure.known import locate, lower_half
from .._structure.pattern import Pattern
from .sparse_product import sparse_product


_DENSE = 8  # rows that are kept out of the fronts


class _Plan(NamedTuple):
    """Entries of the lower half of JᵀJ are sums of products of two entries of J: those
    of row t, the entries `left[k]` and `products.cols[k]` for all k in row t of
    `products`."""

    gram: Pattern
    left: np.ndarray
    products: Pattern


class _Blocks(NamedTuple):
    """Rows of J in blocks: `entries[i, j, b]` is that of row i of block b in the j-th
    column that the block has, or the number of entries where there is none.

    With X that block, the lower halves of XᴴX of all blocks stand one after the other,
    pair of columns by pair. Entries of JᴴJ with equally many of them are added up
    together: `terms[g][k, t]` is the k-th of the t-th such entry, or the number of all
    where there is none. `places`: where among all groups each entry stands.
    """

    entries: np.ndarray
    terms: tuple[np.ndarray, ...]
    places: np.ndarray


def dense_rows(pattern: Pattern) -> np.ndarray:
    """Rows that are kept out of the fronts: few, and far longer than the others."""
    m, n = pattern.shape
    lengths = np.bincount(pattern.rows, minlength=m)
    long = np.flatnonzero(lengths > max(64, 10 * np.sqrt(n)))
    return long if len(long) <= _DENSE else long[:0]


@ft.lru_cache(maxsize=32)
def _plan(pattern: Pattern) -> _Plan:
    m, n = pattern.shape
    kept = np.flatnonzero(~np.isin(pattern.rows, dense_rows(pattern)))
    rows, cols = pattern.rows[kept], pattern.cols[kept]
    starts = np.searchsorted(rows, np.arange(m + 1))
    # Of each entry, those before it in its row, and itself.
    before = np.arange(len(rows)) - starts[rows] + 1
    left = np.repeat(np.arange(len(rows)), before)
    within = np.arange(len(left)) - np.repeat(np.cumsum(before) - before, before)
    right = starts[rows[left]] + within
    flat = cols[left].astype(np.int64) * n + cols[right]
    order = np.argsort(flat, kind="stable")
    # Every diagonal entry is there: the damping is on it.
    diagonal = np.arange(n, dtype=np.int64) * (n + 1)
    lower = np.union1d(flat, diagonal)
    low = lower // max(n, 1), lower % max(n, 1)
    gram = Pattern(np.concatenate([low[0], low[1]]), np.concatenate(low[::-1]), (n, n))
    return _Plan(
        gram,
        kept[left[order]].astype(np.int32),
        Pattern(
            np.searchsorted(lower, flat[order]),
            kept[right[order]],
            (len(lower), len(pattern)),
        ),
    )


def gram(pattern: Pattern) -> Pattern:
    """That of JᵀJ, without the dense rows."""
    return _plan(pattern).gram


def products(pattern: Pattern) -> int:
    """How many of entries are added up to JᵀJ."""
    lengths = np.bincount(pattern.rows, minlength=pattern.shape[0])
    lengths[dense_rows(pattern)] = 0
    return int(np.sum(lengths * (lengths + 1)) // 2)


# Columns of a block: so many that its pairs are quickly compiled. Products with which
# it begins to be faster.
_WIDTH, _PRODUCTS = 12, 2**17


@ft.lru_cache(maxsize=32)
def _blocks(pattern: Pattern) -> _Blocks | None:
    """Blocks of consecutive rows that have nearly the same columns, such as those of an
    observation: `None` where products are few, or not a third fewer by blocks."""
    count, size = products(pattern), len(pattern)
    if count < _PRODUCTS:
        return None
    kept = np.flatnonzero(~np.isin(pattern.rows, dense_rows(pattern)))
    rows, cols = pattern.rows[kept], pattern.cols[kept].astype(np.int64)
    n = pattern.shape[1]
    for height in (6, 4, 3, 2):
        number = -(-pattern.shape[0] // height)
        # The columns of each block, sorted.
        flat, at = np.unique(rows // height * n + cols, return_inverse=True)
        block = flat // n
        starts = np.searchsorted(block, np.arange(number + 1))
        width = int(np.diff(starts).max())
        if width <= _WIDTH and 3 * number * width * (width + 1) <= 4 * count:
            break
    else:
        return None
    place = at - starts[block[at]]
    entries = np.full((height, width, number), size, np.int32)
    entries[rows % height, place, block[at]] = kept
    columns = np.full((width, number), -1)
    columns[np.arange(len(flat)) - starts[block], block] = flat % n
    i, j = np.tril_indices(width)
    i, j = columns[i].ravel(), columns[j].ravel()
    known = np.flatnonzero((i >= 0) & (j >= 0))
    lower = lower_half(gram(pattern))
    target = locate(lower, i[known], j[known])
    known, target = known[target < len(lower)], target[target < len(lower)]
    terms = known[np.argsort(target, kind="stable")]
    return _Blocks(entries, *_grouped(terms, np.bincount(target), len(i)))


def _grouped(
    terms: np.ndarray, lengths: np.ndarray, none: int
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Sums of so many of the terms, in turn; of many terms up to a quarter more."""
    step = 2 ** np.floor(np.log2(np.maximum(lengths, 4))).astype(np.int64) // 4
    widths = np.where(lengths <= 8, lengths, -(-lengths // step) * step)
    starts, padded = np.cumsum(lengths) - lengths, np.append(terms, none)
    groups, members = [], []
    for width in np.unique(widths):
        member, slot = np.flatnonzero(widths == width), np.arange(width)[:, None]
        at = np.where(slot < lengths[member], starts[member] + slot, len(terms))
        groups.append(padded[at].astype(np.int32))
        members.append(member)
    places = np.empty(len(lengths), np.int32)
    places[np.concatenate(members)] = np.arange(len(lengths))
    return tuple(groups), places


def sums_of_products(
    values: Inexact[Array, " entries"], pattern: Pattern
) -> Inexact[Array, " half"]:
    """The lower half of JᴴJ, without the dense rows, in the order of `gram`.

    Cost: the sum of the squared lengths of the rows. 720,000 products of 20,000 rows of
    a bundle adjustment took 2.5 ms one by one, and 1.1 by blocks of two rows.
    """
    take = lambda x, index: x.at[index].get(mode="promise_in_bounds")
    plan, blocks = _plan(pattern), _blocks(pattern)
    if blocks is None:
        return sparse_product(take(jnp.conj(values), plan.left), plan.products, values)
    x = take(jnp.append(values, 0), blocks.entries)
    pairs = zip(*np.tril_indices(x.shape[1]))
    terms = [sum(jnp.conj(row[i]) * row[j] for row in x) for i, j in pairs]
    terms = jnp.concatenate([*terms, jnp.zeros((1,), x.dtype)])
    # As in `sparse_product`: a few slot by slot.
    few = lambda group: sum(take(terms, slot) for slot in group)
    many = lambda group: jnp.sum(take(terms, group), axis=0)
    sums = [(few if len(group) <= 8 else many)(group) for group in blocks.terms]
    return take(jnp.concatenate(sums), blocks.places)
