"""One equation, linearised by itself."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp


_debug_info = jex.DebugInfo("an equation", "lineax_ext", None, None)


def is_smooth(x: Any) -> bool:
    """Whether it can have a derivative."""
    return jnp.issubdtype(x.aval.dtype, jnp.inexact)


def inputs(eqn: jex.JaxprEqn) -> list[Any]:
    """Each once, without literals."""
    return list(dict.fromkeys(x for x in eqn.invars if not isinstance(x, jex.Literal)))


def alone(eqn: jex.JaxprEqn) -> jex.Jaxpr:
    """The program of its `inputs` that returns those of its outputs that are smooth."""
    outs = [x for x in eqn.outvars if is_smooth(x)]
    return jex.Jaxpr([], inputs(eqn), outs, [eqn], debug_info=_debug_info)


def linearised(eqn: jex.JaxprEqn, moving: Sequence[bool]) -> jex.ClosedJaxpr:
    """The program `(*inputs, *tangents) -> tangents`: the tangents of those inputs that
    are `moving`, and of those outputs that are smooth."""
    fn = jex.jaxpr_as_fun(jex.ClosedJaxpr(alone(eqn), []))
    structs = [jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype) for x in inputs(eqn)]

    def apply(values, tangents):
        def at(*point):
            given = iter(point)
            return fn(*[next(given) if m else x for m, x in zip(moving, values)])

        point = [x for m, x in zip(moving, values) if m]
        return jax.linearize(at, *point)[1](*tangents)

    return jax.make_jaxpr(apply)(structs, [x for m, x in zip(moving, structs) if m])
