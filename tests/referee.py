"""Derivatives by NumPy and single primitives: cheap where a program runs only once.

Compiling the Jacobian of a small program takes seconds. Here the program of its JVP is
run an equation at a time: loops and branches in Python, what is elementwise by NumPy,
everything else by the primitive itself, of which JAX keeps the compiled form. Nothing
of `lineax_ext` is used.
"""

import jax
import jax.extend.core as jex
import numpy as np


def _cast(fn):
    return lambda *xs, **_: fn(*xs)


def _reshape(x, *, new_sizes, dimensions, **_):
    return np.reshape(x if dimensions is None else x.transpose(dimensions), new_sizes)


def _broadcast_in_dim(x, *, shape, broadcast_dimensions, **_):
    # The axes in order, as JAX has them; the others are new ones.
    new = [d for d in range(len(shape)) if d not in broadcast_dimensions]
    return np.broadcast_to(np.expand_dims(x, new), shape)


_numpy = {
    "add": np.add,
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "sin": np.sin,
    "cos": np.cos,
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "floor": np.floor,
    "sign": np.sign,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "square": np.square,
    "max": np.maximum,
    "min": np.minimum,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "not": np.invert,
    "copy": np.asarray,
    "stop_gradient": np.asarray,
    "real": np.real,
    "imag": np.imag,
}
_numpy = {name: _cast(fn) for name, fn in _numpy.items()}
_numpy |= {
    "integer_pow": lambda x, *, y, **_: np.power(x, float(y)),
    "transpose": lambda x, *, permutation, **_: np.transpose(x, permutation),
    "reshape": _reshape,
    "squeeze": lambda x, *, dimensions, **_: np.squeeze(x, dimensions),
    "reduce_sum": lambda x, *, axes, **_: np.sum(x, axes),
    "reduce_max": lambda x, *, axes, **_: np.max(x, axes),
    "broadcast_in_dim": _broadcast_in_dim,
    "slice": lambda x, *, start_indices, limit_indices, strides, **_: x[
        tuple(map(slice, start_indices, limit_indices, strides or (1,) * x.ndim))
    ],
    "rev": lambda x, *, dimensions, **_: np.flip(x, dimensions),
    "concatenate": lambda *xs, dimension, **_: np.concatenate(xs, dimension),
    "stack": lambda *xs, axis, **_: np.stack(xs, axis),
    "convert_element_type": lambda x, *, new_dtype, **_: x.astype(new_dtype),
    "select_n": lambda which, *cases: np.choose(which.astype(int), cases),
    "iota": lambda *, shape, dimension, **_: np.indices(shape)[dimension],
    "clamp": lambda low, x, high: np.clip(x, low, high),
    "rem": np.fmod,
}


def _scan(ins, *, jaxpr, length, reverse, **params):
    if "ft_in" in params:  # from jax 0.12 on
        num_consts, num_carry, _ = map(len, params["ft_in"].unpack())
    else:
        num_consts, num_carry = params["num_consts"], params["num_carry"]
    consts, carry = ins[:num_consts], ins[num_consts : num_consts + num_carry]
    xs = ins[num_consts + num_carry :]
    outs = jaxpr.out_avals[num_carry:]
    ys = [np.zeros((length, *out.shape), out.dtype) for out in outs]
    for i in range(length)[:: -1 if reverse else 1]:
        out = evaluate(jaxpr, [*consts, *carry, *(x[i] for x in xs)])
        carry = out[:num_carry]
        for y, new in zip(ys, out[num_carry:]):
            y[i] = new
    return [*carry, *ys]


def _while(ins, *, cond_jaxpr, cond_nconsts, body_jaxpr, body_nconsts, **_):
    split, stop = cond_nconsts, cond_nconsts + body_nconsts
    of_test, of_body, carry = ins[:split], ins[split:stop], ins[stop:]
    while True:
        (more,) = evaluate(cond_jaxpr, [*of_test, *carry])
        if not np.any(more):
            return carry
        new = evaluate(body_jaxpr, [*of_body, *carry])
        carry = new


def _cond(ins, *, branches, **_):
    index, *operands = ins
    return evaluate(branches[min(max(int(index), 0), len(branches) - 1)], operands)


_control = {"scan": _scan, "while": _while, "cond": _cond}
_called = ("call_jaxpr", "fun_jaxpr", "jaxpr")
_calls = {"jit", "pjit", "closed_call", "checkpoint", "remat", "remat2"}
_calls |= {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}


def evaluate(jaxpr, args):
    consts = getattr(jaxpr, "consts", ())
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(x):
        return np.asarray(x.val, x.aval.dtype) if isinstance(x, jex.Literal) else env[x]

    for eqn in jaxpr.eqns:
        ins, name = [read(x) for x in eqn.invars], eqn.primitive.name
        if name in _control:
            outs = _control[name](ins, **eqn.params)
        elif name in _calls:
            (inner,) = (eqn.params[x] for x in _called if x in eqn.params)
            outs = evaluate(inner, ins)
        elif name in _numpy:
            outs = [_numpy[name](*ins, **eqn.params)]
        else:
            outs = eqn.primitive.bind(*ins, **eqn.params)
            outs = list(outs) if eqn.primitive.multiple_results else [outs]
        outs = [np.asarray(x, out.aval.dtype) for x, out in zip(outs, eqn.outvars)]
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(x) for x in jaxpr.outvars]


def nonzeros(fn, points):
    """Where the Jacobian of a function of arrays is not zero at one of the points."""
    jvp = lambda x, v: jax.jvp(fn, (x,), (v,))[1]
    program = jax.make_jaxpr(jvp)(points[0], points[0])
    found = False
    with np.errstate(all="ignore"):
        for x in points:
            columns = []
            for v in np.eye(x.size):
                (column,) = evaluate(program, [x, v.reshape(x.shape)])
                columns.append(np.abs(column).reshape(-1) > 0)
            found |= np.stack(columns, 1)
    return found
