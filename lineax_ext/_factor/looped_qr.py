"""QR of rows under a triangle, panel by panel, in loops: compiled once for all panels.

All is for transposed matrices, of k columns, a multiple of `block`: columns of zeros
fill them. A column past the last panel is a right-hand side: Qᴴ is applied to it.

A panel of columns is factorised by LAPACK, and the columns to its right are updated by
I − V Tᴴ Vᴴ, in matrix products, `block` of them at a time: no product is larger than
it has to be, though all have one shape. Written out, with products of their own shapes,
the same runs up to a tenth faster, and compiles three times longer at 200 columns.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact

from .householder import compact_wy, householder_qr
from .product import matmul


# The fastest of 8, 16, 24 and 32; and for triangles of more than 350 columns, which no
# longer lie in the cache.
block = 16
wide_block = 32


def padded(columns: Inexact[Array, "c m"], block: int = block) -> Inexact[Array, "k m"]:
    missing = -columns.shape[0] % block
    return jnp.pad(columns, ((0, missing), (0, 0)))


def _slice(x: Array, at: tuple[Any, Any], shape: tuple[int, int]) -> Array:
    return lax.dynamic_slice(x, at, shape, allow_negative_indices=False)


def _put(x: Array, part: Array, at: tuple[Any, Any]) -> Array:
    return lax.dynamic_update_slice(x, part, at, allow_negative_indices=False)


def _lower(x: Array) -> Array:
    return jnp.where(np.tri(*x.shape, dtype=bool), x, 0)


def _panels(
    first: Any, n: int, k: int, block: int, factorise: Callable, carry: Any
) -> Any:
    """Those of n columns, from `first` on.

    `factorise(start, carry)` returns what finishes the panel, and what updates a block
    of columns: functions of the carry, and of the start of the block and the carry.
    """

    def panel(i, carry):
        finish, update = factorise(i * block, carry)
        each = lambda j, carry: update(j * block, carry)
        return finish(lax.fori_loop(i + 1, k // block, each, carry))

    return lax.fori_loop(first, -(-n // block), panel, carry)


def triangle_of(columns: Inexact[Array, "k m"], n: int) -> Inexact[Array, "k k"]:
    """R̃ᵀ of A = Q R̃, for m ≤ k rows, of which n columns are factorised."""
    k, m = columns.shape
    eye = np.eye(block, m, dtype=columns.dtype)
    above = np.triu(np.ones((block, m), bool), 1)
    # Rows of zeros: below a panel, all have the same number.
    at = jnp.pad(columns, ((0, 0), (0, k)))

    def factorise(start, at):
        rows = _slice(at, (start, start), (block, m))
        householder, taus = householder_qr(rows.T)
        vt = jnp.where(above, householder.T, eye)
        t = compact_wy(vt, taus)

        def finish(at):
            r = _lower(householder[:block].T)
            return _put(at, jnp.pad(r, ((0, 0), (0, m - block))), (start, start))

        def update(column, at):
            rows = _slice(at, (column, start), (block, m))
            y = matmul(matmul(rows, jnp.conj(vt.T)), jnp.conj(t))
            return _put(at, rows - matmul(y, vt), (column, start))

        return finish, update

    return _panels(0, n, k, block, factorise, at)[:, :k]


def add_rows(
    rt: Inexact[Array, "k k"], rows: Inexact[Array, "k e"], n: int
) -> Inexact[Array, "k k"]:
    """R̃ᵀ of [R; B] = Q [R̃; 0]."""
    return _add_rows(rt, rows, n, block)[0]


def _add_rows(
    rt: Array,
    rows: Array,
    n: int,
    block: int,
    first: Any = 0,
    factors: tuple[Array, ...] = (),
):
    """For B without entries before panel `first`; and Q, put into `factors`.

    These are V₂ᵀ, k×e, and T, k×block, each panel at its rows; or none.
    """
    e = rows.shape[1]

    def factorise(start, carry):
        rt, rows, _ = carry
        corner, below = (block, block), (block, e)
        on_top = _slice(rt, (start, start), corner)
        stack = jnp.concatenate([on_top, _slice(rows, (start, 0), below)], axis=1)
        householder, taus = householder_qr(stack.T)
        v2t = householder[block:].T
        t = compact_wy(v2t, taus)

        def finish(carry):
            rt, rows, factors = carry
            factors = tuple(_put(x, y, (start, 0)) for x, y in zip(factors, (v2t, t)))
            return (
                _put(rt, _lower(householder[:block].T), (start, start)),
                rows,
                factors,
            )

        def update(column, carry):
            rt, rows, factors = carry
            top = _slice(rt, (column, start), corner)
            bottom = _slice(rows, (column, 0), below)
            y = matmul(top + matmul(bottom, jnp.conj(v2t.T)), jnp.conj(t))
            return (
                _put(rt, top - y, (column, start)),
                _put(rows, bottom - matmul(y, v2t), (column, 0)),
                factors,
            )

        return finish, update

    carry = rt, rows, factors
    rt, _, factors = _panels(first, n, rt.shape[0], block, factorise, carry)
    return rt, factors


def add_triangle(
    rt: Inexact[Array, "k k"],
    bt: Inexact[Array, "k k"],
    n: int,
    block: int,
    most: int,
    *,
    keep: bool = False,
) -> tuple[Inexact[Array, "k k"], tuple[Array, ...]]:
    """As `add_rows`, for B upper triangular, which spares up to half of the work.

    And the factors of each chunk of rows, if `keep`. A panel has up to `most` entries.
    """
    k = rt.shape[0]
    # Of as many panels. More spare less, fewer are more panels.
    chunk = min(7, most // block**2 - 1)
    chunk = -(-k // (-(-k // (block * chunk)) * block))
    size = chunk * block
    count = -(-k // size)
    bt = jnp.pad(bt, ((0, 0), (0, count * size - k)))

    def add(rt, i):
        rows = lax.dynamic_slice_in_dim(bt, i * size, size, axis=1)
        widths = (size, block) if keep else ()
        factors = tuple(jnp.zeros((k, width), rt.dtype) for width in widths)
        return _add_rows(rt, rows, n, block, i * chunk, factors)

    return lax.scan(add, rt, jnp.arange(count))


class LoopedStackQR(eqx.Module):
    """The factors of [R₁; R₂], chunk by chunk of R₂; for use as `TriangularStackQR`."""

    rt: Inexact[Array, "n n"]
    v2t: Inexact[Array, "c k e"]
    t: Inexact[Array, "c k w"]

    def q_adjoint_multiply(self, top: Array, bottom: Array) -> tuple[Array, Array]:
        return self._apply(top, bottom, adjoint=True)

    def q_multiply(self, top: Array, bottom: Array) -> tuple[Array, Array]:
        return self._apply(top, bottom, adjoint=False)

    def _apply(self, top: Array, bottom: Array, *, adjoint: bool):
        n = top.size
        count, k, size = self.v2t.shape
        block = self.t.shape[-1]
        panels, chunk = -(-n // block), size // block
        top = jnp.pad(top, (0, k - n))
        bottom = jnp.pad(bottom, (0, count * size - n)).reshape(count, size)

        def through_chunk(top, chunk_of):
            i, v2t, t, bottom = chunk_of

            def through_panel(j, pair):
                top, bottom = pair
                start = (j if adjoint else panels - 1 - j + i * chunk) * block
                v = lax.dynamic_slice_in_dim(v2t, start, block)
                ti = lax.dynamic_slice_in_dim(t, start, block)
                x = lax.dynamic_slice_in_dim(top, start, block)
                y = matmul(
                    jnp.conj(ti.T) if adjoint else ti, x + matmul(jnp.conj(v), bottom)
                )
                top = lax.dynamic_update_slice_in_dim(top, x - y, start, axis=0)
                return top, bottom - matmul(v.T, y)

            return lax.fori_loop(i * chunk, panels, through_panel, (top, bottom))

        chunks = jnp.arange(count), self.v2t, self.t, bottom
        top, bottom = lax.scan(through_chunk, top, chunks, reverse=not adjoint)
        return top[:n], bottom.reshape(-1)[:n]


def triangle_on_triangle(
    rt: Inexact[Array, "n n"], bt: Inexact[Array, "n n"], block: int, most: int
) -> LoopedStackQR:
    """[R₁; R₂] = Q̃ [R̃; 0], of R₁ᵀ and R₂ᵀ; the rest as for `add_triangle`."""
    n = rt.shape[0]
    fill = lambda x: jnp.pad(x, (0, -n % block))
    rt, factors = add_triangle(fill(rt), fill(bt), n, block, most, keep=True)
    return LoopedStackQR(rt[:n, :n], *factors)
