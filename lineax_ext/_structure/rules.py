"""How each family of primitives carries index sets from its inputs to its outputs.

A rule gets the equation and its inputs, of which at least one depends on the vector. It
returns one value for each output; or `None`, and then all outputs depend on everything
that reaches the equation.

Here is what is elementwise; the others are in `moving.py`, `summing.py`, `batches.py`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.extend.core as jex
import numpy as np

from .index_sets import IndexSets, union
from .values import known, nonzero, Value


Outs = Sequence[Value] | None
Rule = Callable[[jex.JaxprEqn, list[Value]], Outs]

RULES: dict[str, Rule] = {}


def rule(names: str) -> Callable[[Rule], Rule]:
    def register(fn):
        RULES.update({name: fn for name in names.split()})
        return fn

    return register


def shape_of(atom: Any) -> tuple[int, ...]:
    return tuple(atom.aval.shape)


def linear(values: Sequence[Value]) -> list[IndexSets]:
    return [x for x in values if isinstance(x, IndexSets)]


#
# Elementwise
#


@rule("""
    neg sign nextafter floor ceil round is_finite exp exp2 log expm1 log1p tanh logistic
    sin cos tan asin acos atan atan2 sinh cosh asinh acosh atanh real imag conj complex
    abs sqrt rsqrt cbrt square integer_pow pow not and or xor population_count clz add
    add_any sub mulhi rem max min shift_left shift_right_arithmetic
    shift_right_logical eq ne ge gt le lt eq_to le_to lt_to clamp lgamma digamma
    polygamma igamma igamma_grad_a igammac zeta bessel_i0e bessel_i1e erf erfc erf_inv
    regularized_incomplete_beta random_gamma_grad convert_element_type
    reduce_precision copy copy_p stop_gradient sharding_constraint layout_constraint
    mesh_cast reshard pvary device_put_elementwise nondifferentiable name
""")
def elementwise(eqn, ins):
    (out,) = eqn.outvars
    return [union(linear(ins), shape_of(out))]


@rule("mul")
def multiply(eqn, ins):
    """A constant factor that is zero takes an entry out, if nothing else is one."""
    return [_without_zeros(eqn, ins, ins)]


@rule("div")
def divide(eqn, ins):
    return [_without_zeros(eqn, ins, ins[:1])]


def _without_zeros(eqn, ins, factors: Sequence[Value]) -> IndexSets:
    shape = shape_of(eqn.outvars[0])
    out = union(linear(ins), shape)
    for x in factors:
        factor = nonzero(x)
        if factor is not None and not factor.all():
            mask = np.broadcast_to(factor, shape)
            out = out.map(lambda place, mask=mask: np.where(mask, place, 0), shape)
    return out


@rule("optimization_barrier device_put")
def each_its_own(eqn, ins):
    return ins


@rule("bitcast_convert_type")
def bitcast(eqn, ins):
    same = shape_of(eqn.invars[0]) == shape_of(eqn.outvars[0])
    return elementwise(eqn, ins) if same else None


@rule("select_n")
def select(eqn, ins):
    which, *cases = ins
    shape, chosen = shape_of(eqn.outvars[0]), known(which)
    if chosen is None:
        return [union(linear(ins), shape)]
    chosen = np.broadcast_to(chosen.astype(np.int64), shape)
    found = []
    for number, case in enumerate(cases):
        if isinstance(case, IndexSets):
            mask = chosen == number
            found.append(
                case.map(lambda place, mask=mask: np.where(mask, place, 0), shape)
            )
    return [union(found, shape)]
