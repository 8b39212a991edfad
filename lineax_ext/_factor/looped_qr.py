"""QR of rows under a triangle, panel by panel, in loops: compiled once for all panels.

All is for transposed matrices. A column past the last panel is a right-hand side: Qᴴ is
applied to it.

A panel of columns is factorised by LAPACK, and the columns to its right are updated by
I − V Tᴴ Vᴴ, in matrix products, some of them at a time: no product is much larger than
it has to be, though all have one shape.
"""

from typing import Any, NamedTuple

import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact

from .householder import compact_wy, householder_qr
from .panels import Panels
from .product import matmul


# The fastest of 8, 16, 24 and 32; and for triangles of more than 350 columns, which no
# longer lie in the cache.
block = 16
wide_block = 24


def padded(columns: Inexact[Array, "c m"]) -> Inexact[Array, "k m"]:
    missing = -columns.shape[0] % block
    return jnp.pad(columns, ((0, missing), (0, 0)))


def _slice(x: Array, at: tuple[Any, Any], shape: tuple[int, int]) -> Array:
    return lax.dynamic_slice(x, at, shape, allow_negative_indices=False)


def _put(x: Array, part: Array, at: tuple[Any, Any]) -> Array:
    return lax.dynamic_update_slice(x, part, at, allow_negative_indices=False)


def _lower(x: Array) -> Array:
    return jnp.where(np.tri(*x.shape, dtype=bool), x, 0)


def triangle_of(columns: Inexact[Array, "k m"], n: int) -> Inexact[Array, "k k"]:
    """R̃ᵀ of A = Q R̃, for m ≤ k rows, of which n columns are factorised.

    k is a multiple of `block`.
    """
    k, m = columns.shape
    eye = np.eye(block, m, dtype=columns.dtype)
    above = np.triu(np.ones((block, m), bool), 1)
    # Rows of zeros: below a panel, all have the same number.
    at = jnp.pad(columns, ((0, 0), (0, k)))

    def panel(i, at):
        start = i * block
        rows = _slice(at, (start, start), (block, m))
        householder, taus = householder_qr(rows.T)
        vt = jnp.where(above, householder.T, eye)
        t = compact_wy(vt, taus)

        def update(j, at):
            column = j * block
            rows = _slice(at, (column, start), (block, m))
            y = matmul(matmul(rows, jnp.conj(vt.T)), jnp.conj(t))
            return _put(at, rows - matmul(y, vt), (column, start))

        at = lax.fori_loop(i + 1, k // block, update, at)
        r = _lower(householder[:block].T)
        return _put(at, jnp.pad(r, ((0, 0), (0, m - block))), (start, start))

    return lax.fori_loop(0, -(-n // block), panel, at)[:, :k]


class _Loop(NamedTuple):
    """Panels of one shape, from column `start[i]` on, on `rows` from `below[i]` on."""

    rows: int
    start: np.ndarray
    below: np.ndarray


def _eliminate(
    rt: Inexact[Array, "c r"],
    bt: Inexact[Array, "c e"],
    loops: list[_Loop],
    block: int,
    width: int,
    *,
    keep: bool = False,
) -> tuple[Inexact[Array, "c r"], tuple[Panels, ...]]:
    """R̃ᵀ of [R; B] = Q [R̃; 0], `width` columns at a time; and Q, if `keep`."""
    c, r = rt.shape
    columns = -(-c // block) * block + width - block
    upper = max(loop.start[-1] for loop in loops) + block
    lower = max(loop.below[-1] + loop.rows for loop in loops)
    fill = lambda x, rows: jnp.pad(
        x, ((0, columns - c), (0, max(rows - x.shape[1], 0)))
    )
    carry, kept = (fill(rt, upper), fill(bt, lower)), []
    for loop in loops:

        def panel(carry, at, rows=loop.rows):
            rt, bt = carry
            start, below = at
            stack = jnp.concatenate(
                [
                    _slice(rt, (start, start), (block, block)),
                    _slice(bt, (start, below), (block, rows)),
                ],
                axis=1,
            )
            householder, taus = householder_qr(stack.T)
            v2t = householder[block:].T
            t = compact_wy(v2t, taus)

            def update(j, carry):
                rt, bt = carry
                column = start + block + j * width
                top = _slice(rt, (column, start), (width, block))
                bottom = _slice(bt, (column, below), (width, rows))
                y = matmul(top + matmul(bottom, jnp.conj(v2t.T)), jnp.conj(t))
                return (
                    _put(rt, top - y, (column, start)),
                    _put(bt, bottom - matmul(y, v2t), (column, below)),
                )

            count = lax.div(c - start - block + width - 1, width)
            rt, bt = lax.fori_loop(0, count, update, (rt, bt))
            rt = _put(rt, _lower(householder[:block].T), (start, start))
            return (rt, bt), (v2t, t) if keep else None

        carry, factors = lax.scan(panel, carry, (loop.start, loop.below))
        if factors is not None:
            v2t, t = factors
            start, below = loop.start.tolist(), loop.below.tolist()
            kept.append(Panels(v2t, t, tuple(start), tuple(below)))
    return carry[0][:c, :r], tuple(kept)


def add_rows(
    rt: Inexact[Array, "k k"], rows: Inexact[Array, "k e"], n: int
) -> Inexact[Array, "k k"]:
    """R̃ᵀ of [R; B] = Q [R̃; 0]."""
    start = np.arange(0, n, block)
    loops = [_Loop(rows.shape[1], start, np.zeros_like(start))]
    return _eliminate(rt, rows, loops, block, block)[0]


def add_triangle(
    rt: Inexact[Array, "c r"],
    bt: Inexact[Array, "c r"],
    n: int,
    block: int,
    most: int,
    *,
    by_height: bool = False,
    keep: bool = False,
) -> tuple[Inexact[Array, "c r"], tuple[Panels, ...]]:
    """As `add_rows`, for B upper triangular, which spares up to half of the work.

    A panel has up to `most` entries. `by_height`, if that permits: with all of its rows
    in one panel, in up to three loops over those of like height. Otherwise chunk by
    chunk of rows, in one loop, which spares 0.2 s of compiling for each of the others,
    and takes up to a quarter longer for n = 300.
    """
    panels = -(-n // block)
    start = np.arange(panels) * block
    if by_height and (panels + 1) * block**2 <= most:
        parts = np.array_split(start, min(-(-panels // 6), 3))
        loops = [_Loop(int(x[-1]) + block, x, np.zeros_like(x)) for x in parts]
    else:
        # As many panels high. Less spares more, and is more panels.
        chunk = min(8 if block > 16 else 7, most // block**2 - 1)
        rows = -(-panels // -(-panels // chunk)) * block
        below, start = (
            x.reshape(-1)
            for x in np.meshgrid(np.arange(0, n, rows), start, indexing="ij")
        )
        keeps = start >= below
        loops = [_Loop(rows, start[keeps], below[keeps])]
    # Two panels' columns at a time: fewer calls, and little waste.
    return _eliminate(rt, bt, loops, block, 2 * block, keep=keep)
