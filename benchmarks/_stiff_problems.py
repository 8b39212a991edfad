"""The problems of `stiff_systems`: vector fields for JAX, NumPy and CasADi alike."""

import functools as ft
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np


class Problem(NamedTuple):
    """y' = field(t, y), of a flat y: of arrays of JAX, NumPy, or symbols of CasADi."""

    field: Callable[..., Any]
    y0: np.ndarray
    end: float
    species: int  # interleaved, or one after the other
    interleaved: bool = False
    atol: float = 1e-2  # in units of rtol


def robertson(t, y, np=jnp):
    a, b, c = y[0::3], y[1::3], y[2::3]
    slow, fast, fastest = 0.04 * a, 1e4 * b * c, 3e7 * b**2
    rates = [fast - slow, slow - fast - fastest, fastest]
    return np.stack(rates, axis=1).reshape(-1)


def robertson_diffsl(count: int) -> str:
    """The same in diffsol's language, one species after the other; the first of each
    start is an input."""
    return f"""
        in_i {{ (0:{count}): start = 1 }}
        u_i {{
            (0:{count}): a = start_i,
            ({count}:{2 * count}): b = 0,
            ({2 * count}:{3 * count}): c = 0,
        }}
        slow_i {{ 0.04 * a_i }}
        fast_i {{ 1e4 * b_i * c_i }}
        fastest_i {{ 3e7 * b_i * b_i }}
        F_i {{ fast_i - slow_i, slow_i - fast_i - fastest_i, fastest_i }}
    """


def _line(x, np):
    return np.diff(np.pad(np.diff(x), 1)) * len(x) ** 2


def allen_cahn(t, u, np=jnp):
    return 0.005 * _line(u, np) + u - u**3


def brusselator(t, y, np=jnp):
    u, v = y[: len(y) // 2], y[len(y) // 2 :]
    reaction = u**2 * v
    return np.concatenate(
        [
            1 + reaction - 4 * u + 0.02 * _line(u, np),
            3 * u - reaction + 0.02 * _line(v, np),
        ]
    )


def _square(x, np):
    """The sum of the four neighbours' differences, on a torus."""
    around = [np.roll(x, shift, axis) for shift in (-1, 1) for axis in (0, 1)]
    return sum(around) - 4 * x


def _from(start, t):
    """1 from a time on. A symbol of CasADi would make a matrix of its own out of an
    array that it is multiplied with, if it were not in one itself."""
    on = t >= start
    if hasattr(on, "dtype") or isinstance(on, bool):
        return on
    box = np.empty((), object)
    box[()] = on
    return box


def brusselator_2d(t, y, np=jnp):
    u, v = y.reshape(2, 32, 32)
    i = _GRID
    inside = (i[:, None] - 0.3) ** 2 + (i[None] - 0.6) ** 2 <= 0.1**2
    source = 5.0 * inside * _from(1.1, t)
    reaction, diffusion = u**2 * v, 10.0 * 31**2
    return np.stack(
        [
            1 + reaction - 4.4 * u + diffusion * _square(u, np) + source,
            3.4 * u - reaction + diffusion * _square(v, np),
        ]
    ).reshape(-1)


_GRID = np.linspace(0, 1, 32)


def gray_scott(t, y, np=jnp):
    u, v = y.reshape(2, 64, 64)
    reaction = u * v**2
    return np.stack(
        [
            0.16 * _square(u, np) - reaction + 0.035 * (1 - u),
            0.08 * _square(v, np) + reaction - 0.1 * v,
        ]
    ).reshape(-1)


@ft.cache
def _neighbours(n: int) -> np.ndarray:
    """The parent and the two children of each compartment; itself for one missing."""
    i = np.arange(n)
    parents = np.random.default_rng(0).integers(np.maximum(0, i - 40) // 2, i // 2 + 1)
    out = np.repeat(i[:, None], 3, axis=1)
    used = np.zeros(n, int)
    for child in range(1, n):
        parent = parents[child]
        while used[parent] >= 2:  # the next one with a free place
            parent = (parent + 1) % child
        used[parent] += 1
        out[child, 0], out[parent, used[parent]] = parent, child
    return out


def neuron(t, y, np=jnp):
    v, w = y[: len(y) // 2], y[len(y) // 2 :]
    at = _neighbours(len(v))
    current = sum(v[at[:, k]] - v for k in range(3))
    return np.concatenate(
        [50.0 * current + v - v**3 / 3 - w, 0.08 * (v + 0.7 - 0.8 * w)]
    )


def problems() -> Iterator[tuple[str, Problem]]:
    for count in (1, 10, 100, 1000, 10_000):
        one = np.linspace(0.9, 1.1, count) if count > 1 else np.ones(1)
        y0 = (one[:, None] * [1.0, 0.0, 0.0]).reshape(-1)
        yield f"Robertson × {count}", Problem(robertson, y0, 100.0, 3, True, 1e-4)
    x = np.linspace(0, 1, 500)
    u = np.sin(np.linspace(0, 20, 1000))
    yield "Allen–Cahn, n = 1000", Problem(allen_cahn, u, 0.5, 1)
    y0 = np.concatenate([1 + np.sin(2 * np.pi * x), np.full(500, 3.0)])
    yield "Brusselator, n = 1000", Problem(brusselator, y0, 1.0, 2)
    hump = 22 * (_GRID * (1 - _GRID)) ** 1.5
    y0 = np.stack([np.tile(hump, (32, 1)), np.tile(27 / 22 * hump[:, None], (1, 32))])
    yield "Brusselator, 32 × 32", Problem(brusselator_2d, y0.reshape(-1), 11.5, 2)
    y0 = np.zeros((2, 64, 64))
    y0[0] = 1 - 0.5 * _patch(64)
    y0[1] = 0.25 * _patch(64)
    yield "Gray–Scott, 64 × 64", Problem(gray_scott, y0.reshape(-1), 100.0, 2)
    y0 = np.concatenate(
        [np.where(np.arange(2000) < 20, 1.5, -1.2), np.full(2000, -0.6)]
    )
    yield "neuron, 2000 compartments", Problem(neuron, y0, 20.0, 2)


def _patch(n: int) -> np.ndarray:
    x = np.linspace(-1, 1, n)
    return np.exp(-20 * (x[:, None] ** 2 + x[None] ** 2))
