"""QR of a triangle on top of another, or of rows."""

import math
from typing import Any

import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from .gram_schmidt import (
    back_substitution,
    gram_schmidt,
    gram_schmidt_by_columns,
    is_sequential,
    products_of,
)
from .householder import compact_wy, householder_qr, solve_upper
from .looped_qr import (
    add_rows,
    add_triangle,
    block,
    padded,
    triangle_of,
    wide_block,
)
from .panels import Panels, TriangularStackQR
from .product import matmul


# OpenBLAS, the LAPACK of JAX on a CPU, calls its threads for larger panels. For 25 ms
# afterwards they spin on cores that XLA could use: whatever comes next takes up to
# twice as long.
def _largest_panel(dtype: Any) -> int:
    return 4096 if jnp.issubdtype(dtype, jnp.complexfloating) else 8192


def _block_size(n: int, dtype: Any) -> int:
    """The width of a panel of [R₁; R₂], where panels are written out.

    The widest that `_largest_panel` leaves to the last one: each panel takes a tenth
    of a second to compile. (Narrow ones waste less: above 50 that shows.) On an
    accelerator, past n = 350, what bounds their number.
    """
    if n > 350:
        return 16 * max(3, -(-n // 320))
    limit = _largest_panel(dtype)
    widest = min(50, (math.isqrt(n * n + 4 * limit) - n) // 2)
    return -(-n // -(-n // widest)) if n > 0 else 1


def _is_looped(n: int) -> bool:
    """Whether the panels of [R₁; R₂] are taken in loops, of narrow ones.

    These compile in half a second to one, where up to 16 panels take 1 to 3 s. One
    damping takes 1.2 to 1.3 times as long for n of 200 to 350, which thousands make up
    for, and is as fast for n = 150 and above 350.
    """
    return n > _most_unrolled and jax.default_backend() == "cpu"


_most_unrolled = 130
# Up to this n, loops over panels of like height are faster than one over chunks.
_most_by_height = 350


# Up to this n, one call of LAPACK for all of [S; √λ I] is faster, and compiles faster.
_dense = 64
# Up to this n Gram–Schmidt is faster than LAPACK: 0.2 µs for 1 with n = 2, 0.7 for 1.3
# with n = 4, and much faster in a batch. From n = 5 on it is longer in compiling.
_unrolled = 4
# For longer columns, outside of a batch, XLA calls its threads, and LAPACK is faster.
_most_rows = 256
# For more, LAPACK's threads are worth their price.
_most_columns = 256


def is_small(m: int, n: int) -> bool:
    """Whether A itself is as good as a triangle, for `solve_condensed`.

    A call of LAPACK takes as long as hundreds of rows of a narrow matrix. One QR of
    [A; √λ I] a step is then faster than one of A a point and one of [R; √λ I] a step.
    Of few columns a triangle is made without a call, and less is kept with it; of no
    more than 2n rows it would only be more to compile.
    """
    if n <= _unrolled:
        return 0 < n and m <= 2 * n
    return n <= _dense and m <= max(8 * n, 64)


def is_long(m: int, n: int) -> bool:
    """Whether most of the work is for `condense`, and that in loops."""
    long = _dense <= n <= _most_columns and m >= 2 * n
    return long and jax.default_backend() == "cpu"


def is_tiny(n: int) -> bool:
    """Whether the triangle is made without LAPACK, by `gram_schmidt`."""
    return n <= _unrolled


def _stack_qr(
    rt: Inexact[Array, "c n"],
    bt: Inexact[Array, "c e"],
    block: int,
    *,
    triangular: bool,
) -> tuple[Inexact[Array, "c n"], tuple[Panels, ...]]:
    """[R₁; B] = Q̃ [R̃; 0]: R̃ᵀ and Q̃, of R₁ᵀ and Bᵀ, R₁ upper triangular.

    `triangular`: whether B is, too. Rows of the transposes past the n-th are further
    columns, to which Q̃ᴴ is applied.

    The reflector of column j touches row j of the top and the rows of B: the first j,
    if triangular. Columns are taken in panels: a panel is factorised by `geqrf`, the
    columns to its right are updated by I − V Tᴴ Vᴴ, in matrix products. All is written
    for transposed matrices, so that the panels are contiguous and LAPACK needs no
    copies.
    """
    n = rt.shape[1]
    panels, columns, rows = [], [rt[:, :0]], bt[:, :0] if triangular else bt
    for start in range(0, n, block):
        stop = min(start + block, n)
        w = stop - start
        if triangular:
            rows = jnp.concatenate([rows, bt[start:, start:stop]], axis=1)
        stack = jnp.concatenate([rt[start:stop, start:stop], rows[:w]], axis=1)
        householder, taus = householder_qr(stack.T)
        v2t = householder[w:].T
        t = compact_wy(v2t, taus)
        panels.append(Panels(v2t[None], t[None], (start,), (0,)))

        above = jnp.zeros((start, w), rt.dtype)
        finished = jnp.tril(householder[:w].T)
        # (With the rows of the panel, rather than copying all others for the product.)
        y = rt[stop:, start:stop] + matmul(rows, jnp.conj(v2t.T))[w:]
        y = matmul(y, jnp.conj(t))
        upper = rt[stop:, start:stop] - y
        columns.append(jnp.concatenate([above, finished, upper], axis=0))
        rows = rows[w:] - matmul(y, v2t)
    return jnp.concatenate(columns, axis=1), tuple(panels)


# Outside of anyone's `jit`, the panels would be compiled one operation at a time.
@jax.jit
def triangular_stack_qr(
    top: Inexact[Array, "n n"], bottom: Inexact[Array, "n n"]
) -> TriangularStackQR:
    """Householder QR of [R₁; R₂], both upper triangular: Q̃ [R̃; 0].

    2n³/3 flops, where a dense QR takes 10n³/3. Only the upper triangles are read.
    Larger rows belong on top: the rounding errors in a row are relative to it only if
    no larger ones come below.

    Source: the structure of LAPACK's `tpqrt` with l = n, in the compact WY form of
    Schreiber, Van Loan, *A Storage-Efficient WY Representation for Products of
    Householder Transformations*, SIAM J. Sci. Stat. Comput. 10 (1989),
    doi:10.1137/0910005. For the order of the rows: Cox, Higham, *Stability of
    Householder QR Factorization for Weighted Least Squares Problems*, Numerical
    Analysis 1997 (1998).
    """
    rt, bt = jnp.tril(top.T), jnp.tril(bottom.T)
    if _is_looped(top.shape[0]):
        return TriangularStackQR(*_looped(rt, bt, top.shape[0], keep=True))
    block = _block_size(top.shape[0], top.dtype)
    return TriangularStackQR(*_stack_qr(rt, bt, block, triangular=True))


def _looped(rt: Array, bt: Array, n: int, *, keep: bool = False):
    width = block if n <= _most_by_height else wide_block
    most = _largest_panel(rt.dtype)
    return add_triangle(rt, bt, n, width, most, by_height=width == block, keep=keep)


def condense(
    matrix: Inexact[Array, "m n"],
    vector: Inexact[Array, " m"],
    *,
    triangle: bool = True,
) -> tuple[Inexact[Array, "n k"], Inexact[Array, " k"]]:
    """Sᵀ and c with ‖A x − b‖² = ‖S x − c‖² + constant, for m ≥ n.

    S = R and c = Qᴴ b of A = Q R, in 2m n² flops and without Q. If `triangle` is false,
    what `is_small` is not made smaller: A and b themselves.

    On a CPU, if m ≥ 2n and n ≤ 256, some rows are taken at a time and put under the
    triangle of those before: [R; rows] = Q̃ [R̃; 0]. That stays in the cache, does most
    of the work in XLA's matrix products, and leaves LAPACK panels that are too small
    for its threads; from n = 64 on in `looped_qr`. Where n ≤ 16 there is little for
    products to do, and LAPACK takes all of a chunk at once; where n ≤ 4, few rows and
    those of a batch go through `gram_schmidt`.

    Source: Demmel, Grigori, Hoemmen, Langou, *Communication-optimal Parallel and
    Sequential QR and LU Factorizations*, SIAM J. Sci. Comput. 34 (2012),
    doi:10.1137/080731992, the sequential QR (a flat tree).
    """
    m, n = matrix.shape
    if not triangle and is_small(m, n):
        return matrix.T, vector
    # [A b] = Q [R c; 0 ·] has c = Qᴴ b, without an application of Q.
    columns = jnp.concatenate([matrix.T, vector[None]])
    if 0 < n <= _unrolled:
        rc: Any = _few_columns(columns)
        return rc[:, :n].T, rc[:, n]
    return _by_householder(columns)


def _by_householder(
    columns: Inexact[Array, "n_plus_1 m"],
) -> tuple[Inexact[Array, "n n"], Inexact[Array, " n"]]:
    """`condense` by LAPACK, of [A b]ᵀ."""
    n, m = columns.shape[0] - 1, columns.shape[1]
    limit = _largest_panel(columns.dtype)
    whole = columns.size <= limit or m < 2 * n or n == 0 or n > _most_columns
    if whole or jax.default_backend() != "cpu":
        rt: Any = _triangle_of(columns)
    elif n <= block:
        rt = _long_columns(columns)
    else:
        # Not under a triangle of zeros: where the first rows are large, as weights can
        # make them, the small ones on top would cost their digits.
        if is_long(m, n):
            columns = padded(columns)
            add = lambda rt, rows: add_rows(rt, rows, n)
            first = triangle_of(columns[:, :n], n)
        else:
            add = lambda rt, rows: _stack_qr(rt, rows, block, triangular=False)[0]
            first = _triangle_of(columns[:, :n])
        rt = _add_chunks(first, columns[:, n:], limit // block - block, add)
    return rt[:n, :n], rt[n, :n]


def _add_chunks(rt: Array, columns: Array, most: int, add: Any) -> Array:
    m = columns.shape[1]
    count = -(-m // most)
    size = -(-m // count)
    columns = jnp.pad(columns, ((0, 0), (0, count * size - m)))
    rows = lambda i: lax.dynamic_slice_in_dim(columns, i * size, size, axis=1)
    return lax.fori_loop(0, count, lambda i, rt: add(rt, rows(i)), rt)


def _chunk_by_chunk(columns: Inexact[Array, "k m"]):
    """Rᵀ of a few of them."""
    k, m = columns.shape
    most = _largest_panel(columns.dtype) // k - k
    start = -(-m // -(-m // most))
    add = lambda rt, rows: _triangle_of(jnp.concatenate([rt, rows], axis=1))
    return _add_chunks(_triangle_of(columns[:, :start]), columns[:, start:], most, add)


_long_columns = jax.custom_batching.custom_vmap(_chunk_by_chunk)


@_long_columns.def_vmap
def _(axis_size, in_batched, columns):
    del axis_size, in_batched
    # A batch of LAPACK's waits for threads, and a collective could, too.
    if jax.device_count() > 1:
        return jax.vmap(_chunk_by_chunk)(columns), True
    # The chunks of all lanes at once, and the stacks of their triangles.
    lanes, k, m = columns.shape
    limit = _largest_panel(columns.dtype)
    count = -(-k * m // limit)
    size = -(-m // count)
    columns = jnp.pad(columns, ((0, 0), (0, 0), (0, count * size - m)))
    blocks = jnp.moveaxis(columns.reshape(lanes, k, count, size), 2, 1)
    householder, _ = householder_qr(blocks.mT)
    stacks = jnp.triu(householder[:, :, :k]).reshape(lanes, count * k, k).mT
    by = _triangle_of if count * k**2 <= limit else _long_columns
    return jax.vmap(by)(stacks), True


def _triangle_of(columns: Inexact[Array, "k m"]) -> Inexact[Array, "k r"]:
    """Rᵀ, in one call."""
    householder, _ = householder_qr(columns.T)
    return jnp.tril(householder[: columns.shape[0]].T)


def solve_condensed(
    st: Inexact[Array, "n k"],
    c: Inexact[Array, " k"],
    root: Float[Array, ""],
    *,
    looped: bool = False,
) -> Inexact[Array, " n"]:
    """argmin ‖S x − c‖² + ‖√λ x‖², of what `condense` returns.

    `looped`: for what `is_long`; compiled faster, and slower by half.
    """
    n, k = st.shape
    if n == 0:
        return jnp.zeros_like(c, shape=(0,))
    largest = jnp.max(jnp.abs(st))
    st = jnp.concatenate([st, c[None]])
    eye = jnp.eye(n + 1, n, dtype=st.dtype)
    if n <= _unrolled:
        # Of size one, for the squares of small and of large entries.
        size = jnp.maximum(largest, root)
        size = jnp.where(size > 0, size, 1).astype(st.dtype)
        by = jnp.concatenate([jnp.full((n, 1), size), jnp.ones((1, 1), st.dtype)])
        stack = jnp.concatenate([st, root.astype(st.dtype) * eye], axis=1)
        rows = [products[1:] / products[0] for products in products_of(stack / by)]
        return back_substitution(rows) / size
    # As in `triangular_stack_qr`: the larger rows on top.
    swapped = root > largest
    root_eye = root.astype(st.dtype) * eye
    if n <= _dense:
        three = jnp.concatenate([root_eye, st, root_eye], axis=1)
        start = jnp.where(swapped, 0, n)
        stack = lax.dynamic_slice_in_dim(three, start, n + k, axis=1)
        householder, _ = householder_qr(stack.T)
        return solve_upper(householder[:n, :n], householder[:n, n])
    top, bottom = jnp.where(swapped, root_eye, st), jnp.where(swapped, st, root_eye)
    if looped:
        rt, _ = add_triangle(top, bottom, n, block, _largest_panel(st.dtype))
    elif _is_looped(n):
        rt, _ = _looped(top, bottom, n)
    else:
        rt, _ = _stack_qr(top, bottom, _block_size(n, st.dtype), triangular=True)
    return solve_upper(rt[:n].T, rt[n])


@jax.custom_batching.custom_vmap
def _few_columns(columns: Inexact[Array, "n_plus_1 m"]):
    """As `gram_schmidt`, of any length."""
    if columns.shape[1] <= _most_rows:
        by = gram_schmidt if is_sequential(columns) else gram_schmidt_by_columns
        return by(columns)
    st, c = _by_householder(columns)
    return jnp.concatenate([st.T, c[:, None]], axis=1)


@_few_columns.def_vmap
def _(axis_size, in_batched, columns):
    del axis_size, in_batched
    return jax.vmap(gram_schmidt_by_columns)(columns), True
