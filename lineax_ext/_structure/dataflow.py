"""The program v ↦ A v run on index sets: which outputs depend on which entries of v.

Three kinds of values: constants, of which the value is known if it is asked for; what
depends on the operator, but not on v, whose value is never relied on; and the sets of
those that depend on v. The rules of primitives are in `rules.py` and in the files that
it names, loops in `loops.py`; calls are inlined.

The program is a linear map already, so that whatever an output is computed from counts:
also by way of integers or comparisons, which no linear map does.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.extend.core as jex
import numpy as np
from jax.core import Tracer

# Importing them registers their rules.
from . import batches as batches, loops as loops, moving as moving, summing as summing
from .index_sets import cut, everything, IndexSets, joined, union
from .rules import linear, RULES, shape_of
from .values import constant, independent, known, unknown, Value


# Where a call keeps the jaxpr that is called.
_calls = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "linear_call": "callee",
    "composite": "jaxpr",
    "eval_jaxpr": "call_jaxpr",  # from jax 0.12 on
}


class _Mutable(Exception):
    """An array that is written to in place."""


class Flow:
    """An interpreter of jaxprs. `strangers` are the primitives without a rule that it
    has met on the way of v. Where it is `strict`, a rule that fails is an error."""

    strict = False

    def __init__(self):
        self.strangers: dict[str, None] = {}

    def run(self, jaxpr: Any, args: Sequence[Value]) -> list[Value]:
        traced = lambda x: isinstance(x, Tracer)
        consts = getattr(jaxpr, "consts", ())
        consts = [unknown if traced(x) else constant(x) for x in consts]
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        inputs = (*jaxpr.constvars, *jaxpr.invars)
        env = dict(zip(inputs, (*consts, *args), strict=True))

        def read(atom):
            return constant(atom.val) if isinstance(atom, jex.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            if any(hasattr(x.aval, "inner_aval") for x in (*eqn.invars, *eqn.outvars)):
                raise _Mutable
            if len(eqn.outvars) > 0:  # as they are for a callback that prints
                outs = self.equation(eqn, [read(x) for x in eqn.invars])
                env.update(zip(eqn.outvars, outs))
        return [read(x) for x in jaxpr.outvars]

    def equation(self, eqn: jex.JaxprEqn, ins: list[Value]) -> list[Value]:
        name = eqn.primitive.name
        if name in _calls and _calls[name] in eqn.params:
            return self.run(eqn.params[_calls[name]], ins)
        if not any(isinstance(x, IndexSets) for x in ins):
            return independent(eqn, ins)
        try:
            if name in _control:
                return _control[name](self, eqn, ins)
            outs = RULES[name](eqn, ins)
        except (AttributeError, KeyError, TypeError):
            # No rule; or a release of JAX that has other parameters for it.
            if self.strict and (name in _control or name in RULES):
                raise
            self.strangers[name] = None
            outs = None
        return self.anything(eqn, ins) if outs is None else list(outs)

    def anything(self, eqn: jex.JaxprEqn, ins: Sequence[Value]) -> list[Value]:
        """All outputs depend on all that reaches the equation, and on no more."""
        reached = everything(linear(ins), ())
        return [reached.broadcast(shape_of(x)) for x in eqn.outvars]

    def cond(self, eqn: jex.JaxprEqn, ins: list[Value]) -> list[Value]:
        (index, *operands), branches = ins, eqn.params["branches"]
        which = known(index)
        if which is not None:
            which = min(max(int(which), 0), len(branches) - 1)
            return self.run(branches[which], operands)
        found = zip(*[self.run(branch, operands) for branch in branches])
        outs = []
        for values, out in zip(found, eqn.outvars):
            sets, shape = linear(values), shape_of(out)
            if isinstance(index, IndexSets):
                sets.append(everything([index], shape))
            outs.append(union(sets, shape) if sets else unknown)
        return outs

    def linear_solve(self, eqn: jex.JaxprEqn, ins: list[Value]) -> list[Value]:
        """By the program that solves, if only the right-hand side depends on v."""
        lengths, jaxprs = eqn.params["const_lengths"], eqn.params["jaxprs"]
        first = lengths.matvec + lengths.vecmat
        last = first + lengths.solve
        if linear(ins[: sum(lengths)]):
            return self.anything(eqn, ins)
        rhs = ins[sum(lengths) :]
        return self.run(jaxprs.solve, [*ins[first:last], *rhs])


_control = {
    "cond": Flow.cond,
    "scan": loops.scan,
    "while": loops.while_loop,
    "custom_linear_solve": Flow.linear_solve,
}


def follow(flow: Flow, program: jex.ClosedJaxpr, count: int) -> IndexSets:
    """What all outputs of a program depend on among the entries of its last `count`
    inputs, each laid out in one line after the other. The other inputs are unknown."""
    inputs = program.jaxpr.invars
    shapes = [shape_of(x) for x in inputs[len(inputs) - count :]]
    vector = IndexSets.identity((sum(map(math.prod, shapes)),))
    args = [*[unknown] * (len(inputs) - count), *cut(vector, shapes)]
    shapes = [shape_of(x) for x in program.jaxpr.outvars]
    size = sum(math.prod(shape) for shape in shapes)
    try:
        outs = flow.run(program, args)
    except _Mutable:
        flow.strangers["ref"] = None
        return everything([vector], (size,))
    if not linear(outs):
        return vector.map(lambda p: np.zeros(size, np.int32), (size,))
    return joined([x if isinstance(x, IndexSets) else s for x, s in zip(outs, shapes)])
