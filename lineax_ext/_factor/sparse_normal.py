"""Sparse least squares by a factorisation of the normal equations, and corrections.

The matrix B = [J; √λ D] T has columns of length one. Its BᵀB is factorised by
Cholesky's method, in one of three ways; what that loses is regained by conjugate
gradients, of which the factors are the preconditioner and which apply J itself.
"""

import functools as ft
from typing import NamedTuple

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np
from jaxtyping import Array, Bool, Inexact, Real

from .._structure.pattern import Pattern
from . import sparse
from .product import matmul
from .sparse.entries import layouts, reduce_rows
from .sparse.lanes import in_lanes
from .sparse_gram import dense_rows, sums_of_products
from .sparse_product import sparse_product


_MOST = 16  # corrections


class Normal(eqx.Module):
    """J and JᵀJ, the columns of J divided by `norms`, their lengths (or 1)."""

    values: Inexact[Array, " entries"]
    gram: Inexact[Array, " half"]
    norms: Real[Array, " n"]
    empty: Bool[Array, " n"]
    pattern: Pattern = eqx.field(static=True)
    way: sparse.Way = eqx.field(static=True)

    def multiply(self, x: Inexact[Array, " n"]) -> Inexact[Array, " m"]:
        """J x."""
        x = self.norms.astype(x.dtype) * x
        return sparse_product(self.values, self.pattern, x)


class _LowRank(NamedTuple):
    """Dense rows U of B; N⁻¹ Uᴴ, where N is what the factors are of; and Cholesky's
    factor of I + U N⁻¹ Uᴴ."""

    rows: Inexact[Array, "k n"]
    solved: Inexact[Array, "n k"]
    inner: Inexact[Array, "k k"]


class Factorised(eqx.Module):
    """B, and the factors of a matrix N close to BᴴB without its dense rows."""

    values: Inexact[Array, " entries"]
    lower: Real[Array, " n"]
    lengths: Real[Array, " n"]
    factors: sparse.WayFactors
    dense: _LowRank | None
    singular: Bool[Array, ""]
    damped: Bool[Array, ""]
    pattern: Pattern = eqx.field(static=True)
    way: sparse.Way = eqx.field(static=True)

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
        """(N + UᴴU)⁻¹ g, by Woodbury's formula."""
        s = sparse.substituted(self.way, self.factors, g)
        if self.dense is None:
            return s
        rows, solved, inner = self.dense
        return s - matmul(solved, jsl.cho_solve((inner, True), matmul(rows, s)))


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


def normal(
    values: Inexact[Array, " entries"], pattern: Pattern, way: sparse.Way
) -> Normal:
    """JᵀJ of the matrix J with these values, to be factorised in that way.

    Cost: the sum of the squared lengths of the rows.
    """
    norms = column_norms(values, pattern)
    empty = norms == 0
    norms = jnp.where(empty, 1, norms)
    values = values / norms.astype(values.dtype)[pattern.cols]
    gram = sums_of_products(values, pattern)
    return Normal(values, gram, norms, empty, pattern, way)


def factorise(
    normal: Normal, root: Real[Array, ""], scale: Real[Array, " n"] | None
) -> Factorised:
    """That of BᵀB for one λ = root² and one D.

    Cost: one Cholesky factorisation, and a substitution for each dense row; nothing for
    a λ that is not a number.
    """
    pattern = normal.pattern
    dtype = normal.values.dtype
    eps = jnp.finfo(dtype).eps
    damped = jnp.broadcast_to(root, normal.norms.shape)
    damped = damped if scale is None else damped * scale
    own = jnp.where(normal.empty, 0, normal.norms)
    lengths = jnp.hypot(own, damped)
    lengths = jnp.where(lengths == 0, 1, lengths)
    weight, lower = own / lengths, damped / lengths
    # So much more that rounding leaves no pivot negative; a zero column gets a pivot.
    more = lower**2 + jnp.where((weight == 0) & (lower == 0), 1, 100 * eps)
    values = normal.values * weight.astype(dtype)[pattern.cols]
    wanted = ~jnp.isnan(root)
    factors = sparse.factor_positive(normal.way, normal.gram, weight, more, wanted)
    return Factorised(
        values,
        lower,
        lengths,
        factors,
        _low_rank(values, pattern, normal.way, factors),
        jnp.any((weight == 0) & (lower == 0)),
        root > 0,
        pattern,
        normal.way,
    )


def _low_rank(
    values: Inexact[Array, " entries"],
    pattern: Pattern,
    way: sparse.Way,
    factors: sparse.WayFactors,
) -> _LowRank | None:
    """Eight dense rows of 20,000 unknowns took 34 ms by a correction for each, which
    lost four digits where they were heavy, and take 11 ms so; one, 5.6 and 5.0."""
    long = dense_rows(pattern)
    if len(long) == 0:
        return None
    at = np.flatnonzero(np.isin(pattern.rows, long))
    place = np.searchsorted(long, pattern.rows[at]), pattern.cols[at]
    rows = jnp.zeros((len(long), pattern.shape[1]), values.dtype)
    rows = rows.at[place].set(values[at], unique_indices=True)
    solve = lambda row: sparse.substituted(way, factors, row)
    solved = jax.vmap(solve, out_axes=1)(jnp.conj(rows))
    inner = jnp.eye(len(long), dtype=values.dtype) + matmul(rows, solved)
    return _LowRank(rows, solved, jnp.linalg.cholesky(inner))


def is_singular(factorised: Factorised) -> Bool[Array, ""]:
    """Whether the least singular value of B is a rounding error.

    Two vectors are tried. One is from inverse iteration. Where a pivot was raised, its
    factors are those of a regular matrix; so the other is what is left of a vector u
    without the solution of B z = B u, which lies in the null space. Without a damping
    B is singular as well if u is not found again to three digits.

    Cost: nothing, unless a pivot was raised: three substitutions and a solve.
    """
    m, n = factorised.pattern.shape
    if n == 0:
        return jnp.array(False)
    dtype = factorised.values.dtype
    eps = jnp.finfo(dtype).eps
    start = _unit(jnp.asarray(np.random.default_rng(0).normal(size=n), dtype))

    def null_space():
        undamped = ~factorised.damped
        given = factorised.multiply(start)
        v = start - solve(factorised, given, settled=undamped)[0]
        lost = undamped & ~(jnp.linalg.norm(v) <= 1e-3)
        # Nothing at all is left of the best: then `start` says that B is regular.
        v = jnp.where(jnp.linalg.norm(v) > 0, _unit(v), start)
        least = jnp.minimum(_least(factorised), _norm(factorised.multiply(v)))
        threshold = jnp.where(factorised.damped, 4, 4 * max(m, n)) * eps
        return lost | ~(least > threshold)

    found = lax.cond(_suspect(factorised), null_space, lambda: jnp.array(False))
    return factorised.singular | found


def _suspect(factorised: Factorised) -> Bool[Array, ""]:
    factors = factorised.factors
    if isinstance(factors, sparse.ScalarFactors):
        return ~factors.sound | factors.failed
    return factors.raised | factors.failed


def _unit(u: Array) -> Array:
    return u / jnp.linalg.norm(u).astype(u.dtype)


def _least(factorised: Factorised) -> Array:
    """‖B u‖ for a u of length one from three steps of inverse iteration."""
    n = factorised.pattern.shape[1]
    start = jnp.asarray(np.random.default_rng(0).normal(size=n))
    start = start.astype(factorised.values.dtype)

    def step(_, carry):
        u = _unit(factorised.precondition(carry[0]))
        # Here, for outside of the loop XLA makes the product a part of the norm, entry
        # by entry: 1.0 ms of 20,000 rows, in place of 0.2.
        return u, factorised.multiply(u)

    carry = start, factorised.multiply(jnp.zeros_like(start))
    return _norm(lax.fori_loop(0, 3, step, carry)[1])


def has_null_space(factorised: Factorised) -> Bool[Array, ""]:
    """Whether inverse iteration finds one: then a solve would not converge.

    Cost: nothing, unless a pivot was raised: three substitutions.
    """
    m, n = factorised.pattern.shape
    if n == 0:
        return jnp.array(False)
    eps = jnp.finfo(factorised.values.dtype).eps
    look = lambda: ~(in_lanes(_least)(factorised) > 4 * max(m, n) * eps)
    return lax.cond(_suspect(factorised), look, lambda: jnp.array(False))


def _norm(pair: tuple[Array, Array]) -> Array:
    return jnp.sqrt(sum(jnp.sum(jnp.abs(x) ** 2) for x in pair))


def solve(
    factorised: Factorised,
    b: tuple[Array, Array] | None,
    c: Array | None = None,
    *,
    unless: Bool[Array, ""] | bool = False,
    settled: Bool[Array, ""] | bool = False,
    corrected: bool = True,
    enough: float | None = None,
) -> tuple[Array, tuple[Array, Array], Bool[Array, ""]]:
    """z and y = B z with BᵀB z = Bᵀ b + c, both without the lengths of the columns.

    Conjugate gradients in the form for least squares. The first step is that of the
    seminormal equations; the second corrects it. A pivot that was raised costs one
    more.

    A small gradient says little along small singular values: the last correction is
    looked at as well, until it is below √ε of z, and has to be near that if `settled`.
    If not `corrected`, the first step may be all, where its gradient is small.
    `enough`: a relative size of that which will do. `unless`: not at all.

    Source: Björck, *Numerical Methods for Least Squares Problems*, SIAM (1996), §6.6.3,
    §7.4; Hestenes, Stiefel, *Methods of conjugate gradients for solving linear
    systems*, J. Res. NBS 49 (1952).
    """
    # All at once, 16 fits of 500 poses took 45 ms for what takes 11 one by one.
    solve = in_lanes(ft.partial(_solve, corrected=corrected, enough=enough))
    return solve(factorised, b, c, jnp.asarray(unless), jnp.asarray(settled))


def _solve(
    factorised: Factorised,
    b: tuple[Array, Array] | None,
    c: Array | None,
    unless: Bool[Array, ""],
    settled: Bool[Array, ""],
    *,
    corrected: bool,
    enough: float | None,
) -> tuple[Array, tuple[Array, Array], Bool[Array, ""]]:
    dtype = factorised.values.dtype
    eps = jnp.asarray(float(jnp.finfo(dtype).eps), jnp.finfo(dtype).dtype)
    add = lambda x, a, y: jax.tree_util.tree_map(lambda u, v: u + a * v, x, y)
    m, n = factorised.pattern.shape
    if b is None:
        assert c is not None
        b, right = (jnp.zeros((m,), dtype), jnp.zeros((n,), dtype)), c
    else:
        right = factorised.adjoint(b)
        right = right if c is None else right + c
    size_c = jnp.linalg.norm(right)

    def gradient(y):
        g = factorised.adjoint(add(b, jnp.asarray(-1, dtype), y))
        return g if c is None else g + c

    def unfinished(state):
        *_, error, change, count, stop = state
        more = (error > 1) | (change > 1) if corrected else error > 1
        # A pivot that was raised hides what a small gradient leaves to be done.
        fewest = 2 if corrected else jnp.where(_suspect(factorised), 2, 1)
        return ~stop & ((count < fewest) | (more & (count < _MOST)))

    def step(state):
        z, y, g, p, last, _, _, count, _ = state
        s = factorised.precondition(g)
        rho = jnp.sum(jnp.conj(g) * s).real
        beta = jnp.where(last > 0, rho / jnp.where(last > 0, last, 1), 0)
        p = s + beta.astype(dtype) * p
        q = factorised.multiply(p)
        length = _norm(q) ** 2
        usable = (length > 0) & (rho > 0)
        alpha = jnp.where(usable, rho / jnp.where(usable, length, 1), 0).astype(dtype)
        z, y = z + alpha * p, add(y, alpha, q)
        step_size = jnp.linalg.norm(alpha * p)
        g = gradient(y)
        # Columns have length one: this is the backward error.
        remaining = _norm(add(b, jnp.asarray(-1, dtype), y))
        bound = remaining + jnp.linalg.norm(z) if c is None else size_c + _norm(y)
        bound = 8 * eps * bound + (0 if enough is None else enough * size_c)
        error = jnp.max(jnp.abs(g), initial=0) / jnp.where(bound > 0, bound, 1)
        error = jnp.where(bound > 0, error, 0)
        whole = jnp.sqrt(eps) * jnp.linalg.norm(z)
        change = jnp.where(whole > 0, step_size / jnp.where(whole > 0, whole, 1), 0)
        stop = ~usable | ~jnp.isfinite(error)
        return z, y, g, p, rho, error, change, count + 1, stop

    zero = jnp.zeros((n,), dtype)
    real = jnp.zeros((), eps.dtype)
    y = jax.tree_util.tree_map(jnp.zeros_like, b)
    infinite = real + jnp.inf
    start = (zero, y, right, zero, real, infinite, infinite, jnp.int32(0), unless)
    z, y, *_, error, change, _, _ = lax.while_loop(unfinished, step, start)
    # A NaN in what was given has stopped it early: let it be seen.
    bad = jnp.where(jnp.isfinite(size_c), 0, jnp.nan).astype(dtype)
    good = (error <= 1000) & (~settled | (change <= 1000))
    return z + bad, y, good | (size_c == 0)
