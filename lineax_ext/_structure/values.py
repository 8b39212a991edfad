"""What is known of an array in the program v ↦ A v, where it does not depend on v."""

import functools as ft
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from .index_sets import IndexSets
from .windows import scattered_windows


class Constant:
    """Depends on no argument. Computed when asked for.

    `shaken` computes it once more, with other rounding errors; it is `None` for what
    has none.
    """

    def __init__(
        self, evaluate: Callable[[], Any], shaken: Callable[[], Any] | None = None
    ):
        self._evaluate, self._shaken = evaluate, shaken

    @property
    def is_exact(self) -> bool:
        return self._shaken is None

    @ft.cached_property
    def value(self) -> np.ndarray | None:
        """`None` if it cannot be computed, as by a primitive of some other device."""
        return _computed(self._evaluate)

    @ft.cached_property
    def shaken(self) -> np.ndarray | None:
        return self.value if self._shaken is None else _computed(self._shaken)

    def __getitem__(self, i: int) -> "Constant":
        # `None` cannot be indexed, and then neither is the slice known.
        whole: Any = self
        shaken = None if self.is_exact else lambda: whole.shaken[i]
        return Constant(lambda: whole.value[i], shaken)


def _computed(evaluate: Callable[[], Any]) -> np.ndarray | None:
    try:
        found = evaluate()
        # optimistix asks for a structure first, in which constants have a shape alone.
        return None if isinstance(found, jax.ShapeDtypeStruct) else np.asarray(found)
    except Exception:
        return None


class Unknown:
    """Depends on the operator, and not on the vector: no value is to be relied on."""


Value: TypeAlias = Constant | Unknown | IndexSets

unknown = Unknown()


def constant(value: Any) -> Constant:
    return Constant(lambda: value)


def known(x: Value) -> np.ndarray | None:
    """The value of a constant; of an index or a predicate only if it is the same
    whatever the rounding errors are from which it comes."""
    if not isinstance(x, Constant) or x.value is None:
        return None
    if x.is_exact or x.value.dtype.kind in "fc":
        return x.value
    same = x.shaken is not None and np.array_equal(x.value, x.shaken)
    return x.value if same else None


def nonzero(x: Value) -> np.ndarray | None:
    """Where a constant is not zero. A sum that only happens to cancel is not: compiled,
    it may leave a rounding error."""
    if not isinstance(x, Constant) or x.value is None:
        return None
    found = np.asarray(x.value != 0)
    if x.is_exact or found.all():
        return found
    return None if x.shaken is None else found | (x.shaken != 0)


_rng = np.random.default_rng(0)


def _shake(x: np.ndarray) -> np.ndarray:
    """With another rounding error; integers have none."""
    if x.dtype.kind not in "fc":
        return x
    error = 2.0**12 * np.finfo(x.dtype).eps * _rng.uniform(-1, 1, x.shape)
    return np.where(x == np.rint(x), x, x * (1 + error)).astype(x.dtype)


def independent(eqn: jex.JaxprEqn, ins: Sequence[Value]) -> list[Value]:
    """The outputs of an equation that has no input that depends on v."""
    if not all(isinstance(x, Constant) for x in ins) or not _is_pure(eqn):
        return [unknown] * len(eqn.outvars)
    constants = [x for x in ins if isinstance(x, Constant)]

    def compute(arrays):
        if any(x is None for x in arrays):
            raise ValueError("An input cannot be computed.")
        out = _evaluate(eqn, arrays)
        return out if eqn.primitive.multiple_results else [out]

    @ft.cache
    def evaluate():
        return compute([x.value for x in constants])

    @ft.cache
    def shaken():
        arrays = [x.shaken for x in constants]
        return compute([x if x is None else _shake(x) for x in arrays])

    exact = all(x.is_exact for x in constants) and _keeps_zeros(eqn)
    return [
        Constant(lambda i=i: evaluate()[i], None if exact else lambda i=i: shaken()[i])
        for i in range(len(eqn.outvars))
    ]


def _keeps_zeros(eqn: jex.JaxprEqn) -> bool:
    """Whether its output is zero where it is, whatever the rounding errors are."""
    inexact = any(jnp.issubdtype(_aval(x).dtype, jnp.inexact) for x in eqn.invars)
    return not inexact or eqn.primitive.name in _exact


def _is_pure(eqn: jex.JaxprEqn) -> bool:
    """Whether it gives the same for the same inputs, of which NumPy knows."""
    name = eqn.primitive.name
    if len(eqn.invars) == 0 and name not in ("iota", "empty", "empty2"):
        return False
    # What another device, or another run, may decide otherwise.
    if name in ("rng_uniform", "approx_top_k"):
        return False
    if name == "sort" and not eqn.params["is_stable"]:
        return False
    extended = lambda x: jnp.issubdtype(x.aval.dtype, jax.dtypes.extended)
    if any(map(extended, (*eqn.invars, *eqn.outvars))):
        return False
    return not eqn.effects and "callback" not in name


#
# Computing constants: by NumPy where that is exactly the same, as each new shape costs
# 10 to 40 ms of compilation otherwise
#


def broadcast_in_dim(x: np.ndarray, *_, shape, broadcast_dimensions, **__):
    shaped = [1] * len(shape)
    for size, dim in zip(x.shape, broadcast_dimensions):
        shaped[dim] = size
    return np.broadcast_to(x.reshape(shaped), shape)


def pad(x: np.ndarray, value: Any, *, padding_config, **_):
    """With a negative amount of padding, too, and between the entries."""
    inner = [
        max(0, n + max(0, n - 1) * i) for n, (_, _, i) in zip(x.shape, padding_config)
    ]
    shape = [
        n + max(lo, 0) + max(hi, 0) for n, (lo, hi, _) in zip(inner, padding_config)
    ]
    out = np.full(shape, value, x.dtype)
    at = [
        slice(max(lo, 0), max(lo, 0) + n, i + 1)
        for n, (lo, _, i) in zip(inner, padding_config)
    ]
    if x.size > 0:
        out[tuple(at)] = x
    cut = [
        slice(max(-lo, 0), max(n - max(-hi, 0), 0))
        for n, (lo, hi, _) in zip(shape, padding_config)
    ]
    return out[tuple(cut)]


def slice_(x, *, start_indices, limit_indices, strides, **_):
    strides = strides or (1,) * x.ndim
    return x[tuple(map(slice, start_indices, limit_indices, strides))]


def reshape(x, *_, new_sizes, dimensions=None, **__):
    return (x if dimensions is None else x.transpose(dimensions)).reshape(new_sizes)


def split(x, *, sizes, axis, **_):
    return np.split(x, np.cumsum(sizes)[:-1], axis)


MOVES: dict[str, Callable[..., Any]] = {
    "reshape": reshape,
    "transpose": lambda x, *, permutation, **_: x.transpose(permutation),
    "squeeze": lambda x, *, dimensions, **_: x.squeeze(dimensions),
    "expand_dims": lambda x, *, dimensions, **_: np.expand_dims(x, dimensions),
    "rev": lambda x, *, dimensions, **_: np.flip(x, dimensions),
    "slice": slice_,
    "broadcast_in_dim": broadcast_in_dim,
    "concatenate": lambda *xs, dimension, **_: np.concatenate(xs, dimension),
    "stack": lambda *xs, axis, **_: np.stack(xs, axis),
    "tile": lambda x, *, reps, **_: np.tile(x, reps),
    "split": split,
    "unstack": lambda x, *, axis, **_: list(np.moveaxis(x, axis, 0)),
}


def _like(ufunc):
    return lambda x, y, **_: ufunc(x, y) if x.dtype == y.dtype else NotImplemented


def _convert(x, *, new_dtype, **_):
    exact = x.dtype == bool or np.issubdtype(x.dtype, np.integer)
    exact = exact or np.issubdtype(new_dtype, np.inexact) and x.dtype.kind in "fc"
    exact = exact and not (x.dtype.kind == "c" and np.dtype(new_dtype).kind != "c")
    return x.astype(new_dtype) if exact else NotImplemented


def _select(which, *cases):
    if which.dtype != bool or len(cases) != 2:
        return NotImplemented
    return np.where(which, cases[-1], cases[0])


_numpy: dict[str, Callable[..., Any]] = MOVES | {
    "pad": pad,
    "add": _like(np.add),
    "sub": _like(np.subtract),
    "mul": _like(np.multiply),
    "neg": lambda x: np.negative(x),
    "max": _like(np.maximum),
    "min": _like(np.minimum),
    "lt": _like(np.less),
    "le": _like(np.less_equal),
    "gt": _like(np.greater),
    "ge": _like(np.greater_equal),
    "eq": _like(np.equal),
    "ne": _like(np.not_equal),
    "and": _like(np.bitwise_and),
    "or": _like(np.bitwise_or),
    "not": lambda x: np.invert(x),
    "copy": lambda x: x,
    "select_n": _select,
    "convert_element_type": _convert,
}


_exact = {
    *MOVES,
    *"""
    iota pad gather dynamic_slice dynamic_update_slice scatter select_n copy neg abs
    sign mul max min lt le gt ge eq ne convert_element_type
    """.split(),
}


def _aval(atom: Any) -> Any:
    return atom.aval


def overlaps(eqn: jex.JaxprEqn, indices: np.ndarray) -> bool:
    """Whether a scatter writes to the same place twice."""
    operand, _, updates = (tuple(_aval(x).shape) for x in eqn.invars)
    flat, inside = scattered_windows(eqn.params, operand, indices, updates)
    return bool(np.bincount(flat[inside], minlength=1).max() > 1)


def _evaluate(eqn: jex.JaxprEqn, arrays: Sequence[Any]) -> Any:
    name = eqn.primitive.name
    arrays = [np.asarray(x, _aval(atom).dtype) for x, atom in zip(arrays, eqn.invars)]
    if name == "scatter" and overlaps(eqn, arrays[1]):
        raise ValueError("Which of the updates stays is left open.")
    if name == "iota":
        dtype, shape = eqn.params["dtype"], eqn.params["shape"]
        dim = eqn.params["dimension"]
        line = np.arange(shape[dim]).astype(dtype)
        return broadcast_in_dim(line, shape=shape, broadcast_dimensions=(dim,))
    if name in _numpy:
        with np.errstate(all="ignore"):
            out = _numpy[name](*arrays, **eqn.params)
        if out is not NotImplemented:
            return out
    with jax.ensure_compile_time_eval():
        return eqn.primitive.bind(*map(jnp.asarray, arrays), **eqn.params)
