"""Nonlinear regression problems with certified solutions.

The nonlinear regression problems of the NIST Statistical Reference Datasets, DOI
10.18434/T43G6C: the data, the two starting points, and the certified parameters and
residual sum of squares, as published.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Problem(NamedTuple):
    """Fit `model(parameters, x)` to `y` by least squares."""

    name: str
    x: np.ndarray
    y: np.ndarray
    model: Callable[[jax.Array, jax.Array], jax.Array]
    starts: tuple[np.ndarray, np.ndarray]  # the far one and the near one
    certified: np.ndarray
    residual_sum_of_squares: float

    def residual(self, parameters: Any, args: Any = None) -> jax.Array:
        return self.model(jnp.asarray(parameters), jnp.asarray(self.x)) - self.y


def _bennett5(b, x):
    return b[0] * (b[1] + x) ** (-1 / b[2])


def _boxbod(b, x):
    return b[0] * (1 - jnp.exp(-b[1] * x))


def _chwirut(b, x):
    return jnp.exp(-b[0] * x) / (b[1] + b[2] * x)


def _danwood(b, x):
    return b[0] * x ** b[1]


def _eckerle4(b, x):
    return b[0] / b[1] * jnp.exp(-0.5 * ((x - b[2]) / b[1]) ** 2)


def _enso(b, x):
    def wave(cosine, sine, period):
        angle = 2 * jnp.pi * x / period
        return cosine * jnp.cos(angle) + sine * jnp.sin(angle)

    return b[0] + wave(b[1], b[2], 12) + wave(b[4], b[5], b[3]) + wave(b[7], b[8], b[6])


def _gauss(b, x):
    first = b[2] * jnp.exp(-(((x - b[3]) / b[4]) ** 2))
    second = b[5] * jnp.exp(-(((x - b[6]) / b[7]) ** 2))
    return b[0] * jnp.exp(-b[1] * x) + first + second


def _kirby2(b, x):
    return (b[0] + b[1] * x + b[2] * x**2) / (1 + b[3] * x + b[4] * x**2)


def _cubic_over_cubic(b, x):
    above = b[0] + b[1] * x + b[2] * x**2 + b[3] * x**3
    return above / (1 + b[4] * x + b[5] * x**2 + b[6] * x**3)


def _lanczos(b, x):
    first, second = b[0] * jnp.exp(-b[1] * x), b[2] * jnp.exp(-b[3] * x)
    return first + second + b[4] * jnp.exp(-b[5] * x)


def _mgh09(b, x):
    return b[0] * (x**2 + b[1] * x) / (x**2 + b[2] * x + b[3])


def _mgh10(b, x):
    return b[0] * jnp.exp(b[1] / (x + b[2]))


def _mgh17(b, x):
    return b[0] + b[1] * jnp.exp(-b[3] * x) + b[2] * jnp.exp(-b[4] * x)


def _misra1b(b, x):
    return b[0] * (1 - (1 + b[1] * x / 2) ** -2)


def _misra1c(b, x):
    return b[0] * (1 - (1 + 2 * b[1] * x) ** -0.5)


def _misra1d(b, x):
    return b[0] * b[1] * x / (1 + b[1] * x)


def _nelson(b, x):  # of the logarithm of the response
    return b[0] - b[1] * x[:, 0] * jnp.exp(-b[2] * x[:, 1])


def _rat42(b, x):
    return b[0] / (1 + jnp.exp(b[1] - b[2] * x))


def _rat43(b, x):
    return b[0] / (1 + jnp.exp(b[1] - b[2] * x)) ** (1 / b[3])


def _roszman1(b, x):
    return b[0] - b[1] * x - jnp.arctan(b[2] / (x - b[3])) / jnp.pi


_MODELS = {
    "Misra1a": _boxbod,
    "Chwirut2": _chwirut,
    "Chwirut1": _chwirut,
    "Lanczos3": _lanczos,
    "Gauss1": _gauss,
    "Gauss2": _gauss,
    "DanWood": _danwood,
    "Misra1b": _misra1b,
    "Kirby2": _kirby2,
    "Hahn1": _cubic_over_cubic,
    "Nelson": _nelson,
    "MGH17": _mgh17,
    "Lanczos1": _lanczos,
    "Lanczos2": _lanczos,
    "Gauss3": _gauss,
    "Misra1c": _misra1c,
    "Misra1d": _misra1d,
    "Roszman1": _roszman1,
    "ENSO": _enso,
    "MGH09": _mgh09,
    "Thurber": _cubic_over_cubic,
    "BoxBOD": _boxbod,
    "Rat42": _rat42,
    "MGH10": _mgh10,
    "Eckerle4": _eckerle4,
    "Rat43": _rat43,
    "Bennett5": _bennett5,
}


def _load() -> dict[str, Problem]:
    path = pathlib.Path(__file__).parent / "nist.json"
    problems = {}
    for name, entry in json.loads(path.read_text()).items():
        x, y, certified, far, near = (
            np.array(values, dtype=np.float64)
            for values in (entry["x"], entry["y"], entry["certified"], *entry["starts"])
        )
        problems[name] = Problem(
            name,
            x,
            np.log(y) if name == "Nelson" else y,
            _MODELS[name],
            (far, near),
            certified,
            entry["residual_sum_of_squares"],
        )
    return problems


PROBLEMS = _load()
