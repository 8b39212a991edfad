"""Solutions from the factors: substitution, residual, and what takes it down."""

import functools as ft

import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Inexact

from ..sparse_product import sparse_product
from .entries import greatest
from .lanes import in_lanes
from .numeric import Factors
from .scalar import Scalar, ScalarFactors, substitute as one_by_one
from .substitute import substitute
from .symbolic import Symbolic


_MOST = 10  # corrections,
_PLAIN = 2  # of which these are refinement


def solve(
    symbolic: Symbolic | Scalar,
    factors: Factors | ScalarFactors,
    b: Inexact[Array, "n columns"],
    *,
    transpose: bool = False,
    conj: bool = False,
) -> tuple[Inexact[Array, "n columns"], Bool[Array, " columns"]]:
    """x with A x = b, or Aᵀ x = b, or with the conjugate of A in place of A.

    `jax.vmap` over b alone makes further columns of it.

    Cost: O(fill) a column.

    **Returns:** x, and for each column whether its residual is at most
    64 ε (‖A‖ ‖x‖ + ‖b‖) in the maximum norm and at most ‖b‖ / 16, and ‖A‖ ‖x‖ at most
    ‖b‖ / (16 ε). It is not where A is singular, or not finite.
    """
    if conj:
        x, good = solve(symbolic, factors, jnp.conj(b), transpose=transpose)
        return jnp.conj(x), good
    if b.shape[0] == 0:
        return b, jnp.ones(b.shape[1:], bool) & ~factors.failed
    x, good = _columns(symbolic, transpose)(factors, b)
    return x, good & ~factors.failed


@ft.lru_cache(maxsize=128)
def _columns(symbolic: Symbolic | Scalar, transpose: bool):
    """JAX's own rule for `while_loop` would do, but leave vectors apart: a product with
    each of them in place of one with all."""

    def fn(factors, b):
        return _corrected(symbolic, factors, b, transpose)

    lanes, apply = in_lanes(fn), jax.custom_batching.custom_vmap(fn)

    @apply.def_vmap
    def _(axis_size, in_batched, factors, b):
        factors_batched, b_batched = in_batched
        if any(jax.tree_util.tree_leaves(factors_batched)):
            axes = jax.tree_util.tree_map(lambda x: 0 if x else None, in_batched)
            return jax.vmap(lanes, in_axes=axes)(factors, b), (True, True)
        assert b_batched
        n, columns = b.shape[1:]
        b = jnp.moveaxis(b, 0, 1).reshape(n, axis_size * columns)
        x, good = apply(factors, b)
        x = jnp.moveaxis(x.reshape(n, axis_size, columns), 1, 0)
        return (x, good.reshape(axis_size, columns)), (True, True)

    return apply


def _corrected(
    symbolic: Symbolic | Scalar,
    factors: Factors | ScalarFactors,
    b: Array,
    transpose: bool,
):
    """Iterative refinement that becomes GMRES when it is not enough.

    With z = M⁻¹ r and w = A z, M being what was factorised, refinement adds z to x.
    The third correction and those that follow take the combination of all z so far that
    leaves the least residual (GCR, Eisenstat, Elman, Schultz 1983; the same iterates as
    GMRES). One loop does both: substitution is compiled once.
    """
    real = jnp.finfo(b.dtype).dtype
    eps = jnp.asarray(float(jnp.finfo(real).eps), real)
    # Of the scaled matrix, so that small rows are not forgiven what large ones may do.
    row_scale, col_scale = factors.row_scale, factors.col_scale
    norm, norm_of_transpose = factors.norms
    if transpose:
        row_scale, col_scale = col_scale, row_scale
        norm = norm_of_transpose
    row_scale, col_scale = row_scale[:, None], col_scale[:, None]
    size_of_b = greatest(jnp.abs(b) * row_scale)

    if isinstance(symbolic, Scalar):
        assert isinstance(factors, ScalarFactors)
        precondition = ft.partial(one_by_one, symbolic, factors, transpose=transpose)
    else:
        assert isinstance(factors, Factors)
        precondition = ft.partial(substitute, symbolic, factors, transpose=transpose)

    def multiply(x):
        return sparse_product(factors.values, symbolic.pattern, x, transpose)

    def size(x):
        return norm * greatest(jnp.abs(x) / col_scale)

    def unfinished(state):
        _, _, (error, _), _, count = state
        return (count == 0) | (jnp.any(~(error <= 64 * eps)) & (count < _MOST))

    def correct(state):
        x, residual, (least, size_of_x), history, count = state
        z = precondition(residual)

        def krylov():
            zs, ws = history[:, 0], history[:, 1]
            w = multiply(z)
            w = w * row_scale.astype(w.dtype)
            overlap = jnp.sum(jnp.conj(ws) * w[None], axis=1, keepdims=True)
            w_ = w - jnp.sum(ws * overlap, axis=0)
            z_ = z - jnp.sum(zs * overlap, axis=0)
            length = jnp.sqrt(jnp.sum(jnp.abs(w_) ** 2, axis=0)).astype(w.dtype)
            length = jnp.where(length > 0, length, 1)
            w_, z_ = w_ / length[None], z_ / length[None]
            scaled = residual * row_scale.astype(w.dtype)
            amount = jnp.sum(jnp.conj(w_) * scaled, axis=0)
            return amount[None] * z_, jnp.stack([z_, w_])

        none = jnp.zeros((2, *z.shape), z.dtype)
        step, pair = lax.cond(count < _PLAIN, lambda: (z, none), krylov)
        # Outside of the branches, it is written in place. The first are overwritten.
        at = jnp.maximum(count - _PLAIN, 0)
        history = lax.dynamic_update_index_in_dim(history, pair, at, 0)
        new = x + step
        residual_ = b - multiply(new)
        top, size_of_new = greatest(jnp.abs(residual_) * row_scale), size(new)
        below = size_of_new + size_of_b
        error = top / jnp.where(below > 0, below, 1)
        # A step that makes it worse is not taken.
        better = (error < least) | (count == 0)
        x = jnp.where(better[None], new, x)
        residual = jnp.where(better[None], residual_, residual)
        error = jnp.where(better, error, least)
        size_of_x = jnp.where(better, size_of_new, size_of_x)
        return x, residual, (error, size_of_x), history, count + 1

    def corrected():
        history = jnp.zeros((_MOST - _PLAIN, 2, *b.shape), b.dtype)
        infinite = jnp.full(b.shape[1:], jnp.inf, real)
        none = jnp.zeros_like(infinite)
        state = (jnp.zeros_like(b), b, (infinite, none), history, jnp.int32(0))
        x, _, (error, size_of_x), _, _ = lax.while_loop(unfinished, correct, state)
        return x, error, size_of_x

    def substituted():
        x = precondition(b)
        return x, jnp.zeros(b.shape[1:], real), size(x)

    if isinstance(factors, ScalarFactors):
        x, error, size_of_x = lax.cond(factors.sound, substituted, corrected)
    else:
        x, error, size_of_x = corrected()
    # A solution that large, or with a residual that large, is one of a matrix nearby:
    # that of A does not exist.
    left = error * (size_of_x + size_of_b)
    exists = 16 * jnp.maximum(eps * size_of_x, left) <= size_of_b
    return x, (error <= 64 * eps) & exists
