"""Powers of two that make rows and columns of one size."""

from collections.abc import Callable

import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, Real

from ..._structure.pattern import Pattern
from .entries import greatest


def equilibrated(
    pattern: Pattern,
    values: Inexact[Array, " entries"],
    symmetric: bool,
    reduced: Callable[[int, Real[Array, " entries"], Callable], Real[Array, " n"]],
) -> tuple[
    Inexact[Array, " entries"],
    Real[Array, " n"],
    Real[Array, " n"],
    tuple[Real[Array, ""], Real[Array, ""]],
]:
    """The scaled values, scales of rows and of columns, and ‖A‖ and ‖Aᵀ‖, scaled, in
    the maximum norm.

    `reduced(axis, x, how)` is `how`, `jnp.sum` or `jnp.max` of non-negative numbers,
    over the entries of each row (axis 0) or column (1).
    """
    row_scale, col_scale = _scales(pattern, values, symmetric, reduced)
    at = lambda x, index: x.at[index].get(mode="promise_in_bounds")
    scale = at(row_scale, pattern.rows) * at(col_scale, pattern.cols)
    scaled = values * scale.astype(values.dtype)
    by_row, by_col = (
        greatest(reduced(axis, jnp.abs(scaled), jnp.sum)) for axis in (0, 1)
    )
    return scaled, row_scale, col_scale, (by_row, by_col)


def _scales(
    pattern: Pattern, values: Array, symmetric: bool, reduced: Callable
) -> tuple[Array, Array]:
    """Powers of two, by which the largest entry of each row and column becomes about
    one.

    Curtis, Reid: On the automatic scaling of matrices for Gaussian elimination. IMA
    Journal of Applied Mathematics 10, 1972, doi:10.1093/imamat/10.1.118
    """
    n = pattern.shape[0]
    magnitude = jnp.abs(values)
    if len(pattern) == 0:
        return jnp.ones((n,), magnitude.dtype), jnp.ones((n,), magnitude.dtype)
    if symmetric:
        # That of the diagonal: what is left of a positive definite matrix is below one.
        on = pattern.rows == pattern.cols
        diagonal = jnp.zeros((n,), magnitude.dtype)
        at = np.flatnonzero(on)
        diagonal = diagonal.at[pattern.rows[at]].set(magnitude[at], unique_indices=True)
        scale = _power_of_two(jnp.sqrt(diagonal))
        return scale, scale
    there = (magnitude > 0) & jnp.isfinite(magnitude)
    largest = jnp.max(jnp.where(there, magnitude, 0))
    smallest = jnp.min(jnp.where(there, magnitude, jnp.inf))
    magnitude = jnp.where(there, magnitude, 0)
    # Sixteen bits between the largest and the smallest are left as they are: half of
    # the time, where n is small.
    return lax.cond(
        largest * 2.0**-16 > smallest,
        lambda x: _by_logarithms(pattern, x, reduced),
        lambda x: _by_magnitudes(pattern, x, reduced),
        magnitude,
    )


def _by_magnitudes(
    pattern: Pattern, magnitude: Array, reduced: Callable
) -> tuple[Array, Array]:
    """Of rows, and then of columns."""
    row = _power_of_two(reduced(0, magnitude, jnp.max))
    inside = magnitude * row.at[pattern.rows].get(mode="promise_in_bounds")
    return row, _power_of_two(reduced(1, inside, jnp.max))


def _by_logarithms(
    pattern: Pattern, magnitude: Array, reduced: Callable
) -> tuple[Array, Array]:
    """Rows and columns take turns to have logarithms of mean zero, until it changes no
    more: then the two of them are told apart, however far they are from one."""
    n = pattern.shape[0]
    there = magnitude > 0
    logs = jnp.log2(jnp.where(there, magnitude, 1))
    there = there.astype(logs.dtype)
    row_count, col_count = (
        np.maximum(np.bincount(index, minlength=n), 1)
        for index in (pattern.rows, pattern.cols)
    )
    row_count, col_count = (jnp.asarray(x, logs.dtype) for x in (row_count, col_count))

    def sweep(state):
        _, before, _, count = state
        inside = (logs - before[pattern.cols]) * there
        row = reduced(0, inside, jnp.sum) / row_count
        inside = (logs - row[pattern.rows]) * there
        col = reduced(1, inside, jnp.sum) / col_count
        return row, col, jnp.max(jnp.abs(col - before)), count + 1

    zeros, infinite = jnp.zeros((n,), logs.dtype), jnp.asarray(jnp.inf, logs.dtype)
    row, col, _, _ = lax.while_loop(
        lambda state: (state[2] > 4) & (state[3] < 20),
        sweep,
        (zeros, zeros, infinite, jnp.int32(0)),
    )
    # And at last, the largest entry of each is about one.
    logs = jnp.where(there > 0, logs, -jnp.inf)
    row = _largest(0, logs - col[pattern.cols], reduced)
    col = _largest(1, logs - row[pattern.rows], reduced)
    return jnp.exp2(-row), jnp.exp2(-col)


def _largest(axis: int, logs: Array, reduced: Callable) -> Array:
    """The largest of each row or column, rounded; 0 where there is none."""
    low = jnp.asarray(-1e4, logs.dtype)
    # `reduced` pads by zeros.
    out = reduced(axis, jnp.maximum(logs - low, 0), jnp.max)
    return jnp.where(out > 0, jnp.round(out + low), 0)


def _power_of_two(x: Array) -> Array:
    """A power of two next to 1 / x, from its bits; 1 where there is none."""
    usable = (x > 0) & jnp.isfinite(x)
    info = jnp.finfo(x.dtype)
    kind = jnp.int32 if info.bits == 32 else jnp.int64
    bits = lax.bitcast_convert_type(jnp.where(usable, x, 1), kind)
    exponent = (bits + (1 << (info.nmant - 1))) >> info.nmant
    # That of one is `info.maxexp - 1`; those of a number are from 1 to twice that.
    bias = info.maxexp - 1
    inverse = jnp.clip(2 * bias - exponent, 1, 2 * bias)
    return lax.bitcast_convert_type(inverse << info.nmant, x.dtype)
