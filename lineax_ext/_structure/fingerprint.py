"""Computations, compared by value: what a pattern is cached by."""

import hashlib
from collections.abc import Hashable
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .linearised import inputs, is_smooth, linearised


def fingerprint(
    jaxpr: jex.Jaxpr | jex.ClosedJaxpr, differentiated: bool = False
) -> Hashable:
    """Nested tuples that are equal for equal computations, and if they are to be
    `differentiated`, for equal derivatives."""
    return _Fingerprint(differentiated)(jaxpr)


class _Fingerprint:
    def __init__(self, differentiated: bool):
        self.differentiated = differentiated
        self.numbers: dict[Any, int] = {}
        self.seen: dict[int, int] = {}

    def __call__(self, jaxpr: jex.Jaxpr | jex.ClosedJaxpr) -> Hashable:
        # What is called many times is one and the same; its variables have numbers.
        if id(jaxpr) in self.seen:
            return self.seen[id(jaxpr)]
        self.seen[id(jaxpr)] = len(self.seen)
        # Closed and open ones are of one class from jax 0.12 on.
        consts = tuple(map(_value, getattr(jaxpr, "consts", ())))
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        ins = tuple(map(self.atom, (*jaxpr.constvars, *jaxpr.invars)))
        equations = tuple(map(self.equation, jaxpr.eqns))
        return consts, ins, equations, tuple(map(self.atom, jaxpr.outvars))

    def atom(self, x):
        if isinstance(x, jex.Literal):
            return _value(x.val)
        return self.numbers.setdefault(x, len(self.numbers)), x.aval

    def param(self, x):
        if isinstance(x, jex.Jaxpr | jex.ClosedJaxpr):
            return self(x)
        if isinstance(x, tuple | list):
            return tuple(map(self.param, x))
        if isinstance(x, np.ndarray):
            return _value(x)
        try:
            hash(x)
        except TypeError:
            return object()  # like nothing else
        return x

    def equation(self, eqn: jex.JaxprEqn) -> Hashable:
        name, params = eqn.primitive.name, eqn.params
        if "callback" in name:  # opaque, whichever it is; and often a new one each time
            found = []
        elif name == "custom_jvp_call":
            found = [self(params["call_jaxpr"]), self.rule(eqn)]
        else:
            found = [(key, self.param(params[key])) for key in sorted(params)]
        ins, outs = map(self.atom, eqn.invars), map(self.atom, eqn.outvars)
        return eqn.primitive, tuple(ins), tuple(outs), tuple(found)

    def rule(self, eqn: jex.JaxprEqn) -> Hashable:
        """What comes with a function that has a derivative of its own is a new function
        each time, too: compared by what it does."""
        if not self.differentiated:
            return None
        try:
            rule = linearised(eqn, [is_smooth(x) for x in inputs(eqn)])
        except Exception:  # it has none, where none may be needed
            return object()
        return fingerprint(rule)


def _value(x: Any) -> Hashable:
    if isinstance(x, Tracer):
        return "traced", x.aval
    dtype = getattr(x, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.extended):
        return dtype, _value(jax.random.key_data(x))
    x = np.asarray(x)
    return x.shape, x.dtype, hashlib.sha256(x.tobytes()).digest()
