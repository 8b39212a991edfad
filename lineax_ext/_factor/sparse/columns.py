"""Products and substitutions with triangles, column by column, some entries a step."""

import functools as ft
from collections.abc import Callable

import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, UInt32

from ..constant import constant


# Numbers without a sign: looking whether one is negative took a tenth of the time.
_slice = ft.partial(lax.dynamic_slice, allow_negative_indices=False)
_put = ft.partial(lax.dynamic_update_slice, allow_negative_indices=False)
_ZERO = np.uint32(0)


def steps(rows: np.ndarray, cols: np.ndarray, places: np.ndarray, n: int) -> np.ndarray:
    """Of each step its column, the place of its first entry, and the rows of all: four,
    or one, as a step of four takes twice as long as one of one.

    In place of a row that a step does not have it has one beyond n, and an entry that
    belongs to others: nothing has to be masked.

    **Arguments:**

    - `rows`, `cols`, `places`: of the entries below the diagonal, by column; those of a
        column are at places next to each other.
    """
    number = np.arange(len(cols)) - np.searchsorted(cols, cols)
    first = np.flatnonzero(number % 4 == 0)
    width = 4 if 2 * len(first) <= len(cols) else 1
    if width == 1:
        first = np.arange(len(cols))
    lane = np.arange(width)
    entry = np.minimum(first[:, None] + lane, len(cols) - 1)
    there = number[entry] == number[first][:, None] + lane
    # Each lane has its own row beyond: none waits for what another has stored.
    every = np.where(there, rows[entry], n + lane)
    return np.column_stack([cols[first], places[first], every]).astype(np.uint32)


def beyond(steps: np.ndarray, x: Inexact[Array, " n"]) -> Inexact[Array, "rows 1"]:
    """x as a column, and zeros in those rows beyond n that steps have."""
    return jnp.pad(x, (0, steps.shape[1] - 2))[:, None]


def at(x: Inexact[Array, "rows 1"], i: UInt32[Array, ""]) -> Inexact[Array, "1 1"]:
    return _slice(x, (i, _ZERO), (1, 1))


def some(
    entries: Inexact[Array, "half size 1"], half: int, first: Array, many: int
) -> Inexact[Array, "many 1"]:
    """Those of one half, from `first` on."""
    return _slice(entries, (np.uint32(half), first, _ZERO), (1, many, 1))[0]


def forward(
    steps: np.ndarray,
    entries: Callable[[Array, int], Inexact[Array, "width 1"]],
    factor: Callable[[Array, Array], Inexact[Array, "1 1"]],
    x: Inexact[Array, "rows 1"],
) -> Inexact[Array, "rows 1"]:
    """xᵢ ← xᵢ − lᵢⱼ f(x, j) for all i, column j after column j. Rows beyond n are not
    what they were.

    Cost: 1.2 ns an entry.

    **Arguments:**

    - `entries`: l, those from a place on, so many.
    - `factor`: f.
    """
    if len(steps) == 0:
        return x
    table = constant(steps)

    def step(k, x):
        column, place, *rows = _numbers(table, k)
        y = _once(factor(x, column))
        for i, row in enumerate(rows):
            change = entries(place + np.uint32(i), 1) * y
            x = _put(x, at(x, row) - change, (row, _ZERO))
        return x

    return lax.fori_loop(jnp.uint32(0), jnp.uint32(len(steps)), step, x)


def backward(
    steps: np.ndarray,
    entries: Callable[[Array, int], Inexact[Array, "width 1"]],
    of: Callable[[Array, Array], Inexact[Array, "1 1"]],
    scale: Callable[[Array], Inexact[Array, "1 1"]],
    x: Inexact[Array, "rows 1"],
) -> Inexact[Array, "rows 1"]:
    """xⱼ ← xⱼ − sⱼ Σᵢ uⱼᵢ g(x, i), the last column j first.

    Cost: 1.2 ns an entry.

    **Arguments:**

    - `entries`: u, those from a place on, so many.
    - `of`, `scale`: g and s. Where an entry is none, g(x, i) is zero.
    """
    if len(steps) == 0:
        return x
    table = constant(steps)

    def step(k, x):
        column, place, *rows = _numbers(table, np.uint32(len(steps) - 1) - k)
        u = entries(place, len(rows))
        total = sum(u[i : i + 1] * of(x, row) for i, row in enumerate(rows))
        return _put(x, at(x, column) - scale(column) * total, (column, _ZERO))

    return lax.fori_loop(jnp.uint32(0), jnp.uint32(len(steps)), step, x)


def _numbers(
    table: UInt32[Array, "steps numbers"], k: UInt32[Array, ""]
) -> list[Array]:
    row = _slice(table, (k, _ZERO), (1, table.shape[1]))
    return [row[0, i] for i in range(table.shape[1])]


def _once(x: Inexact[Array, "1 1"]) -> Inexact[Array, "1 1"]:
    """x, as a sum, which XLA does once. A number is looked up anew by each that needs
    it: in a copy of all rows, for the first to change one is not to change the others.
    """
    return jnp.sum(jnp.pad(x, ((0, 1), (0, 0))), axis=0, keepdims=True)
