"""Products with a sparse matrix, whose entries stand in the order of a `Pattern`.

Everything here comes from the trilinear form Σₑ vₑ y_{i(e)} x_{j(e)}, over the entries
e = (i, j) of a pattern: A x and Aᵀ y are its derivatives in y and x, `sparse_product`;
that in v is `entry_products`. Each is bilinear, and the derivatives of each are the
others, so that each derivative is as fast as the product: what JAX would make of the
transpose of a gather is a scatter to unsorted indices.
"""

import functools as ft
import math
from typing import NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Inexact

from .._flat import result_dtype
from .._structure.pattern import Pattern


#
# Analyse
#


class _Group(NamedTuple):
    """Rows that are added up together: `entries[k, r]` is the k-th of row r.

    Where it is as large as the number of entries, there is none.
    """

    entries: np.ndarray
    columns: np.ndarray


class _Plan(NamedTuple):
    groups: tuple[_Group, ...]
    padded: bool
    even: bool  # few groups, little padding
    # The entries sorted by rows: their numbers (`None` if all in order), rows, columns.
    order: np.ndarray | None
    rows: np.ndarray
    columns: np.ndarray
    # Where among the rows of all groups each row stands; `None` if in order.
    positions: np.ndarray | None


# A row of so many entries, or fewer, is in a group of its exact length.
_short = 8
# Rows of so many are added slot by slot, in one fused loop over the rows. XLA's own sum
# along the rows took 3 to 5 times as long.
_unrolled = 16


@ft.lru_cache(maxsize=64)
def _plan(pattern: Pattern, transposed: bool) -> _Plan:
    """Rows of similar length in groups, padded to a power of two if they are long.

    So there are few groups, and never more than twice as many products as entries: a
    dense row is in a group with its like.
    """
    m, _ = pattern.shape[:: -1 if transposed else 1]
    rows, columns = (pattern.rows, pattern.cols)[:: -1 if transposed else 1]
    by_rows = np.argsort(rows, kind="stable").astype(np.int32)
    rows, columns = rows[by_rows], columns[by_rows]
    lengths = np.bincount(rows, minlength=m)
    starts = np.cumsum(lengths) - lengths
    rounded = 2 ** np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64)
    widths = np.where(lengths <= _short, lengths, rounded)
    numbers = np.append(by_rows, len(pattern)).astype(np.int32)
    padded_columns = np.append(columns, 0).astype(np.int32)

    groups, members = [], []
    for width in np.unique(widths):
        member = np.flatnonzero(widths == width)
        slot = np.arange(width)[:, None]
        at = starts[member] + slot
        at = np.where(slot < lengths[member], at, len(pattern))
        groups.append(_Group(numbers[at], padded_columns[at]))
        members.append(member)
    members = np.concatenate([np.zeros((0,), np.int64), *members])
    positions = None
    if np.any(members[1:] < members[:-1]):
        positions = np.empty((m,), np.int32)
        positions[members] = np.arange(m)
    padded = any(np.any(group.entries == len(pattern)) for group in groups)
    slots = sum(group.entries.size for group in groups)
    even = len(groups) <= 4 and slots <= 1.1 * len(pattern)
    order = by_rows if transposed else None
    return _Plan(tuple(groups), padded, even, order, rows, columns, positions)


#
# Multiply
#


def _take(x: Array, index: np.ndarray) -> Array:
    return x.at[index].get(mode="promise_in_bounds")


def _squeezed(x: Array) -> Array:
    """Without trailing axes of length one, of which XLA's gathers would be slower."""
    return x.reshape(x.shape[:1] + tuple(k for k in x.shape[1:] if k != 1))


def _product(values: Array, x: Array, *, pattern: Pattern, transposed: bool) -> Array:
    """Groups of rows, by gathers; a single column of an uneven matrix by a sorted sum.

    Milliseconds for one and for 16 columns, float64, on two CPU cores that were shared:

                                groups      sorted sum      BCOO
    5 points, n = 10⁴        0.34, 1.1       0.33, 2.9      0.28, 3.0
    5 points, n = 10⁵         1.7, 9.6        2.7, 76        2.6, 96
    10 random ones a row, 10⁵  14, 78         5.6, 188       6.1, 184
    3 dense rows, n = 10⁴    0.73, 2.7       0.47, 3.5      0.40, 3.4
    """
    plan = _plan(pattern, transposed)
    m, _ = pattern.shape[:: -1 if transposed else 1]
    _, batch, count = x.shape
    if batch == count == 1 and not plan.even:
        entries = (
            values[:, 0] if plan.order is None else _take(values[:, 0], plan.order)
        )
        products = entries * _take(x[:, 0, 0], plan.columns)
        out = jax.ops.segment_sum(products, plan.rows, m, indices_are_sorted=True)
        return out[:, None, None]
    if plan.padded:
        values = jnp.concatenate([values, jnp.zeros((1, batch), values.dtype)])
    values, flat = _squeezed(values), _squeezed(x)

    def multiply(entries, columns):
        factor, vectors = _take(values, entries), _take(flat, columns)
        factor = factor[..., None] if factor.ndim < vectors.ndim else factor
        return factor * vectors

    out = [jnp.zeros((0, *flat.shape[1:]), x.dtype)]
    for group in plan.groups:
        width, size = group.entries.shape
        if width > _unrolled:
            out.append(jnp.sum(multiply(group.entries, group.columns), axis=0))
        else:
            zero = jnp.zeros((size, *flat.shape[1:]), x.dtype)
            out.append(sum(map(multiply, group.entries, group.columns), start=zero))
    out = jnp.concatenate(out)
    if plan.positions is not None:
        out = _take(out, plan.positions)
    return out.reshape(m, batch, count)


def _entries(y: Array, x: Array, *, pattern: Pattern) -> Array:
    products = _take(_squeezed(y), pattern.rows) * _take(_squeezed(x), pattern.cols)
    return jnp.sum(products.reshape(len(pattern), *x.shape[1:]), axis=2)


# v (e, B), x (n, B, K) ↦ (m, B, K), and y (m, B, K), x (n, B, K) ↦ (e, B): a batch of B
# matrices, each with K vectors. The axes come last, so that a gather copies rows.
product_p = jex.Primitive("sparse_product")
entries_p = jex.Primitive("sparse_entry_products")


def _abstract_product(values, x, *, pattern, transposed):
    m, _ = pattern.shape[:: -1 if transposed else 1]
    return ShapedArray((m, *x.shape[1:]), x.dtype)


def _abstract_entries(y, x, *, pattern):
    return ShapedArray((len(pattern), x.shape[1]), x.dtype)


def _batch_product(args, axes, *, pattern, transposed):
    (values, x), (v_axis, x_axis) = args, axes
    bind = ft.partial(product_p.bind, pattern=pattern, transposed=transposed)
    if v_axis is None:  # more columns
        x = jnp.moveaxis(x, x_axis, 3)
        _, batch, count, size = x.shape
        out = bind(values, x.reshape(len(x), batch, count * size))
        return out.reshape(len(out), batch, count, size), 3
    values = jnp.moveaxis(values, v_axis, 2)
    _, batch, size = values.shape
    x = _axis_after_first_two(x, x_axis, size)
    out = bind(values.reshape(len(values), batch * size), _merged(x))
    return out.reshape(len(out), *x.shape[1:]), 2


def _batch_entries(args, axes, *, pattern):
    (size,) = {a.shape[i] for a, i in zip(args, axes) if i is not None}
    y, x = (_axis_after_first_two(a, i, size) for a, i in zip(args, axes))
    out = entries_p.bind(_merged(y), _merged(x), pattern=pattern)
    return out.reshape(len(pattern), *x.shape[1:3]), 2


def _axis_after_first_two(x: Array, axis: int | None, size: int) -> Array:
    if axis is None:
        return jnp.broadcast_to(x[:, :, None], (*x.shape[:2], size, x.shape[2]))
    return jnp.moveaxis(x, axis, 2)


def _merged(x: Array) -> Array:
    return x.reshape(len(x), x.shape[1] * x.shape[2], x.shape[3])


for _primitive, _impl, _static, _abstract, _batch in (
    (
        product_p,
        _product,
        ("pattern", "transposed"),
        _abstract_product,
        _batch_product,
    ),
    (entries_p, _entries, ("pattern",), _abstract_entries, _batch_entries),
):
    _primitive.def_impl(jax.jit(_impl, static_argnames=_static))
    _primitive.def_abstract_eval(_abstract)
    batching.primitive_batchers[_primitive] = _batch
    mlir.register_lowering(_primitive, mlir.lower_fun(_impl, multiple_results=False))


def _bind_entries(g, x, *, pattern, transposed):
    y, x = (x, g) if transposed else (g, x)
    return entries_p.bind(y, x, pattern=pattern)


def _bind_transposed(g, values, *, pattern, transposed):
    return product_p.bind(values, g, pattern=pattern, transposed=not transposed)


def _bind_product(g, x, *, pattern, transposed):
    return product_p.bind(g, x, pattern=pattern, transposed=transposed)


ad.defbilinear(
    product_p,
    lambda g, values, x, **kwargs: _bind_entries(g, x, **kwargs),
    lambda g, values, x, **kwargs: _bind_transposed(g, values, **kwargs),
)
ad.defbilinear(
    entries_p,
    lambda g, y, x, **kwargs: _bind_product(g, x, transposed=False, **kwargs),
    lambda g, y, x, **kwargs: _bind_product(g, y, transposed=True, **kwargs),
)


def sparse_product(
    values: Inexact[Array, " entries"],
    pattern: Pattern,
    vectors: Inexact[Array, "n ..."],
    transposed: bool = False,
) -> Inexact[Array, "m ..."]:
    """A X, or with `transposed` Aᵀ X, of the matrix A with `values` where `pattern` is.

    O(entries) time for a column, and O(entries · columns) memory. Values and vectors
    are promoted to one dtype. Under `vmap` over the vectors these become columns.
    """
    dtype = result_dtype((values, vectors))
    n, *columns = vectors.shape
    x = vectors.astype(dtype).reshape(n, 1, math.prod(columns))
    values = values.astype(dtype)[:, None]
    out = product_p.bind(values, x, pattern=pattern, transposed=transposed)
    return out.reshape(len(out), *columns)


def entry_products(
    left: Inexact[Array, "m ..."],
    right: Inexact[Array, "n ..."],
    pattern: Pattern,
) -> Inexact[Array, " entries"]:
    """The entries of L Rᵀ that `pattern` has, summed over all columns.

    The cotangent of `values` in `sparse_product(values, pattern, right)`, if `left` is
    that of the product. O(entries · columns).
    """
    dtype = result_dtype((left, right))
    count = math.prod(left.shape[1:])
    y, x = (a.astype(dtype).reshape(len(a), 1, count) for a in (left, right))
    return entries_p.bind(y, x, pattern=pattern)[:, 0]
