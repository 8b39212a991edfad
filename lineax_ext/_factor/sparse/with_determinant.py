"""A sparse factorisation that knows its determinant, with derivatives by hand."""

import functools as ft

import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from ..sparse_product import sparse_product
from ..with_determinant import Factored, slogdet_tangents
from .factor import factor
from .numeric import determinant, Factors
from .selected import selected_inverse
from .solve import solve
from .symbolic import Symbolic


def with_determinant(
    symbolic: Symbolic, values: Inexact[Array, " entries"]
) -> Factored:
    """P A Q = L U, or A = L Lᴴ, in the order of the pattern.

    The factors are constants to JAX; derivatives come from the values, and need no more
    of A⁻¹ than A has entries.
    """
    factors = lax.stop_gradient(factor(symbolic, lax.stop_gradient(values)))
    sign, logabsdet = _slogdet(symbolic, values, factors)
    return Factored(sign, logabsdet, ft.partial(_solve, symbolic, values, factors))


def _solve(
    symbolic: Symbolic, values: Array, factors: Factors, b: Inexact[Array, " n"]
) -> Inexact[Array, " n"]:
    """A⁻¹ b; nan where the residual could not be taken down."""

    def run(transpose, b):
        x, good = solve(symbolic, factors, b[:, None], transpose=transpose)
        return jnp.where(good, x, jnp.nan)[:, 0]

    return lax.custom_linear_solve(
        lambda x: sparse_product(values, symbolic.pattern, x),
        b,
        lambda _, b: run(False, b),
        lambda _, b: run(True, b),
    )


@ft.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _slogdet(symbolic: Symbolic, values: Array, factors: Factors):
    sign, logabsdet = determinant(symbolic, factors)
    if symbolic.symmetric:
        good, singular = ~factors.failed, jnp.array(False)
    else:
        # With a raised pivot it is the determinant of another matrix. That of this one
        # is zero if nothing can be solved with it, and not known if it can. A loop of
        # one round: under `vmap`, a `cond` would do so for every matrix.
        def look(_):
            b = jax.random.normal(jax.random.key(0), (len(factors.row_scale), 1))
            return solve(symbolic, factors, b.astype(sign.dtype))[1][0], False

        good = ~factors.raised
        start = jnp.array(True), ~good
        singular = ~lax.while_loop(lambda state: state[1], look, start)[0]
    unknown = jnp.where(singular, 0, jnp.nan).astype(sign.dtype)
    log_unknown = jnp.where(singular, -jnp.inf, jnp.nan).astype(logabsdet.dtype)
    return jnp.where(good, sign, unknown), jnp.where(good, logabsdet, log_unknown)


@_slogdet.defjvp
def _(symbolic, primals, tangents):
    values, factors = primals
    out = _slogdet(symbolic, values, factors)
    # tr(A⁻¹ dA)
    trace = jnp.sum(_inverse(symbolic, values, factors) * tangents[0])
    return out, slogdet_tangents(out[0], trace)


@ft.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _inverse(symbolic: Symbolic, values: Array, factors: Factors):
    """(A⁻¹)ⱼᵢ for each entry (i, j) of the pattern."""
    return selected_inverse(symbolic, factors)


# So many columns of the inverse are made at once for its derivative.
_COLUMNS = 64


@_inverse.defjvp
def _(symbolic, primals, tangents):
    """d A⁻¹ = −A⁻¹ dA A⁻¹, by chunks of its columns: O(n · fill), for second
    derivatives alone."""
    values, factors = primals
    pattern, n = symbolic.pattern, symbolic.pattern.shape[0]
    apply = jax.vmap(lambda b: _solve(symbolic, values, factors, b), 1, 1)

    def chunk(out, start):
        columns = start + jnp.arange(_COLUMNS, dtype=jnp.int32)
        eye = (jnp.arange(n, dtype=jnp.int32)[:, None] == columns[None, :]).astype(
            values.dtype
        )
        change = sparse_product(tangents[0], pattern, apply(eye))
        change = -apply(change)
        # Entry (i, j) of the pattern wants row j of column i.
        within = jnp.asarray(pattern.rows) - start
        here = (within >= 0) & (within < _COLUMNS)
        found = change[pattern.cols, jnp.where(here, within, 0)]
        return jnp.where(here, found, out), None

    starts = jnp.arange(0, n, _COLUMNS, dtype=jnp.int32)
    change, _ = lax.scan(chunk, jnp.zeros_like(values), starts)
    return _inverse(symbolic, *primals), change
