"""The blocks of the factors, from where classes left them to where groups want them."""

import functools as ft
from typing import NamedTuple

import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact

from .symbolic import Symbolic


class Blocks(NamedTuple):
    """Of a front with the blocks A, B; C, D: A⁻¹, and C A⁻¹ under it, which are read
    together; and A⁻¹ B.

    Of a Hermitian matrix C A⁻¹ is the adjoint of A⁻¹ B, and not there.
    """

    columns: Inexact[Array, "steps batch p+u p"] | Inexact[Array, "steps batch p p"]
    up: Inexact[Array, "steps batch p u"]

    @property
    def inverse(self) -> Inexact[Array, "*batch p p"]:
        return self.columns[..., : self.up.shape[-2], :]

    @property
    def low(self) -> Inexact[Array, "*batch u p"]:
        p = self.up.shape[-2]
        if self.columns.shape[-2] == p:
            return jnp.conj(self.up.mT)
        return self.columns[..., p:, :]


class _Rows(NamedTuple):
    """Where each row of some blocks starts, `start[s, b, i]`, and how many numbers of
    front s, b are its own, `width[s, b]`: what is beyond belongs to the next row."""

    start: np.ndarray
    width: np.ndarray
    length: int


def packed(symbolic: Symbolic, store: Inexact[Array, " store"]) -> tuple[Blocks, ...]:
    """The blocks of each group of `symbolic.sweep`.

    Rows are copied whole: as fast as a copy, where single entries took twice as long.
    """
    return tuple(
        Blocks(_taken(store, columns), _taken(store, up))
        for columns, up in _plan(symbolic)
    )


def _taken(store: Array, rows: _Rows) -> Array:
    dimensions = lax.GatherDimensionNumbers(
        offset_dims=(rows.start.ndim,), collapsed_slice_dims=(), start_index_map=(0,)
    )
    start = jnp.asarray(rows.start[..., None])
    size = (rows.length,)
    out = lax.gather(store, start, dimensions, size, mode="promise_in_bounds")
    if np.all(rows.width >= rows.length):
        return out
    own = np.arange(rows.length) < rows.width[..., None]
    return jnp.where(own[:, :, None], out, 0)


@ft.lru_cache(maxsize=64)
def _plan(symbolic: Symbolic) -> list[tuple[_Rows, _Rows]]:
    fronts, schedule = symbolic.fronts, symbolic.schedule
    p, u = fronts.pivots, fronts.boundaries
    # Of each front: its place in its class, and the class.
    place, kind = np.zeros((2, len(p)), np.int64)
    for k, c in enumerate(schedule.classes):
        flat = c.members.ravel()
        real = np.flatnonzero(flat >= 0)
        place[flat[real]], kind[flat[real]] = real, k
    of_class = {
        name: np.array([getattr(c, name) for c in schedule.classes])
        for name in ("p", "u", "inverse", "low", "up")
    }

    def rows(members, name, tall, wide, count, number, length):
        real, f = members >= 0, np.where(members >= 0, members, 0)
        k, i = kind[f], np.arange(number)
        height, width = of_class[tall][k], of_class[wide][k]
        first = of_class[name][k] + place[f] * height * width
        start = first[..., None] + i * width[..., None]
        there = real[..., None] & (i < count[f][..., None])
        start = np.where(there, start, schedule.zeros)
        return _Rows(start.astype(np.int32), np.where(real, width, length), length)

    def columns(g):
        inverse = rows(g.members, "inverse", "p", "p", p, g.p, g.p)
        if symbolic.symmetric:
            return inverse
        low = rows(g.members, "low", "u", "p", u, g.u, g.p)
        start = np.concatenate([inverse.start, low.start], axis=2)
        return _Rows(start, inverse.width, g.p)

    return [
        (columns(g), rows(g.members, "up", "p", "u", p, g.p, g.u))
        for g in symbolic.sweep.groups
    ]
