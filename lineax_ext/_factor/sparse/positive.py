"""Cholesky factorisations in three ways: by fronts, entry by entry, with a border."""

import functools as ft
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Inexact, Real

from ..._structure.known import locate, lower_half
from ..._structure.pattern import Pattern
from .bordered import (
    Bordered,
    BorderedFactors,
    factor_bordered,
    substitute as by_border,
)
from .factor import factor
from .lanes import in_lanes_if
from .numeric import Factors
from .scalar import Scalar, ScalarFactors, substitute as one_by_one
from .substitute import substitute
from .symbolic import Symbolic


Way: TypeAlias = Symbolic | Scalar | Bordered
WayFactors: TypeAlias = Factors | ScalarFactors | BorderedFactors


def factor_positive(
    way: Way,
    half: Inexact[Array, " half"],
    weight: Real[Array, " n"],
    more: Real[Array, " n"],
    wanted: Bool[Array, ""],
) -> WayFactors:
    """The factors of a Hermitian positive definite matrix T A T + E, with a diagonal of
    about one, of A the lower `half` of its entries, in the order of `way.pattern`, of
    diagonal T and E the `weight` and `more`. Zeros, and no work, unless `wanted`.
    """
    if isinstance(way, Bordered):
        each = ft.partial(factor_bordered, way)
    else:
        each = lambda *args: factor(way, _whole(way.pattern, *args))
    return in_lanes_if(each)(half, weight, more, wanted)


def _whole(pattern: Pattern, half: Array, weight: Array, more: Array) -> Array:
    """All entries of T A T + E."""
    number, diagonal = _halves(pattern)
    rows, cols = pattern.rows, pattern.cols
    values = half.at[number].get(mode="promise_in_bounds")
    values = jnp.where(rows >= cols, values, jnp.conj(values))
    values = values * (weight[rows] * weight[cols]).astype(values.dtype)
    return values.at[diagonal].add(more.astype(values.dtype), unique_indices=True)


@ft.lru_cache(maxsize=64)
def _halves(pattern: Pattern) -> tuple[np.ndarray, np.ndarray]:
    """Of each entry, that of the lower half which it is or mirrors; and where the
    diagonal is."""
    rows, cols = pattern.rows, pattern.cols
    number = locate(lower_half(pattern), np.maximum(rows, cols), np.minimum(rows, cols))
    return number, np.flatnonzero(rows == cols)


def substituted(
    way: Way, factors: WayFactors, b: Inexact[Array, " n"]
) -> Inexact[Array, " n"]:
    """A⁻¹ b of what was factorised: O(fill)."""
    if isinstance(way, Bordered):
        assert isinstance(factors, BorderedFactors)
        return by_border(way, factors, b)
    if isinstance(way, Scalar):
        assert isinstance(factors, ScalarFactors)
        return one_by_one(way, factors, b[:, None])[:, 0]
    assert isinstance(factors, Factors)
    return substitute(way, factors, b[:, None])[:, 0]
