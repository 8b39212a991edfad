"""Reading the entries of an operator: seeds in, entries out.

Columns that share no row can be read together: the sum of the columns of one colour is
one application of the operator to a 0-1 vector, the seed of that colour. A matrix of
bandwidth (l, u) needs l + u + 1 colours, whatever its size; a matrix of which nothing
is known needs one colour a column. Rows are coloured in the same way where the operator
is given by its VJP.

Source: Curtis, Powell, Reid, *On the Estimation of Sparse Jacobian Matrices*, IMA
Journal of Applied Mathematics 13 (1974), doi:10.1093/imamat/13.1.117.
"""

import functools as ft
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import Array, Inexact, Int, PyTree

from .._flat import cast, ravel, result_dtype, tree_size, unravel


class Reader(NamedTuple):
    """An operator as a function between flat vectors.

    With `by="columns"`, `apply(v)` is `A v`; with `by="rows"`, `apply(v)` is `Aᵀ v`.
    Both return the dtype of the operator's output, which is that of the matrix.
    """

    apply: Callable[[Inexact[Array, " seed"]], Inexact[Array, " entries"]]
    by: Literal["columns", "rows"]
    shape: tuple[int, int]
    dtype: jnp.dtype


def untagged(operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
    """Takes off any number of `TaggedLinearOperator`s."""
    while isinstance(operator, lx.TaggedLinearOperator):
        operator = operator.operator
    return operator


def direction(
    operator: lx.AbstractLinearOperator, by: Literal["columns", "rows"] | None = None
) -> Literal["columns", "rows"]:
    """What `reader(operator, by)` reads."""
    operator = untagged(operator)
    if isinstance(operator, lx.JacobianLinearOperator):
        if operator.jac == "bwd" or (operator.jac is None and by == "rows"):
            return "rows"
    return "columns"


def reader(
    operator: lx.AbstractLinearOperator, by: Literal["columns", "rows"] | None = None
) -> Reader:
    """The cheapest way to read `operator`: its own JVP, VJP, or function.

    `by` asks for rows or columns of a Jacobian whose `jac` leaves the choice open. One
    with `jac="bwd"` is always read by its VJP, and never transposed: its backward pass
    may be a callback. Everything else is read by columns.
    """
    operator = untagged(operator)
    in_structure, out_structure = operator.in_structure(), operator.out_structure()
    shape = (tree_size(out_structure), tree_size(in_structure))
    dtype = result_dtype(out_structure)

    if isinstance(operator, lx.JacobianLinearOperator):
        if direction(operator, by) == "rows":
            _, vjp = jax.vjp(lambda x: operator.fn(x, operator.args), operator.x)
            return Reader(_row_reader(vjp, operator), "rows", shape, dtype)
    fn = column_function(operator)

    def apply(seed):
        return cast(ravel(fn(unravel(seed, in_structure))), dtype)

    return Reader(apply, "columns", shape, dtype)


def column_function(
    operator: lx.AbstractLinearOperator,
) -> Callable[[PyTree[Array]], PyTree[Array]]:
    """x ↦ A x, linearised, for an `untagged` operator that is read by columns."""
    if isinstance(operator, lx.JacobianLinearOperator):
        return jax.linearize(lambda x: operator.fn(x, operator.args), operator.x)[1]
    if isinstance(operator, lx.FunctionLinearOperator):
        return operator.fn
    return lx.linearise(operator).mv


def _row_reader(vjp, operator):
    out_structure = operator.out_structure()
    dtype = result_dtype(out_structure)
    is_real = lambda x: not jnp.issubdtype(x.dtype, jnp.complexfloating)
    has_imaginary_part = not is_real(jnp.zeros((), dtype)) and any(
        is_real(x) for x in jtu.tree_leaves(operator.in_structure())
    )

    def apply(seed):
        (row,) = vjp(unravel(seed, out_structure))
        if has_imaginary_part:
            # For real x and complex f, JAX's VJP is v ↦ Re(Jᵀ v). The imaginary part
            # of a row is then Re(Jᵀ (-i v)).
            (imag,) = vjp(unravel(-1j * seed.astype(dtype), out_structure))
            row = jtu.tree_map(
                lambda re, im: lax.complex(re, im) if is_real(re) else re, row, imag
            )
        return cast(ravel(row), dtype)

    return apply


def basis_vector(index: Int[Array, ""], size: int, dtype: Any) -> Array:
    return (lax.iota(jnp.int32, size) == index).astype(dtype)


#
# Applying to many seeds
#


def _largest_intermediate(jaxpr: Jaxpr) -> int:
    """The number of entries of the largest array that a computation makes."""
    largest = 0
    for eqn in jaxpr.eqns:
        inner = [
            getattr(x, "jaxpr", x)
            for x in jtu.tree_leaves(eqn.params, is_leaf=_is_jaxpr)
            if _is_jaxpr(x)
        ]
        sizes = [getattr(var.aval, "size", 0) for var in eqn.outvars]
        largest = max([largest, *sizes, *map(_largest_intermediate, inner)])
    return largest


def _is_jaxpr(x) -> bool:
    return isinstance(x, Jaxpr | ClosedJaxpr)


def largest(fn: Callable[[Array], Any], x: jax.ShapeDtypeStruct) -> int:
    """The number of entries of the largest array that a call makes."""
    return max(1, _largest_intermediate(jax.make_jaxpr(fn)(x).jaxpr))


def chunk_size(
    fn: Callable[[Array], Any], x: jax.ShapeDtypeStruct, count: int, devices: int = 1
) -> int:
    """How many of `count` calls of `fn`, on such an x, to push through one `vmap`.

    On a CPU the largest array of a chunk should stay in cache. Pushing all n basis
    vectors of a tanh network (2000×199, 10000×100, 500×499) through one `vmap` took 2.5
    to 3 times as long as chunks of up to 8 MB, below which the time is flat; what fits
    into four such chunks does best in one piece (1000×49, 200×199). Elsewhere only
    memory is to be bounded.
    """
    chunk = devices * (2**20 if jax.default_backend() == "cpu" else 2**26)
    size = largest(fn, x)
    return count if count * size <= 4 * chunk else max(1, min(count, chunk // size))


def map_chunked(
    fn: Callable[[Array], Array],
    xs: Inexact[Array, "count ..."] | Int[Array, " count"],
    devices: int = 1,
    chunk: int | None = None,
) -> Array:
    """Stacks `fn(xs[0]), fn(xs[1]), …`: `vmap` over a chunk, a loop over the chunks.

    A primitive without a batching rule falls back to the loop alone. `fn` must accept
    zeros, with which the last chunk is padded. `devices` share what a call makes.
    Without a `chunk`, that of `chunk_size`.
    """
    count = len(xs)
    # Checkpointed, or a gradient would keep what each chunk computed: O(n²).
    checkpoint = ft.partial(jax.checkpoint, prevent_cse=False)
    if chunk is None:
        struct = jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype)
        chunk = chunk_size(fn, struct, count, devices)
    if chunk > 1:
        loops = -(-count // chunk)
        chunk = -(-count // loops)  # equal chunks: least padding
        try:
            if loops == 1:
                return jax.vmap(fn)(xs)
            padded = jnp.pad(
                xs, [(0, loops * chunk - count)] + [(0, 0)] * (xs.ndim - 1)
            ).reshape(loops, chunk, *xs.shape[1:])
            out = lax.map(checkpoint(jax.vmap(fn)), padded)
            return out.reshape(loops * chunk, *out.shape[2:])[:count]
        except (NotImplementedError, ValueError):
            pass  # no batching rule, an ordered effect; else the loop raises it, too
    return lax.map(checkpoint(fn), xs)


def sum_chunked(fn: Callable[[Int[Array, ""]], Array], count: int) -> Array:
    """fn(0) + fn(1) + … + fn(count − 1), as `map_chunked` without a stack of the terms.

    Memory for one chunk of terms and the sum.
    """
    index = jax.ShapeDtypeStruct((), jnp.int32)
    loops = -(-count // chunk_size(fn, index, count))
    chunk = -(-count // loops)

    def term(index):
        value = fn(jnp.minimum(index, count - 1))
        return jnp.where(index < count, value, jnp.zeros_like(value))

    def add(total, start):
        terms = jax.vmap(term)(start + lax.iota(jnp.int32, chunk))
        return total + jnp.sum(terms, axis=0), None

    def add_one(total, index):
        return total + term(index), None

    def loop(body, step):
        out = jax.eval_shape(fn, index)
        starts = step * lax.iota(jnp.int32, -(-count // step))
        body = jax.checkpoint(body, prevent_cse=False)
        return lax.scan(body, jnp.zeros(out.shape, out.dtype), starts)[0]

    if chunk > 1:
        try:
            return loop(add, chunk)
        except (NotImplementedError, ValueError):
            pass  # as in `map_chunked`
    return loop(add_one, 1)


#
# Banded
#


def _colours(start: int, stop: int, count: int) -> Array:
    # `lax.rem` of non-negative int32 is one multiplication; Python's `%` on int64 is a
    # division and two selects, and dominated the extraction at n = 200,000.
    return lax.rem(
        lax.iota(jnp.int32, stop - start) + jnp.int32(start % count), jnp.int32(count)
    )


def read_band(
    read: Reader, lower: int, upper: int
) -> dict[int, Inexact[Array, " length"]]:
    """The diagonals -`lower`, …, `upper` of a matrix that has no others.

    Costs `lower + upper + 1` applications and O(n) memory. The result maps the offset
    `j - i` to the entries in order of growing i.
    """
    m, n = read.shape
    k = lower + upper + 1
    offsets = range(-lower, upper + 1)
    size = n if read.by == "columns" else m
    if m == 0 or n == 0:
        return {d: jnp.zeros(_span(m, n, d)[2], read.dtype) for d in offsets}

    colour = lax.broadcasted_iota(jnp.int32, (k, size), 0)
    seeds = (_colours(0, size, k)[None, :] == colour).astype(read.dtype)
    compressed = list(map_chunked(read.apply, seeds))

    band = {}
    for d in offsets:
        i, j, length = _span(m, n, d)
        # Entry (i, j) stands in the application that holds the colour of its column j
        # (of its row i), at row i (at column j).
        coloured, at = (j, i) if read.by == "columns" else (i, j)
        band[d] = (
            lax.select_n(
                _colours(coloured, coloured + length, k),
                *[c[at : at + length] for c in compressed],
            )
            if k > 1
            else compressed[0][at : at + length]
        )
    return band


def _span(m: int, n: int, offset: int) -> tuple[int, int, int]:
    """First row, first column and length of a diagonal of an m×n matrix."""
    i, j = max(0, -offset), max(0, offset)
    return i, j, max(0, min(m - i, n - j))


#
# A pattern
#


def read_compressed(
    read: Reader, colours: np.ndarray, count: int
) -> Inexact[Array, "count length"]:
    """For each colour, the sum of the columns (rows) that have it.

    Where no two columns of a colour share a row, entry (i, j) stands at `[colour of j,
    i]`. Costs `count` applications.
    """
    m, n = read.shape
    if min(m, n, count) == 0:
        return jnp.zeros((count, m if read.by == "columns" else n), read.dtype)
    colour = lax.broadcasted_iota(jnp.int32, (count, len(colours)), 0)
    seeds = jnp.asarray(colours, jnp.int32)[None, :] == colour
    seeds, chunk = seeds.astype(read.dtype), None
    if jax.default_backend() == "cpu" and jax.device_count() == 1:
        # One colour after the other, where all at once would leave the caches of a
        # core: XLA makes one loop of what is here a few short ones, and divides for
        # each entry anew what some share. 8 colours of 20,000 rows of a bundle
        # adjustment took 4.1 ms at once and 2.3 so; where a row is little work it is
        # slower, by a millisecond for 9 colours of 40,000 rows.
        struct = jax.ShapeDtypeStruct(seeds.shape[1:], seeds.dtype)
        chunk = count if count * largest(read.apply, struct) <= 2**17 else 1
    return map_chunked(read.apply, seeds, chunk=chunk)


#
# Nothing is known
#


def read_diagonals(
    read: Reader, offsets: tuple[int, ...]
) -> dict[int, Inexact[Array, " length"]]:
    """The true diagonals of any matrix, in one pass over its columns (or rows).

    Costs O(n) applications, and O(n · chunk) memory: the dense matrix never exists.
    """
    m, n = read.shape
    if read.by == "columns":
        size, length, spans = n, m, {d: _span(m, n, d) for d in offsets}
    else:
        # The rows of A are the columns of Aᵀ.
        spans = {d: (j, i, k) for d in offsets for i, j, k in [_span(m, n, d)]}
        size, length = m, n
    count = max(first + k if k > 0 else 0 for _, first, k in spans.values())
    if count == 0:
        return {d: jnp.zeros((0,), read.dtype) for d in offsets}

    def entries(index):
        out = read.apply(basis_vector(index, size, read.dtype))
        at = [jnp.clip(index + i - j, 0, length - 1) for i, j, _ in spans.values()]
        return out[jnp.stack(at)]

    out = map_chunked(entries, lax.iota(jnp.int32, count))
    return {
        d: out[j : j + k, column] for column, (d, (_, j, k)) in enumerate(spans.items())
    }
