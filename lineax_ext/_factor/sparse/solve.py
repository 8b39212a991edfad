"""Solutions from the factors: substitution, residual, and what takes it down."""

import functools as ft

import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Inexact

from ..product import matmul
from .entries import layouts, multiply, reduce_rows
from .numeric import Factors
from .schedule import Class
from .symbolic import Symbolic


_MOST = 10  # corrections


def solve(
    symbolic: Symbolic,
    factors: Factors,
    b: Inexact[Array, "n columns"],
    *,
    transpose: bool = False,
    conj: bool = False,
) -> tuple[Inexact[Array, "n columns"], Bool[Array, " columns"]]:
    """x with A x = b, or Aᵀ x = b, or with the conjugate of A in place of A.

    `jax.vmap` over b alone makes further columns of it.

    Cost: O(fill) a column.

    **Returns:** x, and for each column whether its residual is at most
    64 ε (‖A‖ ‖x‖ + ‖b‖) in the maximum norm, and ‖A‖ ‖x‖ at most ‖b‖ / (16 ε). It is
    not where A is singular, or not finite.
    """
    if conj:
        x, good = solve(symbolic, factors, jnp.conj(b), transpose=transpose)
        return jnp.conj(x), good
    if b.shape[0] == 0:
        return b, jnp.ones(b.shape[1:], bool) & ~factors.failed
    x, good = _columns(symbolic, transpose)(factors, b)
    return x, good & ~factors.failed


@ft.lru_cache(maxsize=128)
def _columns(symbolic: Symbolic, transpose: bool):
    """JAX's own rule for `while_loop` would do, but leave vectors apart: a product with
    each of them in place of one with all."""

    def fn(factors, b):
        return _corrected(symbolic, factors, b, transpose)

    apply = jax.custom_batching.custom_vmap(fn)

    @apply.def_vmap
    def _(axis_size, in_batched, factors, b):
        factors_batched, b_batched = in_batched
        if any(jax.tree_util.tree_leaves(factors_batched)):
            axes = jax.tree_util.tree_map(lambda x: 0 if x else None, in_batched)
            return jax.vmap(fn, in_axes=axes)(factors, b), (True, True)
        assert b_batched
        n, columns = b.shape[1:]
        b = jnp.moveaxis(b, 0, 1).reshape(n, axis_size * columns)
        x, good = apply(factors, b)
        x = jnp.moveaxis(x.reshape(n, axis_size, columns), 1, 0)
        return (x, good.reshape(axis_size, columns)), (True, True)

    return apply


def _corrected(symbolic: Symbolic, factors: Factors, b: Array, transpose: bool):
    """Iterative refinement that becomes GMRES when it is not enough.

    With z = M⁻¹ r and w = A z, M being what was factorised, refinement adds z to x.
    The third correction and those that follow take the combination of all z so far that
    leaves the least residual (GCR, Eisenstat, Elman, Schultz 1983; the same iterates as
    GMRES). One loop does both: substitution is compiled once.
    """
    pattern, values = symbolic.pattern, factors.values
    real = jnp.finfo(b.dtype).dtype
    eps = jnp.asarray(float(jnp.finfo(real).eps), real)
    by_row, by_col = layouts(pattern)
    # Of the scaled matrix, so that small rows are not forgiven what large ones may do.
    row_scale, col_scale = factors.row_scale, factors.col_scale
    if transpose:
        row_scale, col_scale = col_scale, row_scale
    scaled = jnp.abs(values) * (
        factors.row_scale[pattern.rows] * factors.col_scale[pattern.cols]
    )
    norm = jnp.max(
        reduce_rows(by_col if transpose else by_row, scaled, jnp.sum), initial=0
    )

    def residual_of(x):
        return b - multiply(pattern, values, x, transpose=transpose)

    def size(residual, x):
        top = jnp.max(jnp.abs(residual) * row_scale[:, None], axis=0)
        below = norm * jnp.max(jnp.abs(x) / col_scale[:, None], axis=0)
        return top, below + jnp.max(jnp.abs(b) * row_scale[:, None], axis=0)

    def bad(residual, x):
        top, below = size(residual, x)
        return ~(top <= 64 * eps * below)

    def unfinished(state):
        _, _, _, wrong, _, _, count = state
        return (count == 0) | (jnp.any(wrong) & (count < _MOST))

    def correct(state):
        x, residual, least, _, zs, ws, count = state
        z = substitute(symbolic, factors, residual, transpose)

        def krylov(_):
            w = multiply(pattern, values, z, transpose=transpose)
            w = w * row_scale[:, None].astype(w.dtype)
            overlap = jnp.sum(jnp.conj(ws) * w[None], axis=1, keepdims=True)
            w_ = w - jnp.sum(ws * overlap, axis=0)
            z_ = z - jnp.sum(zs * overlap, axis=0)
            length = jnp.sqrt(jnp.sum(jnp.abs(w_) ** 2, axis=0)).astype(w.dtype)
            length = jnp.where(length > 0, length, 1)
            w_, z_ = w_ / length[None], z_ / length[None]
            scaled = residual * row_scale[:, None].astype(w.dtype)
            amount = jnp.sum(jnp.conj(w_) * scaled, axis=0)
            return (
                amount[None] * z_,
                lax.dynamic_update_index_in_dim(zs, z_, count, 0),
                lax.dynamic_update_index_in_dim(ws, w_, count, 0),
            )

        step, zs, ws = lax.cond(count < 2, lambda _: (z, zs, ws), krylov, None)
        new = x + step
        residual_ = residual_of(new)
        top, below = size(residual_, new)
        error = top / jnp.where(below > 0, below, 1)
        # A step that makes it worse is not taken.
        better = (error < least) | (count == 0)
        x = jnp.where(better[None], new, x)
        residual = jnp.where(better[None], residual_, residual)
        least = jnp.where(better, error, least)
        return x, residual, least, bad(residual, x), zs, ws, count + 1

    history = jnp.zeros((_MOST, *b.shape), b.dtype)
    state = (
        jnp.zeros_like(b),
        b,
        jnp.full(b.shape[1:], jnp.inf, real),
        jnp.ones(b.shape[1:], bool),
        history,
        history,
        jnp.int32(0),
    )
    x, _, _, wrong, _, _, _ = lax.while_loop(unfinished, correct, state)
    # A solution that large is one of a matrix nearby: that of A does not exist.
    huge = 16 * eps * norm * jnp.max(jnp.abs(x) / col_scale[:, None], axis=0)
    return x, ~wrong & (huge <= jnp.max(jnp.abs(b) * row_scale[:, None], axis=0))


def substitute(
    symbolic: Symbolic,
    factors: Factors,
    b: Inexact[Array, "n columns"],
    transpose: bool = False,
) -> Inexact[Array, "n columns"]:
    """M⁻¹ b, or M⁻ᵀ b: up the tree from its leaves, and down again."""
    plan = symbolic.schedule
    row_scale, col_scale = factors.row_scale, factors.col_scale
    if transpose:
        row_scale, col_scale = col_scale, row_scale
    columns = b.shape[1]
    source, back = _slots(symbolic, transpose)
    b = b * row_scale[:, None].astype(b.dtype)
    b = jnp.concatenate([b, jnp.zeros((1, columns), b.dtype)])
    b = b.at[source].get(mode="promise_in_bounds")
    vectors = jnp.zeros((plan.vectors, columns), b.dtype)
    kept = []
    for kind, down, up in zip(plan.classes, factors.down, factors.up):
        end = kind.slot + kind.steps * kind.batch * kind.p
        here = b[kind.slot : end].reshape(kind.steps, kind.batch, kind.p, columns)
        vectors, out = _ascend(kind, down, up, here, vectors, transpose)
        kept.append(out)
    x = jnp.zeros((plan.unknowns + 1, columns), b.dtype)
    every = list(zip(plan.classes, factors.down, factors.up, kept))
    for kind, down, up, here in reversed(every):
        x = _descend(kind, down, up, here, x, transpose)
    x = x.at[back].get(mode="promise_in_bounds")
    return x * col_scale[:, None].astype(x.dtype)


@ft.lru_cache(maxsize=128)
def _slots(symbolic: Symbolic, transpose: bool):
    """Of each slot the row of b, and of each row of x the slot."""
    slots = symbolic.schedule.slots
    rows, cols = symbolic.row_order, symbolic.col_order
    if transpose:
        rows, cols = cols, rows
    source = np.full(symbolic.schedule.unknowns, len(rows), np.int32)
    source[slots] = rows
    back = np.empty(len(cols), np.int32)
    back[cols] = slots
    return source, back


def _ascend(kind: Class, down, up, b, vectors, transpose: bool):
    p, u, batch = kind.p, kind.u, kind.batch
    maps, bases = jnp.asarray(kind.maps), jnp.asarray(kind.bases[:, :, 2])

    def step(vectors, x):
        s, children, b, down, up = x
        columns = b.shape[-1]
        front = jnp.concatenate([b, jnp.zeros((batch, u, columns), b.dtype)], axis=1)

        def extend(r, front):
            place = lax.dynamic_index_in_dim(maps, r, keepdims=False)
            base = lax.dynamic_index_in_dim(bases, r, keepdims=False)
            there = place >= 0
            at = jnp.where(there, base[:, None] + place, 0)
            taken = vectors.at[at].get(mode="promise_in_bounds")
            return front + jnp.where(there[:, :, None], taken, 0)

        if len(kind.maps) > 0:
            front = lax.fori_loop(children[0], children[1], extend, front)
        b, rest = front[:, :p], front[:, p:]
        if transpose:
            out, rest = b, rest - matmul(up.mT, b)
        else:
            product = matmul(down, b)
            out, rest = product[:, :p], rest - product[:, p:]
        vectors = lax.dynamic_update_slice_in_dim(
            vectors, rest.reshape(batch * u, columns), kind.vector + s * batch * u, 0
        )
        return vectors, out

    steps = jnp.arange(kind.steps, dtype=jnp.int32)
    children = jnp.asarray(kind.children)
    return lax.scan(step, vectors, (steps, children, b, down, up))


def _descend(kind: Class, down, up, b, x, transpose: bool):
    p, batch = kind.p, kind.batch

    def step(x, given):
        s, rows, b, down, up = given
        above = x.at[rows].get(mode="promise_in_bounds")
        if transpose:
            out = matmul(down.mT, jnp.concatenate([b, -above], axis=1))
        else:
            out = b - matmul(up, above)
        return lax.dynamic_update_slice_in_dim(
            x, out.reshape(batch * p, -1), kind.slot + s * batch * p, 0
        ), None

    steps = jnp.arange(kind.steps, dtype=jnp.int32)
    given = (steps, jnp.asarray(kind.rows), b, down, up)
    return lax.scan(step, x, given, reverse=True)[0]
