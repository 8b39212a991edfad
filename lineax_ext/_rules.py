"""The rules that `lineax.diagonal` and `lineax.tridiagonal` dispatch to.

Registered, for `JacobianLinearOperator`, `FunctionLinearOperator` and
`TaggedLinearOperator`, when `lineax_ext` is imported.
"""

import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Inexact

from ._flat import result_dtype
from ._structure.extract import read_band, read_diagonals, reader, untagged
from ._structure.pattern import bandwidth


# Operators whose entries are not at hand: they can only be applied.
_applied = (
    lx.JacobianLinearOperator,
    lx.FunctionLinearOperator,
    lx.AddLinearOperator,
    lx.MulLinearOperator,
    lx.NegLinearOperator,
    lx.DivLinearOperator,
    lx.ComposedLinearOperator,
)


def _diagonals(
    operator: lx.AbstractLinearOperator, offsets: tuple[int, ...]
) -> tuple[Inexact[Array, " length"], ...]:
    read = reader(operator)
    implied = bandwidth(operator)
    if implied is None:
        found = read_diagonals(read, offsets)
    else:
        found = read_band(read, *implied)
        m, n = read.shape
        for d in offsets:
            if d not in found:  # zero, says the tag
                length = max(0, min(m, n - d) if d > 0 else min(m + d, n))
                found[d] = jnp.zeros((length,), read.dtype)
    return tuple(found[d] for d in offsets)


@lx.diagonal.register(lx.JacobianLinearOperator)
@lx.diagonal.register(lx.FunctionLinearOperator)
def _diagonal(operator):
    if lx.has_unit_diagonal(operator):
        length = min(operator.out_size(), operator.in_size())
        return jnp.ones((length,), result_dtype(operator.out_structure()))
    return _diagonals(operator, (0,))[0]


@lx.tridiagonal.register(lx.JacobianLinearOperator)
@lx.tridiagonal.register(lx.FunctionLinearOperator)
def _tridiagonal(operator):
    diagonal, lower, upper = _diagonals(operator, (0, -1, 1))
    return diagonal, lower, upper


def _adds_structure(operator: lx.TaggedLinearOperator) -> bool:
    """Whether the tags say more of the entries than the operator inside knows."""
    inner = untagged(operator)
    if isinstance(inner, lx.JacobianLinearOperator | lx.FunctionLinearOperator):
        return True
    # For a sum or a product lineax's own rule is the better one if it knows as much.
    return isinstance(inner, _applied) and bandwidth(operator) != bandwidth(inner)


@lx.diagonal.register(lx.TaggedLinearOperator)
def _tagged_diagonal(operator):
    if _adds_structure(operator):
        return _diagonal(operator)
    return lx.diagonal(operator.operator)


@lx.tridiagonal.register(lx.TaggedLinearOperator)
def _tagged_tridiagonal(operator):
    if _adds_structure(operator):
        return _tridiagonal(operator)
    return lx.tridiagonal(operator.operator)
