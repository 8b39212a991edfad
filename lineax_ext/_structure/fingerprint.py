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
    jaxpr: jex.Jaxpr | jex.ClosedJaxpr,
    numbers: dict[Any, int],
    differentiated: bool = False,
) -> Hashable:
    """Nested tuples that are equal for equal computations, and if they are to be
    `differentiated`, for equal derivatives."""
    # Closed and open ones are of one class from jax 0.12 on.
    consts = tuple(map(_value, getattr(jaxpr, "consts", ())))
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)

    def atom(x):
        if isinstance(x, jex.Literal):
            return _value(x.val)
        return numbers.setdefault(x, len(numbers)), x.aval

    def param(x):
        if isinstance(x, jex.Jaxpr | jex.ClosedJaxpr):
            return fingerprint(x, numbers, differentiated)
        if isinstance(x, tuple | list):
            return tuple(map(param, x))
        if isinstance(x, np.ndarray):
            return _value(x)
        try:
            hash(x)
        except TypeError:
            return object()  # like nothing else
        return x

    def equation(eqn):
        # A callback is opaque, whichever it is; and often a new one each time.
        named = () if "callback" in eqn.primitive.name else sorted(eqn.params)
        if eqn.primitive.name == "custom_jvp_call":
            called = fingerprint(eqn.params["call_jaxpr"], numbers, differentiated)
            params = [called, _rule(eqn, numbers) if differentiated else None]
        else:
            params = [(name, param(eqn.params[name])) for name in named]
        ins, outs = map(atom, eqn.invars), map(atom, eqn.outvars)
        return eqn.primitive, tuple(ins), tuple(outs), tuple(params)

    ins = map(atom, (*jaxpr.constvars, *jaxpr.invars))
    outs = map(atom, jaxpr.outvars)
    return consts, tuple(ins), tuple(map(equation, jaxpr.eqns)), tuple(outs)


def _rule(eqn: jex.JaxprEqn, numbers: dict[Any, int]) -> Hashable:
    """Of a function with a derivative of its own: that is a new one each time, too."""
    try:
        rule = linearised(eqn, [is_smooth(x) for x in inputs(eqn)])
    except Exception:  # it has none, where none may be needed
        return object()
    return fingerprint(rule, numbers)


def _value(x: Any) -> Hashable:
    if isinstance(x, Tracer):
        return "traced", x.aval
    dtype = getattr(x, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.extended):
        return dtype, _value(jax.random.key_data(x))
    x = np.asarray(x)
    return x.shape, x.dtype, hashlib.sha256(x.tobytes()).digest()
