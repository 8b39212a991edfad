"""Multifrontal LU and Cholesky factorisation: class by class, a loop over its steps."""

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Inexact, Real

from ..product import matmul
from .entries import layouts, reduce_rows
from .packed import Blocks, packed
from .pivot_block import invert, signs
from .scaling import equilibrated
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


def factor_fronts(symbolic: Symbolic, values: Array) -> Factors:
    pattern, plan = symbolic.pattern, symbolic.schedule

    def reduced(axis, x, how):
        return reduce_rows(layouts(pattern)[axis], x, how)

    scaled, row_scale, col_scale, norms = equilibrated(
        pattern, values, symbolic.symmetric, reduced
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
        norms,
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
        s, most, first, last, size, updates = x

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
        out = [(kind.inverse, inverse), (kind.up, up)]
        if not symmetric:
            out.append((kind.low, matmul(c, inverse)))
        places = [(start + s * blocks.size, blocks) for start, blocks in out]
        for at, blocks in [(updates, update), *places]:
            store = lax.dynamic_update_slice_in_dim(store, blocks.reshape(-1), at, 0)
        return store, marks

    steps = np.arange(kind.steps, dtype=np.int32)
    chunks = kind.chunks[:-1], kind.chunks[1:]
    x = (steps, kind.pivots, *chunks, kind.sizes, kind.updates)
    return lax.scan(step, store, jax.tree_util.tree_map(jnp.asarray, x))
