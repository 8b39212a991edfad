"""A band cut into the blocks of a block-tridiagonal matrix."""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Inexact


class Blocks(NamedTuple):
    """The blocks of a block-tridiagonal matrix."""

    diagonal: Inexact[Array, "N k k"]
    lower_diagonal: Inexact[Array, "N-1 k k"]
    upper_diagonal: Inexact[Array, "N-1 k k"]


def block_size(half_bandwidth: int) -> int:
    """The size of the blocks into which to cut a band with so many diagonals a side.

    No larger than it must be, but for those sizes that are slower than the next power
    of two. At n = 4000, milliseconds for `block_lu` and for one solve after it:

    k  1: 0.20, 0.16    4: 1.55, 0.09     8: 1.72, 0.15
       2: 1.75, 0.10    5: 1.66, 0.19    10: 2.2, 0.16
       3: 1.65, 0.13    6: 1.80, 0.19    12: 2.7, 0.16
                        7: 2.15, 0.18    16: 3.5, 0.16

    Fifty solves under `vmap` take 2.8 at k = 8, 3.5 at k = 4, 4.4 at k = 2.
    """
    if 2 <= half_bandwidth <= 8:
        return 4 if half_bandwidth <= 4 else 8
    return max(1, half_bandwidth)


def pack_band(band: Mapping[int, Inexact[Array, " length"]], n: int, k: int) -> Blocks:
    """The n×n matrix with the diagonals `band`, in blocks of size k.

    Rows and columns of the identity are added at the end until k divides their number.

    **Arguments:**

    - `band`: from the offset j − i to the entries in order of growing i, as returned by
        `read_band`. Diagonals may be missing; they are zero.
    - `n`: the size of the matrix.
    - `k`: the size of the blocks, no less than any |j − i|.
    """
    lower, upper = max([0, *(-d for d in band)]), max([0, *band])
    if k < max(lower, upper, 1):
        raise ValueError(
            f"A band of the diagonals {-lower} to {upper} does not fit into blocks of "
            f"size {k}."
        )
    count = -(-n // k)
    dtype = jnp.result_type(*band.values())

    def column(d):  # of the band stored by rows, in which diagonal d begins at −d
        before = max(0, -d)
        entries = band.get(d, jnp.zeros((max(0, n - abs(d)),), dtype))
        entries = jnp.pad(entries, (before, n - before - entries.size))
        return jnp.pad(entries, (0, count * k - n), constant_values=float(d == 0))

    rows = jnp.stack([column(d) for d in range(-lower, upper + 1)], axis=1)
    rows = rows.reshape(count, k, lower + upper + 1)
    # Row i of a block begins i columns further to the right than the first. Padding
    # the rows to one more than 3k, and cutting the memory at 3k, moves them there.
    before = k - lower
    rows = jnp.pad(rows, ((0, 0), (0, 0), (before, 2 * k - upper)))
    rows = rows.reshape(count, -1)[:, : 3 * k * k].reshape(count, k, 3 * k)
    left, middle, right = rows[..., :k], rows[..., k : 2 * k], rows[..., 2 * k :]
    return Blocks(middle, left[1:], right[:-1])
