"""Multifrontal LU and Cholesky factorisation: class by class, a loop over its steps."""

import functools as ft

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Inexact, Real

from ..product import matmul
from .entries import greatest, layouts, reduce_rows, RowLayout
from .lanes import in_lanes
from .packed import Blocks, packed
from .pivot_block import invert, signs
from .schedule import Class
from .symbolic import Symbolic


class Factors(eqx.Module):
    """What `factor` returns.

    `blocks`: those of each group of `symbolic.sweep`; of the matrix scaled by
    `row_scale` and `col_scale`, powers of two.

    `norms`: ‖A‖ and ‖Aᵀ‖, scaled, in the maximum norm.
    `marks`: of each pivot, its place in its front's permutation, and itself.
    `raised`: whether a pivot was raised, so that they are of a matrix nearby.
    `failed`: whether, of a Cholesky factorisation, a pivot was not positive.
    """

    values: Inexact[Array, " entries"]
    row_scale: Real[Array, " n"]
    col_scale: Real[Array, " n"]
    norms: tuple[Real[Array, ""], Real[Array, ""]]
    blocks: tuple[Blocks, ...]
    marks: tuple[Inexact[Array, "steps batch 2 p"], ...]
    raised: Bool[Array, ""]
    failed: Bool[Array, ""]


def factor(symbolic: Symbolic, values: Inexact[Array, " entries"]) -> Factors:
    """The factors of the matrix with these values, in the order of the pattern.

    Cost: O(flops) of `symbolic`; memory O(fill).
    """
    # Outside of `jit`, constants come back as numbers of Python.
    return jax.tree_util.tree_map(jnp.asarray, _apply(symbolic)(values))


@ft.lru_cache(maxsize=128)
def _apply(symbolic: Symbolic):
    return in_lanes(ft.partial(_factor, symbolic))


def _factor(symbolic: Symbolic, values: Array) -> Factors:
    row_scale, col_scale = _equilibrate(symbolic, values)
    pattern, plan = symbolic.pattern, symbolic.schedule
    scale = row_scale[pattern.rows] * col_scale[pattern.cols]
    scaled = values * scale.astype(values.dtype)
    by_row, by_col = (
        greatest(reduce_rows(layout, jnp.abs(scaled), jnp.sum))
        for layout in layouts(pattern)
    )
    # Relative to the largest entry, which is about one.
    eps = float(jnp.finfo(row_scale.dtype).eps)
    least = jnp.asarray(np.sqrt(eps), row_scale.dtype)
    # XLA would take it for padding, whose masked loads took 60 ms for 16 MB.
    store = lax.optimization_barrier(jnp.zeros((plan.store,), values.dtype))
    store = lax.dynamic_update_slice_in_dim(store, scaled, 0, 0)
    marks = []
    for kind in plan.classes:
        store, m = _eliminate(kind, store, least, symbolic.symmetric)
        marks.append(m)
    pivots = jnp.concatenate(
        [m[:, :, 1].reshape(-1) for m in marks] or [jnp.ones((0,), values.dtype)]
    )
    raised = jnp.any(jnp.abs(pivots) <= least * (1 + 8 * eps))
    failed = ~jnp.all(pivots.real > 0) if symbolic.symmetric else jnp.array(False)
    return Factors(
        values,
        row_scale,
        col_scale,
        (by_row, by_col),
        packed(symbolic, store),
        tuple(marks),
        raised,
        failed,
    )


def determinant(
    symbolic: Symbolic, factors: Factors
) -> tuple[Inexact[Array, ""], Real[Array, ""]]:
    """`(sign, logabsdet)`; of a matrix nearby, if `factors.raised`.

    Cost: O(n).
    """
    dtype, real = factors.values.dtype, factors.row_scale.dtype
    sign = jnp.asarray(symbolic.parity, dtype)
    total = -jnp.sum(jnp.log(factors.row_scale)) - jnp.sum(jnp.log(factors.col_scale))
    for marks in factors.marks:
        pivots = marks[:, :, 1]
        magnitude = jnp.abs(pivots)
        total = total + jnp.sum(jnp.log(magnitude))
        sign = sign * jnp.prod(pivots / magnitude.astype(dtype))
        sign = sign * jnp.prod(signs(marks)).astype(dtype)
    return sign, total.astype(real)


def _eliminate(kind: Class, store, least, symmetric: bool):
    p, u, batch = kind.p, kind.u, kind.batch
    full = p + u
    dtype = store.dtype
    row, column = (lax.broadcasted_iota(jnp.int32, (1, p, p), i) for i in (1, 2))
    source, target = jnp.asarray(kind.source), jnp.asarray(kind.target)

    def step(store, x):
        s, most, first, last, size = x

        def assemble(r, front):
            here, there = source[r], target[r]
            taken = store.at[here].get(mode="promise_in_bounds")
            return front.at[there].add(taken, mode="promise_in_bounds")

        front = jnp.zeros((batch * full * full,), dtype)
        front = lax.fori_loop(first, last, assemble, front)
        front = front.reshape(batch, full, full)
        # Beyond the pivots that a front has, its pivot block is the identity.
        pad = (row == column) & (row >= size[:, None, None])
        a, b = front[:, :p, :p], front[:, :p, p:]
        if symmetric:  # the upper triangle is there
            a, c = jnp.where(row <= column, a, jnp.conj(a.mT)), jnp.conj(b.mT)
        else:
            c = front[:, p:, :p]
        inverse, marks = invert(jnp.where(pad, 1, a), most, least, not symmetric)
        up = matmul(inverse, b)
        update = front[:, p:, p:] - matmul(c, up)
        out = [(kind.update, update), (kind.inverse, inverse), (kind.up, up)]
        if not symmetric:
            out.append((kind.low, matmul(c, inverse)))
        for start, blocks in out:
            at = start + s * blocks.size
            store = lax.dynamic_update_slice_in_dim(store, blocks.reshape(-1), at, 0)
        return store, marks

    steps = np.arange(kind.steps, dtype=np.int32)
    x = (steps, kind.pivots, kind.chunks[:-1], kind.chunks[1:], kind.sizes)
    return lax.scan(step, store, jax.tree_util.tree_map(jnp.asarray, x))


def _equilibrate(symbolic: Symbolic, values: Array) -> tuple[Array, Array]:
    """Powers of two, by which the largest entry of each row and column becomes about
    one.

    Curtis, Reid: On the automatic scaling of matrices for Gaussian elimination. IMA
    Journal of Applied Mathematics 10, 1972, doi:10.1093/imamat/10.1.118
    """
    pattern = symbolic.pattern
    n = pattern.shape[0]
    magnitude = jnp.abs(values)
    if len(pattern) == 0:
        return jnp.ones((n,), magnitude.dtype), jnp.ones((n,), magnitude.dtype)
    by_row, by_col = layouts(pattern)
    if symbolic.symmetric:
        # That of the diagonal: what is left of a positive definite matrix is below one.
        on = pattern.rows == pattern.cols
        diagonal = jnp.zeros((n,), magnitude.dtype)
        at = np.flatnonzero(on)
        diagonal = diagonal.at[pattern.rows[at]].set(magnitude[at], unique_indices=True)
        scale = _power_of_two(jnp.sqrt(diagonal))
        return scale, scale
    # Rows and columns take turns to have logarithms of mean zero, until it changes no
    # more: then the two of them are told apart, however far they are from one.
    there = (magnitude > 0) & jnp.isfinite(magnitude)
    logs = jnp.log2(jnp.where(there, magnitude, 1))
    there = there.astype(logs.dtype)
    row_count = jnp.maximum(reduce_rows(by_row, there, jnp.sum), 1)
    col_count = jnp.maximum(reduce_rows(by_col, there, jnp.sum), 1)

    def sweep(state):
        _, before, _, count = state
        inside = (logs - before[pattern.cols]) * there
        row = reduce_rows(by_row, inside, jnp.sum) / row_count
        inside = (logs - row[pattern.rows]) * there
        col = reduce_rows(by_col, inside, jnp.sum) / col_count
        return row, col, jnp.max(jnp.abs(col - before)), count + 1

    zeros = jnp.zeros((n,), logs.dtype)
    row, col, _, _ = lax.while_loop(
        lambda state: (state[2] > 4) & (state[3] < 20),
        sweep,
        (zeros, zeros, jnp.asarray(jnp.inf, logs.dtype), jnp.int32(0)),
    )
    # And at last, the largest entry of each is about one.
    logs = jnp.where(there > 0, logs, -jnp.inf)
    row = _largest(by_row, logs - col[pattern.cols])
    col = _largest(by_col, logs - row[pattern.rows])
    return jnp.exp2(-row), jnp.exp2(-col)


def _largest(layout: RowLayout, logs: Array) -> Array:
    """The largest of each row, rounded; 0 where there is none."""
    low = jnp.asarray(-1e4, logs.dtype)
    # `reduce_rows` pads by zeros.
    out = reduce_rows(layout, jnp.maximum(logs - low, 0), jnp.max)
    return jnp.where(out > 0, jnp.round(out + low), 0)


def _power_of_two(x: Array) -> Array:
    """The power of two next to 1 / x; 1 where there is none."""
    usable = (x > 0) & jnp.isfinite(x)
    exponent = jnp.round(jnp.log2(jnp.where(usable, x, 1)))
    return jnp.where(usable, jnp.exp2(-exponent), 1)
