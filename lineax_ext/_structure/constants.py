"""Values that are constant although JAX has traced them."""

from typing import Any

import jax
import jax.extend.core as jex
import numpy as np
from jax.core import Tracer


def known_value(x: Any) -> Any:
    """`x`, or if it is a tracer that depends on nothing, what it will be.

    In `y.at[0].set(…)` the index is a constant. Linearised under `jit` it becomes a
    residual: a tracer like any other, of an equation without any input. The equation is
    looked up if JAX has it; if not, `x` is only less known than it could be.
    """
    if not isinstance(x, Tracer):
        return x
    try:
        with jax.ensure_compile_time_eval():
            return _value(x, [32])
    except Exception:  # `_Depends`, or what cannot be computed here
        return x


class _Depends(Exception):
    pass


def _value(x: Any, budget: list[int]) -> np.ndarray:
    lower = getattr(x, "full_lower", None)
    x = x if lower is None else lower()
    if isinstance(x, jex.Literal):
        x = x.val
    if not isinstance(x, Tracer):
        return np.asarray(x)
    equation: Any = getattr(x, "parent", None)
    budget[0] -= 1
    if not hasattr(equation, "in_tracers") or budget[0] < 0:
        raise _Depends
    primitive, inputs = equation.primitive, equation.in_tracers
    opaque = len(inputs) == 0 and primitive.name != "iota"
    if opaque or equation.effects or "callback" in primitive.name:
        raise _Depends
    out = primitive.bind(*[_value(i, budget) for i in inputs], **equation.params)
    if not primitive.multiple_results:
        return np.asarray(out)
    (which,) = (i for i, var in enumerate(equation.outvars) if var is x.val)
    return np.asarray(out[which])
