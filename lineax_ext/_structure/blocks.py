"""A narrow band cut into the blocks of a block-tridiagonal matrix.

Both directions are one trick: rows of a band that are stored one under the other, each
from its first entry on, are moved to the right, each by one more than the row above.
Padding the rows and cutting the memory at another width does it, without a scatter.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact


class Blocks(NamedTuple):
    """The blocks of a block-tridiagonal matrix."""

    diagonal: Inexact[Array, "N k k"]
    lower_diagonal: Inexact[Array, "N-1 k k"]
    upper_diagonal: Inexact[Array, "N-1 k k"]


def block_size(half_bandwidth: int) -> int:
    """The size of blocks for which a band is factorised and solved fastest."""
    return max(8, half_bandwidth)


def pack_band(band: Mapping[int, Inexact[Array, " length"]], n: int, k: int) -> Blocks:
    """The n×n matrix with the diagonals `band`, in blocks of size k.

    Rows and columns of the identity are added at the end, until k divides their number.

    **Arguments:**

    - `band`: from the offset j − i to the entries in order of growing i, as returned by
        `read_band`. Offsets may be missing: these diagonals are zero.
    - `n`: the size of the matrix.
    - `k`: the size of the blocks, no less than any |j − i|.
    """
    lower, upper = max([0, *(-d for d in band)]), max([0, *band])
    if k < max(lower, upper, 1):
        raise ValueError(
            f"A band from {-lower} to {upper} does not fit into blocks of {k}."
        )
    count = -(-n // k)
    padding = count * k - n
    dtype = jnp.result_type(*band.values())
    columns = []
    for d in range(-lower, upper + 1):
        if d in band:
            # Aligned by row, the diagonal begins in row max(0, −d).
            before = max(0, -d)
            column = jnp.pad(band[d], (before, n - before - band[d].size))
        else:
            column = jnp.zeros((n,), dtype)
        columns.append(jnp.pad(column, (0, padding), constant_values=float(d == 0)))
    rows = jnp.stack(columns, axis=-1).reshape(count, k, lower + upper + 1)
    rows = jnp.pad(rows, ((0, 0), (0, 0), (k - lower, 0)))
    return _cut(_skew(rows, 1, 3 * k), k)


def band_of_entries(
    rows: np.ndarray, columns: np.ndarray, values: Inexact[Array, " count"], n: int
) -> dict[int, Inexact[Array, " length"]]:
    """The diagonals of an n×n matrix given by its entries, for `pack_band`.

    **Arguments:**

    - `rows`, `columns`: where the entries are; known at trace time.
    - `values`: the entries. What stands at the same place is added up.
    """
    offsets = columns - rows
    lower, upper = max(0, -offsets.min(initial=0)), max(0, offsets.max(initial=0))
    width = lower + upper + 1
    table = jnp.zeros((n * width,), values.dtype)
    table = table.at[rows * width + offsets + lower].add(values).reshape(n, width)
    return {
        d: table[max(0, -d) : n - max(0, d), d + lower]
        for d in range(-lower, upper + 1)
    }


def merge(blocks: Blocks, factor: int) -> Blocks:
    """The same matrix in blocks `factor` times as large, padded with the identity."""
    if factor == 1:
        return blocks
    diagonal, lower, upper = blocks
    count, k, _ = diagonal.shape
    merged = -(-count // factor)
    padding = merged * factor - count
    eye = jnp.broadcast_to(jnp.eye(k, dtype=diagonal.dtype), (padding, k, k))
    zeros = lambda number: jnp.zeros((number, k, k), diagonal.dtype)
    rows = jnp.concatenate(
        [
            jnp.concatenate([zeros(1), lower, zeros(padding)]),
            jnp.concatenate([diagonal, eye]),
            jnp.concatenate([upper, zeros(padding + 1)]),
        ],
        axis=2,
    ).reshape(merged, factor, k, 3 * k)
    rows = _skew(rows.swapaxes(1, 2), k, (factor + 2) * k).swapaxes(1, 2)
    rows = rows.reshape(merged, factor * k, (factor + 2) * k)
    aside = (factor - 1) * k
    return _cut(jnp.pad(rows, ((0, 0), (0, 0), (aside, aside))), factor * k)


def _skew(x: Array, stride: int, width: int) -> Array:
    """Moves row i of (..., rows, w) to the right by i·stride, in `width` columns."""
    *lead, rows, w = x.shape
    x = jnp.pad(x, [(0, 0)] * (len(lead) + 1) + [(0, width + stride - w)])
    x = x.reshape(*lead, rows * (width + stride))
    return x[..., : rows * width].reshape(*lead, rows, width)


def _cut(rows: Inexact[Array, "N k 3*k"], k: int) -> Blocks:
    lower, diagonal, upper = rows[..., :k], rows[..., k : 2 * k], rows[..., 2 * k :]
    return Blocks(diagonal, lower[1:], upper[:-1])
