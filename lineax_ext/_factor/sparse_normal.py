"""Sparse least squares by a factorisation of the normal equations, and corrections.

The matrix B = [J; √λ D] T has columns of length one. Its BᵀB is factorised by the
multifrontal Cholesky method; what that loses is regained by conjugate gradients, of
which the factors are the preconditioner and which apply J itself.
"""

import functools as ft
from typing import NamedTuple

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Inexact, Real

from .._structure.known import locate
from .._structure.pattern import Pattern
from . import sparse
from .sparse.entries import layouts, reduce_rows
from .sparse.lanes import in_lanes
from .sparse.substitute import substitute
from .sparse_product import sparse_product


_MOST = 16  # corrections


class _Plan(NamedTuple):
    """Entries of the lower half of JᵀJ are sums of products of two entries of J: those
    of row t, the entries `left[k]` and `products.cols[k]` for all k in row t of
    `products`. Entry e of JᵀJ is entry `half[e]` of it."""

    gram: Pattern
    left: np.ndarray
    products: Pattern
    half: np.ndarray
    diagonal: np.ndarray


def dense_rows(pattern: Pattern) -> np.ndarray:
    """Rows that are kept out of the fronts: few, and far longer than the others."""
    m, n = pattern.shape
    lengths = np.bincount(pattern.rows, minlength=m)
    long = np.flatnonzero(lengths > max(64, 10 * np.sqrt(n)))
    return long if len(long) <= _MOST // 2 else long[:0]


@ft.lru_cache(maxsize=32)
def _plan(pattern: Pattern) -> _Plan:
    m, n = pattern.shape
    kept = np.flatnonzero(~np.isin(pattern.rows, dense_rows(pattern)))
    rows, cols = pattern.rows[kept], pattern.cols[kept]
    starts = np.searchsorted(rows, np.arange(m + 1))
    # Of each entry, those before it in its row, and itself.
    before = np.arange(len(rows)) - starts[rows] + 1
    left = np.repeat(np.arange(len(rows)), before)
    within = np.arange(len(left)) - np.repeat(np.cumsum(before) - before, before)
    right = starts[rows[left]] + within
    flat = cols[left].astype(np.int64) * n + cols[right]
    order = np.argsort(flat, kind="stable")
    # Every diagonal entry is there: the damping is on it.
    diagonal = np.arange(n, dtype=np.int64) * (n + 1)
    lower = np.union1d(flat, diagonal)
    low = lower // max(n, 1), lower % max(n, 1)
    gram = Pattern(np.concatenate([low[0], low[1]]), np.concatenate(low[::-1]), (n, n))
    i, j = np.maximum(gram.rows, gram.cols), np.minimum(gram.rows, gram.cols)
    return _Plan(
        gram,
        kept[left[order]].astype(np.int32),
        Pattern(
            np.searchsorted(lower, flat[order]),
            kept[right[order]],
            (len(lower), len(pattern)),
        ),
        np.searchsorted(lower, i.astype(np.int64) * n + j).astype(np.int32),
        locate(gram, np.arange(n), np.arange(n)),
    )


class Normal(eqx.Module):
    """J and JᵀJ, the columns of J divided by `norms`, their lengths (or 1)."""

    values: Inexact[Array, " entries"]
    gram: Inexact[Array, " half"]
    norms: Real[Array, " n"]
    empty: Bool[Array, " n"]
    pattern: Pattern = eqx.field(static=True)


class Factorised(eqx.Module):
    """B, and the factors of a matrix close to BᵀB."""

    values: Inexact[Array, " entries"]
    lower: Real[Array, " n"]
    lengths: Real[Array, " n"]
    factors: sparse.Factors
    singular: Bool[Array, ""]
    damped: Bool[Array, ""]
    pattern: Pattern = eqx.field(static=True)

    def multiply(self, z: Array) -> tuple[Array, Array]:
        top = sparse_product(self.values, self.pattern, z)
        return top, self.lower.astype(z.dtype) * z

    def adjoint(self, pair: tuple[Array, Array]) -> Array:
        top, bottom = pair
        values = jnp.conj(self.values)
        return (
            sparse_product(values, self.pattern, top, transposed=True)
            + self.lower.astype(bottom.dtype) * bottom
        )

    def precondition(self, g: Array) -> Array:
        return substitute(symbolic(self.pattern), self.factors, g[:, None])[:, 0]


def column_norms(
    values: Inexact[Array, " entries"], pattern: Pattern
) -> Real[Array, " n"]:
    """Neither under- nor overflows, even if the squares do."""
    _, n = pattern.shape
    _, by_col = layouts(pattern)
    magnitude = jnp.abs(values)
    if len(pattern) == 0:
        return jnp.zeros((n,), magnitude.dtype)
    largest = reduce_rows(by_col, magnitude, jnp.max)
    safe = jnp.where(largest > 0, largest, 1)
    ratios = magnitude / safe[pattern.cols]
    squares = reduce_rows(by_col, ratios**2, jnp.sum)
    return largest * jnp.sqrt(squares)


def gram(pattern: Pattern) -> Pattern:
    """That of JᵀJ, without the dense rows."""
    return _plan(pattern).gram


def symbolic(pattern: Pattern) -> sparse.Symbolic:
    return sparse.analyse(gram(pattern), symmetric=True)


def products(pattern: Pattern) -> int:
    """How many of entries are added up to JᵀJ."""
    lengths = np.bincount(pattern.rows, minlength=pattern.shape[0])
    lengths[dense_rows(pattern)] = 0
    return int(np.sum(lengths * (lengths + 1)) // 2)


def normal(values: Inexact[Array, " entries"], pattern: Pattern) -> Normal:
    """JᵀJ of the matrix J with these values.

    Cost: the sum of the squared lengths of the rows.
    """
    plan = _plan(pattern)
    norms = column_norms(values, pattern)
    empty = norms == 0
    norms = jnp.where(empty, 1, norms)
    values = values / norms.astype(values.dtype)[pattern.cols]
    left = jnp.conj(values).at[plan.left].get(mode="promise_in_bounds")
    gram = sparse_product(left, plan.products, values)
    return Normal(values, gram, norms, empty, pattern)


def factorise(
    normal: Normal, root: Real[Array, ""], scale: Real[Array, " n"] | None
) -> Factorised:
    """That of BᵀB for one λ = root² and one D.

    Cost: one Cholesky factorisation.
    """
    pattern = normal.pattern
    plan = _plan(pattern)
    dtype = normal.values.dtype
    eps = jnp.finfo(dtype).eps
    damped = jnp.broadcast_to(root, normal.norms.shape)
    damped = damped if scale is None else damped * scale
    own = jnp.where(normal.empty, 0, normal.norms)
    lengths = jnp.hypot(own, damped)
    lengths = jnp.where(lengths == 0, 1, lengths)
    weight, lower = own / lengths, damped / lengths
    rows, cols = plan.gram.rows, plan.gram.cols
    squares = normal.gram.at[plan.half].get(mode="promise_in_bounds")
    # The lower half is conj(left) · right with left the later: its transpose is ours.
    squares = jnp.where(rows > cols, squares, jnp.conj(squares))
    squares = squares * (weight[rows] * weight[cols]).astype(dtype)
    # So much more that rounding leaves no pivot negative; a zero column gets a pivot.
    more = lower**2 + jnp.where((weight == 0) & (lower == 0), 1, 100 * eps)
    squares = squares.at[plan.diagonal].add(more.astype(dtype), unique_indices=True)
    values = normal.values * weight.astype(dtype)[pattern.cols]
    factors = sparse.factor(symbolic(pattern), squares)
    return Factorised(
        values,
        lower,
        lengths,
        factors,
        jnp.any((weight == 0) & (lower == 0)),
        root > 0,
        pattern,
    )


def is_singular(factorised: Factorised) -> Bool[Array, ""]:
    """Whether the least singular value of B is a rounding error.

    Two vectors are tried. One is from inverse iteration. Where a pivot was raised, its
    factors are those of a regular matrix; so the other is what is left of a vector u
    without the solution of B z = B u, which lies in the null space.

    Cost: nothing, unless a pivot was raised: three substitutions and a solve.
    """
    m, n = factorised.pattern.shape
    if n == 0:
        return jnp.array(False)
    dtype = factorised.values.dtype
    eps = jnp.finfo(dtype).eps
    start = jnp.asarray(np.random.default_rng(0).normal(size=n), dtype)
    unit = lambda u: u / jnp.linalg.norm(u).astype(dtype)
    suspect = factorised.factors.raised | factorised.factors.failed

    def null_space():
        u = lax.fori_loop(0, 3, lambda _, u: unit(factorised.precondition(u)), start)
        v = unit(start) - solve(factorised, factorised.multiply(unit(start)))[0]
        # Nothing at all is left of the best: then `start` says that B is regular.
        v = jnp.where(jnp.linalg.norm(v) > 0, unit(v), unit(start))
        least = jnp.minimum(*(_norm(factorised.multiply(x)) for x in (u, v)))
        threshold = jnp.where(factorised.damped, 4, 4 * max(m, n)) * eps
        return ~(least > threshold)

    found = lax.cond(suspect, null_space, lambda: jnp.array(False))
    return factorised.singular | found


def _norm(pair: tuple[Array, Array]) -> Array:
    return jnp.sqrt(sum(jnp.sum(jnp.abs(x) ** 2) for x in pair))


def solve(
    factorised: Factorised,
    b: tuple[Array, Array],
    c: Array | None = None,
) -> tuple[Array, tuple[Array, Array], Bool[Array, ""]]:
    """z and y = B z with BᵀB z = Bᵀ b + c, both without the lengths of the columns.

    Conjugate gradients in the form for least squares. The first step is that of the
    seminormal equations; the second corrects it. A dense row, which the factors do not
    have, costs one more, and so does a pivot that was raised.

    Source: Björck, *Numerical Methods for Least Squares Problems*, SIAM (1996), §6.6.3,
    §7.4; Hestenes, Stiefel, *Methods of conjugate gradients for solving linear
    systems*, J. Res. NBS 49 (1952).
    """
    # All at once, 16 fits of 500 poses took 45 ms for what takes 11 one by one.
    return in_lanes(_solve)(factorised, b, c)


def _solve(
    factorised: Factorised, b: tuple[Array, Array], c: Array | None
) -> tuple[Array, tuple[Array, Array], Bool[Array, ""]]:
    dtype = factorised.values.dtype
    eps = jnp.asarray(float(jnp.finfo(dtype).eps), jnp.finfo(dtype).dtype)
    add = lambda x, a, y: jax.tree_util.tree_map(lambda u, v: u + a * v, x, y)
    right = factorised.adjoint(b)
    if c is not None:
        right = right + c
    size = _norm(b)
    size_c = jnp.linalg.norm(right)

    def gradient(y):
        g = factorised.adjoint(add(b, jnp.asarray(-1, dtype), y))
        return g if c is None else g + c

    def unfinished(state):
        *_, error, count, stop = state
        # The first is followed by one correction always.
        return ~stop & ((count < 2) | ((error > 1) & (count < _MOST)))

    def step(state):
        z, y, g, p, last, best, count, _ = state
        s = factorised.precondition(g)
        rho = jnp.sum(jnp.conj(g) * s).real
        beta = jnp.where(last > 0, rho / jnp.where(last > 0, last, 1), 0)
        p = s + beta.astype(dtype) * p
        q = factorised.multiply(p)
        length = _norm(q) ** 2
        usable = (length > 0) & (rho > 0)
        alpha = jnp.where(usable, rho / jnp.where(usable, length, 1), 0).astype(dtype)
        z, y = z + alpha * p, add(y, alpha, q)
        g = gradient(y)
        # Columns have length one: this is the backward error.
        remaining = _norm(add(b, jnp.asarray(-1, dtype), y))
        bound = remaining + jnp.linalg.norm(z) if c is None else size_c + _norm(y)
        error = jnp.max(jnp.abs(g), initial=0) / (8 * eps * bound)
        error = jnp.where(bound > 0, error, 0)
        return z, y, g, p, rho, error, count + 1, ~usable | ~jnp.isfinite(error)

    n = factorised.pattern.shape[1]
    zero = jnp.zeros((n,), dtype)
    real = jnp.zeros((), eps.dtype)
    y = jax.tree_util.tree_map(jnp.zeros_like, b)
    start = (zero, y, right, zero, real, real + jnp.inf, jnp.int32(0), size < 0)
    z, y, *_, error, _, _ = lax.while_loop(unfinished, step, start)
    # A NaN in what was given has stopped it early: let it be seen.
    bad = jnp.where(jnp.isfinite(size_c), 0, jnp.nan).astype(dtype)
    return z + bad, y, (error <= 1000) | (size_c == 0)
