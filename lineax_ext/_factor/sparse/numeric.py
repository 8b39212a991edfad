"""Multifrontal LU and Cholesky factorisation: class by class, a loop over its steps."""

from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Inexact, Real

from ..._solver.householder import matmul
from .entries import layouts, reduce_rows
from .pivot_block import invert
from .schedule import Class
from .symbolic import Symbolic


class Factors(eqx.Module):
    """What `factor` returns.

    Of a front with the blocks A, B; C, D: `down` holds A⁻¹ and, under it, C A⁻¹, and
    `up` A⁻¹ B; for each class, of shape (steps, batch, ...). They are those of the
    matrix scaled by `row_scale` and `col_scale`, powers of two.

    `raised`: whether a pivot was raised, so that they are of a matrix nearby.
    `sign`, `logabsdet`: of the determinant of the matrix that they are of.
    `failed`: whether, of a Cholesky factorisation, a pivot was not positive.
    """

    values: Inexact[Array, " entries"]
    row_scale: Real[Array, " n"]
    col_scale: Real[Array, " n"]
    down: tuple[Inexact[Array, "steps batch p+u p"], ...]
    up: tuple[Inexact[Array, "steps batch p u"], ...]
    sign: Inexact[Array, ""]
    logabsdet: Real[Array, ""]
    raised: Bool[Array, ""]
    failed: Bool[Array, ""]


def factor(symbolic: Symbolic, values: Inexact[Array, " entries"]) -> Factors:
    """The factors of the matrix with these values, in the order of the pattern.

    Cost: O(flops) of `symbolic`; memory O(fill).
    """
    row_scale, col_scale = _equilibrate(symbolic, values)
    pattern, plan = symbolic.pattern, symbolic.schedule
    scaled = values
    if len(pattern) > 0:
        scale = row_scale[pattern.rows] * col_scale[pattern.cols]
        scaled = values * scale.astype(values.dtype)
    real = row_scale.dtype
    scaled = jnp.append(scaled, jnp.zeros((), scaled.dtype))
    # Relative to the largest entry, which is about one.
    least = jnp.asarray(np.sqrt(float(jnp.finfo(real).eps)), real)
    state = _State(
        jnp.zeros((max(plan.updates, 1),), values.dtype),
        jnp.asarray(symbolic.parity, values.dtype),
        jnp.zeros((), real),
        jnp.array(False),
        jnp.array(False),
    )
    down, up = [], []
    for kind in plan.classes:
        state, (d, u) = _eliminate(kind, scaled, state, least, symbolic.symmetric)
        down.append(d)
        up.append(u)
    shift = jnp.sum(jnp.log(row_scale)) + jnp.sum(jnp.log(col_scale))
    return Factors(
        values,
        row_scale,
        col_scale,
        tuple(down),
        tuple(up),
        state.sign,
        state.logabsdet - shift,
        state.raised,
        state.failed,
    )


class _State(eqx.Module):
    updates: Array
    sign: Array
    logabsdet: Array
    raised: Array
    failed: Array


def _eliminate(kind: Class, values, state: _State, least, symmetric: bool):
    p, u, batch = kind.p, kind.u, kind.batch
    full = p + u
    dtype = values.dtype
    diagonal = lax.broadcasted_iota(jnp.int32, (batch, p), 1)
    maps, bases = jnp.asarray(kind.maps), jnp.asarray(kind.bases)
    # Beyond the pivots that a front has, its pivot block is the identity.

    def step(state, x):
        s, most, source, target, children, size = x
        front = jnp.zeros((batch * full * full + 1,), dtype)
        taken = values.at[source].get(mode="promise_in_bounds")
        front = front.at[target].set(taken, mode="promise_in_bounds")
        front = front[:-1].reshape(batch, full, full)

        def extend(r, front):
            place = lax.dynamic_index_in_dim(maps, r, keepdims=False)
            base = lax.dynamic_index_in_dim(bases, r, keepdims=False)
            i, j = place[:, :, None], place[:, None, :]
            there = (i >= 0) & (j >= 0)
            at = base[:, 0, None, None] + i * base[:, 1, None, None] + j
            at = jnp.where(there, at, 0)
            update = state.updates.at[at].get(mode="promise_in_bounds")
            return front + jnp.where(there, update, 0)

        front = lax.fori_loop(children[0], children[1], extend, front)
        pad = (diagonal >= size[:, None])[:, :, None]
        eye = diagonal[:, :, None] == diagonal[:, None, :]
        a = jnp.where(pad & eye, 1, front[:, :p, :p])
        block = invert(a, most, least)
        b, c = front[:, :p, p:], front[:, p:, :p]
        up = matmul(block.inverse, b)
        low = matmul(c, block.inverse)
        update = front[:, p:, p:] - matmul(c, up)
        updates = lax.dynamic_update_slice_in_dim(
            state.updates, update.reshape(-1), kind.update + s * (batch * u * u), 0
        )
        magnitude = jnp.abs(block.pivots)
        phase = block.pivots / magnitude.astype(dtype)
        sign = jnp.prod(phase) * jnp.prod(block.sign).astype(dtype)
        failed = state.failed
        if symmetric:
            failed = failed | ~jnp.all(block.pivots.real > 0)
        state = _State(
            updates,
            state.sign * sign,
            state.logabsdet + jnp.sum(jnp.log(magnitude)),
            state.raised | block.raised,
            failed,
        )
        return state, (jnp.concatenate([block.inverse, low], axis=1), up)

    steps = np.arange(kind.steps, dtype=np.int32)
    x = (steps, kind.pivots, kind.source, kind.target, kind.children, kind.sizes)
    return lax.scan(step, state, jax.tree_util.tree_map(jnp.asarray, x))


def _equilibrate(symbolic: Symbolic, values: Array) -> tuple[Array, Array]:
    """Powers of two, by which the largest entry of each row and column becomes about
    one."""
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
    row = _power_of_two(reduce_rows(by_row, magnitude, jnp.max))
    magnitude = magnitude * row[pattern.rows]
    col = _power_of_two(reduce_rows(by_col, magnitude, jnp.max))
    return row, col


def _power_of_two(x: Any) -> Array:
    """The power of two next to 1 / x; 1 where there is none."""
    usable = (x > 0) & jnp.isfinite(x)
    exponent = jnp.round(jnp.log2(jnp.where(usable, x, 1)))
    return jnp.where(usable, jnp.exp2(-exponent), 1)
