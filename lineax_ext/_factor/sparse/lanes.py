"""Many matrices of one pattern."""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core as jex
import jax.lax as lax
import jax.numpy as jnp
from jax.core import Tracer

from ..constant import constant


def in_lanes(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, of which `jax.vmap` on a CPU does one matrix after the other.

    The fronts of several do not stay in its caches: 32 matrices of 2048 unknowns took
    2.5 times as long all at once. Entry by entry, four of them in a step took half as
    long again as one after the other, with eight entries in a step. Where there are
    more devices than one, they may be spread over them, and a loop would bring them
    together.

    Its first argument is the matrix: all at once, if that is one and the same.
    """

    def apply(*args):
        program, out = jax.make_jaxpr(fn, return_shape=True)(*args)
        # All lanes have the same index arrays; `vmap` of a `lax.cond` would not know.
        known = [not isinstance(x, Tracer) for x in program.consts]
        given = [x for x, is_known in zip(program.consts, known) if not is_known]
        own = [x if is_known else None for x, is_known in zip(program.consts, known)]
        structure = jax.tree_util.tree_structure(out)
        return _by_arguments(program.jaxpr, own, structure)(given, *args)

    return apply


def in_lanes_if(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`in_lanes(fn)` where one more argument, the last, is true; zeros, and no work,
    where it is not."""

    def apply(*args):
        *args, wanted = args
        shape = jax.eval_shape(fn, *args)
        none = lambda *_: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)
        return lax.cond(wanted, fn, none, *args)

    return in_lanes(apply)


def _by_arguments(
    program: jex.Jaxpr, own: list[Any], structure: Any
) -> Callable[..., Any]:
    """Of a program, whose constants are arguments unless they are `own`: `vmap` of a
    `lax.cond` batches those of its branches as well, and a `custom_vmap` with constants
    refuses."""

    def fn(constants, *args):
        given = iter(constants)
        all_ = [next(given) if x is None else constant(x) for x in own]
        closed = jex.ClosedJaxpr(program, all_)
        out = jex.jaxpr_as_fun(closed)(*jax.tree_util.tree_leaves(args))
        return jax.tree_util.tree_unflatten(structure, out)

    apply = jax.custom_batching.custom_vmap(fn)

    @apply.def_vmap
    def _(axis_size, in_batched, constants, *args):
        constants = [x[0] if b else x for x, b in zip(constants, in_batched[0])]
        each = lambda *args: fn(constants, *args)
        if not any(jax.tree_util.tree_leaves(in_batched[1:])):
            out = each(*args)
            return out, jax.tree_util.tree_map(lambda _: False, out)
        if not any(jax.tree_util.tree_leaves(in_batched[1])):
            axes = [
                jax.tree_util.tree_map(lambda b: 0 if b else None, batched)
                for batched in in_batched[1:]
            ]
            out = jax.vmap(each, in_axes=tuple(axes))(*args)
            return out, jax.tree_util.tree_map(lambda _: True, out)

        def spread(x, batched):
            return x if batched else jnp.broadcast_to(x, (axis_size, *jnp.shape(x)))

        args = jax.tree_util.tree_map(spread, args, tuple(in_batched[1:]))
        together = jax.vmap(each)
        if jax.device_count("cpu") > 1:
            out = together(*args)
        else:
            in_turn = lambda *args: lax.map(lambda x: apply(constants, *x), args)
            out = lax.platform_dependent(*args, cpu=in_turn, default=together)
        return out, jax.tree_util.tree_map(lambda _: True, out)

    return apply
