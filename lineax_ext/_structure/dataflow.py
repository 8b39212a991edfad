"""The linear map v ↦ A v as a program of what depends on v alone, for `asdex`.

`asdex` 0.5.1 follows index sets through a jaxpr. From the jaxpr as it comes it may lose
entries. A function under `jit` that is called twice shares its jaxpr, and what was
constant in the first call counts as constant in the second one. Integers divide as
floats do, and their remainder is Python's. A scatter that clips its indices is taken
for one that drops what lies outside, dynamic slices are not clamped at all, and the
batching dimensions of gathers and scatters are taken to be the first ones. Here
the jaxpr is run again in such a way that none of this arises:

- calls are inlined, and every loop and every branch gets a jaxpr of its own;
- what depends on no argument is computed by JAX, if it is asked for;
- what depends on the operator, but not on v, is one unknown number: no value of it is
  to be relied on, and the computation of it need not be followed.
"""

import functools as ft
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.extend.core as jex
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array


class _Constant:
    """Depends on no argument. Computed when asked for."""

    def __init__(self, evaluate: Callable[[], Any]):
        self._evaluate = evaluate

    @ft.cached_property
    def value(self) -> np.ndarray:
        return np.asarray(self._evaluate())


class _Unknown:
    """Depends on the operator, and not on the vector."""


class _Linear:
    """Depends on the vector: a sum of distinct tracers, added up when asked for.

    To take unions is most of the work for a stencil, and this saves half of them.
    """

    def __init__(self, *terms: Array):
        self.terms = {id(x): x for x in terms}

    def __add__(self, other: "_Linear") -> "_Linear":
        return _Linear(*(self.terms | other.terms).values())

    @ft.cached_property
    def value(self) -> Array:
        return ft.reduce(lax.add, self.terms.values())


_Value: TypeAlias = _Constant | _Unknown | _Linear
_Outs: TypeAlias = list[_Value] | None

_unknown = _Unknown()


def _constant(value: Any) -> _Constant:
    return _Constant(lambda: value)


# Where a call keeps the jaxpr that is called.
_calls = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


class _Replay:
    def __init__(self, number: Array):
        self.number = number  # stands for everything that is unknown

    def array(self, value: Any, aval: Any) -> Array:
        if isinstance(value, _Unknown):
            number = lax.convert_element_type(self.number, aval.dtype)
            return lax.broadcast(number, aval.shape)
        return lax.convert_element_type(value.value, aval.dtype)

    def arrays(self, values: Sequence[_Value], atoms: Sequence[Any]) -> list[Array]:
        return [self.array(x, atom.aval) for x, atom in zip(values, atoms)]

    #
    # The interpreter
    #

    def jaxpr(self, jaxpr: jex.Jaxpr | jex.ClosedJaxpr, args: Sequence[_Value]):
        consts = []
        if isinstance(jaxpr, jex.ClosedJaxpr):
            traced = lambda x: isinstance(x, Tracer)
            consts = [_unknown if traced(x) else _constant(x) for x in jaxpr.consts]
            jaxpr = jaxpr.jaxpr
        env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args)))

        def read(atom):
            return _constant(atom.val) if isinstance(atom, jex.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            if len(eqn.outvars) > 0:  # as they are for a callback that prints
                outs = self.equation(eqn, [read(x) for x in eqn.invars])
                env.update(zip(eqn.outvars, outs))
        return [read(x) for x in jaxpr.outvars]

    def equation(self, eqn: jex.JaxprEqn, ins: list[_Value]) -> list[_Value]:
        name = eqn.primitive.name
        if name in _calls:
            return self.jaxpr(eqn.params[_calls[name]], ins)
        if not any(isinstance(x, _Linear) for x in ins):
            return self.independent(eqn, ins)
        outs = _rules[name](self, eqn, ins) if name in _rules else None
        return self.bind(eqn, ins) if outs is None else outs

    def independent(self, eqn: jex.JaxprEqn, ins: list[_Value]) -> list[_Value]:
        known = all(isinstance(x, _Constant) for x in ins)
        known = known and (len(ins) > 0 or eqn.primitive.name == "iota")
        known = known and not any(map(_is_extended, (*eqn.invars, *eqn.outvars)))
        if not known or eqn.effects or "callback" in eqn.primitive.name:
            return [_unknown] * len(eqn.outvars)

        @ft.cache
        def evaluate():
            with jax.ensure_compile_time_eval():
                return _bind(eqn, self.arrays(ins, eqn.invars))

        return [_Constant(lambda i=i: evaluate()[i]) for i in range(len(eqn.outvars))]

    def bind(self, eqn: jex.JaxprEqn, ins: Sequence[_Value]) -> list[_Value]:
        return [_Linear(x) for x in _bind(eqn, self.arrays(ins, eqn.invars))]

    def function(self, jaxpr: jex.ClosedJaxpr, consts: Sequence[_Value]):
        """A function of arrays; no two of them share a jaxpr once they are traced."""

        def fn(*args):
            args = [_Linear(x) for x in args]
            return self.arrays(self.jaxpr(jaxpr, [*consts, *args]), jaxpr.jaxpr.outvars)

        return fn

    def scan(self, eqn: jex.JaxprEqn, ins: list[Any]) -> _Outs:
        params = eqn.params
        start, stop = params["num_consts"], params["num_carry"]
        body = self.function(params["jaxpr"], ins[:start])
        arrays = self.arrays(ins[start:], eqn.invars[start:])

        def step(carry, x):
            outs = body(*carry, *x)
            return outs[:stop], outs[stop:]

        carry, ys = lax.scan(
            step, arrays[:stop], arrays[stop:], params["length"], params["reverse"]
        )
        return [_Linear(x) for x in (*carry, *ys)]

    def while_loop(self, eqn: jex.JaxprEqn, ins: list[Any]) -> _Outs:
        start = eqn.params["body_nconsts"]
        stop = start + eqn.params["cond_nconsts"]
        body = self.function(eqn.params["body_jaxpr"], ins[:start])
        out = lax.while_loop(
            lambda carry: lax.convert_element_type(self.number, bool),
            lambda carry: body(*carry),
            self.arrays(ins[stop:], eqn.invars[stop:]),
        )
        return [_Linear(x) for x in out]

    def cond(self, eqn: jex.JaxprEqn, ins: list[Any]) -> _Outs:
        (index, *operands), branches = ins, eqn.params["branches"]
        if isinstance(index, _Constant):
            which = np.clip(index.value.astype(int), 0, len(branches) - 1)
            return self.jaxpr(branches[which], operands)
        index = lax.convert_element_type(self.number, jnp.int32)
        out = lax.switch(index, [self.function(x, operands) for x in branches])
        return [_Linear(x) for x in out]

    #
    # What can be said in simpler terms
    #

    def scaling(self, eqn: jex.JaxprEqn, ins: list[Any]) -> _Outs:
        """c v and v c have the entries of v, unless c is zero somewhere."""
        for v, c in (ins, ins[::-1]):
            if _fills(v, eqn):
                if (
                    isinstance(c, _Unknown)
                    or isinstance(c, _Constant)
                    and c.value.all()
                ):
                    return [v]
        return None

    def division(self, eqn: jex.JaxprEqn, ins: list[Any]) -> _Outs:
        v, c = ins
        return [v] if _fills(v, eqn) and not isinstance(c, _Linear) else None

    def negation(self, eqn: jex.JaxprEqn, ins: list[Any]) -> _Outs:
        return ins

    def addition(self, eqn: jex.JaxprEqn, ins: list[Any]) -> _Outs:
        terms = [x for x in ins if isinstance(x, _Linear)]
        if all(_fills(x, eqn) for x in terms):
            return [ft.reduce(_Linear.__add__, terms)]
        return None

    def dot_general(self, eqn: jex.JaxprEqn, ins: list[Any]) -> _Outs:
        """The product with an unknown matrix has the entries of a sum, which `asdex`
        follows in quadratic time, not in cubic time."""
        out = _aval(eqn.outvars[0])
        left = isinstance(ins[0], _Linear)
        v, other = ins if left else ins[::-1]
        if not isinstance(other, _Unknown):
            return None
        contracted, batch = (
            x[0 if left else 1] for x in eqn.params["dimension_numbers"]
        )
        v, summed = v.value, {*contracted}
        v = jnp.sum(v, contracted, keepdims=True).astype(out.dtype)
        free = [i for i in range(v.ndim) if i not in summed and i not in batch]
        v = lax.transpose(v, (*batch, *free, *contracted))
        v = v.reshape(v.shape[: len(batch) + len(free)])
        first = len(batch) if left else out.ndim - len(free)
        dims = (*range(len(batch)), *range(first, first + len(free)))
        return [_Linear(lax.broadcast_in_dim(v, out.shape, dims))]

    def dynamic_slice(self, eqn: jex.JaxprEqn, ins: list[Any]) -> _Outs:
        sizes = eqn.params["slice_sizes"]
        starts = _clamped(_aval(eqn.invars[0]).shape, ins[1:], sizes)
        if starts is None:
            return None
        stops = [i + k for i, k in zip(starts, sizes)]
        return [_Linear(lax.slice(ins[0].value, starts, stops))]

    def dynamic_update_slice(self, eqn: jex.JaxprEqn, ins: list[Any]) -> _Outs:
        operand, update = (_aval(x).shape for x in eqn.invars[:2])
        starts = _clamped(operand, ins[2:], update)
        if starts is None:
            return self.somewhere(eqn, ins[0], ins[1])
        return self.bind(eqn, [*ins[:2], *map(_constant, starts)])

    def scatter(self, eqn: jex.JaxprEqn, ins: list[Any]) -> _Outs:
        operand, indices, updates = ins
        if not isinstance(indices, _Constant):
            return self.somewhere(eqn, operand, updates)
        # asdex does not clip, and has the last of several writers win.
        clips = eqn.params["mode"] == lax.GatherScatterMode.CLIP
        vectors = indices.value.reshape(-1, indices.value.shape[-1])
        dims = eqn.params["dimension_numbers"]
        window = dims.update_window_dims
        followed = _lead(dims.operand_batching_dims, dims.scatter_indices_batching_dims)
        followed = followed and _windows_fit(eqn, vectors)
        apart = len(vectors) <= 1 or (
            len(window) == 0 and len(np.unique(vectors, axis=0)) == len(vectors)
        )
        if clips or not followed or (eqn.primitive.name == "scatter" and not apart):
            return self.somewhere(eqn, operand, updates)
        return None

    def gather(self, eqn: jex.JaxprEqn, ins: list[Any]) -> _Outs:
        dims = eqn.params["dimension_numbers"]
        if _lead(dims.operand_batching_dims, dims.start_indices_batching_dims):
            return None
        return self.somewhere(eqn, _unknown, ins[0])

    def somewhere(self, eqn: jex.JaxprEqn, operand: Any, updates: Any) -> _Outs:
        """Each update may end up everywhere, but the operand stays where it is."""
        out = _aval(eqn.outvars[0])
        found = [operand] if isinstance(operand, _Linear) else []
        if isinstance(updates, _Linear):
            total = jnp.sum(updates.value).astype(out.dtype)
            found.append(_Linear(lax.broadcast(total, out.shape)))
        return [ft.reduce(_Linear.__add__, found)] if found else [_unknown]


def _aval(atom: Any) -> Any:
    return atom.aval


def _bind(eqn: jex.JaxprEqn, ins: Sequence[Array]) -> list[Array]:
    out = eqn.primitive.bind(*ins, **eqn.params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _fills(v: _Value, eqn: jex.JaxprEqn) -> bool:
    """Whether v may stand for the output: it need not be broadcast or promoted."""
    out = _aval(eqn.outvars[0])
    like = lambda x: (x.shape, x.dtype) == (out.shape, out.dtype)
    return isinstance(v, _Linear) and all(map(like, v.terms.values()))


def _lead(*batching: tuple[int, ...]) -> bool:
    """Whether batching dimensions come first, as asdex takes them to."""
    return all(tuple(dims) == tuple(range(len(dims))) for dims in batching)


def _windows_fit(eqn: jex.JaxprEqn, starts: np.ndarray) -> bool:
    """Whether no window of a scatter is partly outside: asdex keeps what is inside of
    it, and XLA drops it as a whole."""
    dims = eqn.params["dimension_numbers"]
    operand, _, updates = (_aval(x).shape for x in eqn.invars)
    if len(dims.update_window_dims) == 0:
        return True
    sizes = dict.fromkeys((*dims.inserted_window_dims, *dims.operand_batching_dims), 1)
    kept = [d for d in range(len(operand)) if d not in sizes]
    sizes |= {d: updates[i] for d, i in zip(kept, dims.update_window_dims)}
    room = [operand[d] - sizes[d] for d in dims.scatter_dims_to_operand_dims]
    return bool(np.all((starts >= 0) & (starts <= np.asarray(room))))


def _is_extended(atom: Any) -> bool:
    """Random keys: no arrays that NumPy knows of."""
    return jnp.issubdtype(_aval(atom).dtype, jax.dtypes.extended)


def _clamped(
    shape: Sequence[int], starts: Sequence[Any], sizes: Sequence[int]
) -> list[int] | None:
    if not all(isinstance(x, _Constant) for x in starts):
        return None
    indices = [int(x.value) for x in starts]
    return [max(0, min(i, n - k)) for i, n, k in zip(indices, shape, sizes)]


_rules = {
    "scan": _Replay.scan,
    "while": _Replay.while_loop,
    "cond": _Replay.cond,
    "mul": _Replay.scaling,
    "div": _Replay.division,
    "neg": _Replay.negation,
    "add": _Replay.addition,
    "add_any": _Replay.addition,
    "sub": _Replay.addition,
    "dot_general": _Replay.dot_general,
    "dynamic_slice": _Replay.dynamic_slice,
    "dynamic_update_slice": _Replay.dynamic_update_slice,
    "gather": _Replay.gather,
    "scatter": _Replay.scatter,
    "scatter-add": _Replay.scatter,
}


def replay(program: jex.ClosedJaxpr, vector: Array, number: Array) -> Array:
    """Runs the jaxpr of `(*unknown, vector)`, to be traced and followed."""
    unknown = [_unknown] * (len(program.jaxpr.invars) - 1)
    replay = _Replay(number)
    outs = replay.jaxpr(program, [*unknown, _Linear(vector)])
    (out,) = replay.arrays(outs, program.jaxpr.outvars)
    return out
