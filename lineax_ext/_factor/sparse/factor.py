"""Values in, factors out, by whichever way suits the pattern."""

import functools as ft
from typing import overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from ..._structure.pattern import Pattern
from .lanes import in_lanes
from .numeric import factor_fronts, Factors
from .scalar import factor_entries, list_of, Scalar, ScalarFactors
from .symbolic import analyse, Symbolic


@ft.lru_cache(maxsize=64)
def plan(pattern: Pattern, symmetric: bool = False) -> Symbolic | Scalar:
    """Entry by entry on a CPU if that takes some milliseconds at most, or by fronts.

    Raises as `analyse`.
    """
    return entry_by_entry(pattern, symmetric) or analyse(pattern, symmetric)


def entry_by_entry(pattern: Pattern, symmetric: bool) -> Scalar | None:
    if jax.default_backend() == "cpu" and pattern.shape[0] == pattern.shape[1]:
        return list_of(pattern, symmetric)
    return None


@overload
def factor(symbolic: Symbolic, values: Array) -> Factors: ...
@overload
def factor(symbolic: Scalar, values: Array) -> ScalarFactors: ...
def factor(
    symbolic: Symbolic | Scalar, values: Inexact[Array, " entries"]
) -> Factors | ScalarFactors:
    """The factors of the matrix with these values, in the order of the pattern.

    Cost: O(flops) of `symbolic`; memory O(fill).
    """
    # Outside of `jit`, constants come back as numbers of Python.
    return jax.tree_util.tree_map(jnp.asarray, _apply(symbolic)(values))


@ft.lru_cache(maxsize=128)
def _apply(symbolic: Symbolic | Scalar):
    if isinstance(symbolic, Scalar):
        return in_lanes(ft.partial(factor_entries, symbolic))
    return in_lanes(ft.partial(factor_fronts, symbolic))
