"""One loop that eliminates all that supernodes list."""

import functools as ft

import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, Real

from ..constant import constant
from .supernodes import steps, Supernodes


BEYOND = 16  # entries, at most, that a step reads and does not have
_BYTES = 64  # of a step: XLA compiles what has many more to a loop of kernels

_slice = ft.partial(lax.dynamic_slice, allow_negative_indices=False)
_put = ft.partial(lax.dynamic_update_slice, allow_negative_indices=False)


def eliminated(
    plan: Supernodes, least: Real[Array, ""], entries: Inexact[Array, "half size 1"]
) -> Inexact[Array, "half size 1"]:
    """The reciprocals of D, where the diagonal was; L D below it; D U above it, or
    nothing, if there is one half, of a Hermitian matrix.

    A pivot below `least` is raised to it.

    What is eliminated with several columns is summed up first: as many additions, but
    less is looked up. The last axis is there for XLA: without it a step, which is
    otherwise the same, takes half as long again.
    """
    halves = len(entries)
    width = max(1, _BYTES // (halves * entries.dtype.itemsize))
    pivots, columns, places = (constant(x) for x in steps(plan, width))
    number = lambda x, i: _slice(x, (i,), (1,))[0]
    zero, last = jnp.int32(0), jnp.int32(halves - 1)

    def eliminate(j, entries):
        at, stride, count = (number(pivots, 3 * j + i) for i in range(3))
        x = _slice(entries, (last, at, zero), (1, 1, 1))
        size = jnp.abs(x)
        up = jnp.where(size > 0, least / size, 1).astype(x.dtype)
        raised = jnp.where(size > 0, x * up, least.astype(x.dtype))
        reciprocal = 1 / jnp.where(size < least, raised, x)
        entries = _put(entries, reciprocal, (last, at, zero))
        first = at - (count - 1) * (stride + 1)

        def subtract(k, entries):
            source, target, factor = (number(places, 3 * k + i) for i in range(3))

            def add(i, total):
                shift = i * stride
                c = _slice(entries, (zero, (source >> 5) + shift, zero), block)
                b = _slice(entries, (zero, factor + shift, zero), (halves, 1, 1))
                d = _slice(entries, (last, first + shift + i, zero), (1, 1, 1))
                # Of an entry below the diagonal, what is above it, and the reverse.
                b = jnp.conj(b * d) if halves == 1 else lax.rev(b, (0,)) * d
                return total + b * c

            block = (halves, width, 1)
            total = jnp.zeros(block, entries.dtype)
            total = lax.fori_loop(zero, count, add, total)
            if width > 1:  # nothing is taken from what is beyond a piece
                own = lax.broadcasted_iota(jnp.int32, (1, width, 1), 1) < (source & 31)
                total = jnp.where(own, total, 0)
            at = (zero, target, zero)
            return _put(entries, _slice(entries, at, block) - total, at)

        if places.size == 0:
            return entries
        start, end = number(columns, j), number(columns, j + 1)
        return lax.fori_loop(start, end, subtract, entries)

    return lax.fori_loop(zero, jnp.int32(len(plan.diagonal)), eliminate, entries)
