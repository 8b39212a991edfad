"""Functions that JAX can do little with, and spies on what is done with them."""

import contextlib
from unittest import mock

import jax
import jax.extend.core
import jax.numpy as jnp
import lineax as lx
import numpy as np
from helpers import normal
from jax.interpreters import ad, mlir

import lineax_ext._materialise
import lineax_ext._rules


def banded(shape, lower, upper, dtype=np.float64, seed=0):
    """A random matrix with `lower` subdiagonals and `upper` superdiagonals."""
    return np.tril(np.triu(normal(shape, dtype, seed), -lower), upper)


def diagonals(matrix):
    """What `lx.tridiagonal` is to return, by NumPy."""
    return tuple(np.diagonal(matrix, offset) for offset in (0, -1, 1))


def sine(x, matrix):
    return jnp.sin(matrix @ x)


def sine_jacobian(x, matrix):
    return np.cos(matrix @ x)[:, None] * matrix


#
# A primitive without a batching rule
#

scale_p = jax.extend.core.Primitive("scale")
cube_p = jax.extend.core.Primitive("cube")


def scale(c, x):
    """c x: the tangent of `cube`. What `applications` counts."""
    return scale_p.bind(c, x)


def cube(x):
    return cube_p.bind(x)


for _primitive, _impl in ((scale_p, jnp.multiply), (cube_p, lambda x: x * x * x)):
    _primitive.def_impl(jax.jit(_impl))
    _primitive.def_abstract_eval(lambda x, *_: x)
    mlir.register_lowering(_primitive, mlir.lower_fun(_impl, multiple_results=False))
ad.defbilinear(scale_p, lambda g, c, x: scale(g, x), lambda g, c, x: scale(c, g))
ad.defjvp(cube_p, lambda t, x: scale(3 * x * x, t))


def cubic(x, matrix):
    return matrix @ cube(x)


def cubic_jacobian(x, matrix):
    return matrix * (3 * x**2)


def applications(fn, *args):
    """How often `fn(*args)` applies `scale`, a loop counting for all of its trips."""

    def count(jaxpr):
        total = 0
        for eqn in jaxpr.eqns:
            trips = eqn.params["length"] if eqn.primitive.name == "scan" else 1
            inner = jax.extend.core.jaxprs_in_params(eqn.params)
            total += (eqn.primitive is scale_p) + trips * sum(map(count, inner))
        return total

    return count(jax.make_jaxpr(fn)(*args).jaxpr)


#
# Callbacks
#


def sequential_sine(matrix):
    """`sine` by NumPy, its tangent too, called in sequence by `vmap`; and the calls."""
    calls = []
    out = jax.ShapeDtypeStruct(matrix.shape[:1], matrix.dtype)

    def callback(fn, *args):
        return jax.pure_callback(fn, out, *args, vmap_method="sequential")

    def host_tangent(x, t):
        calls.append(t)
        return sine_jacobian(np.asarray(x), matrix) @ np.asarray(t)

    @jax.custom_jvp
    def fn(x):
        return callback(lambda x: np.sin(matrix @ np.asarray(x)), x)

    @fn.defjvp
    def _(primals, tangents):
        return fn(*primals), callback(host_tangent, *primals, *tangents)

    return lambda x, args: fn(x), calls


def reverse_sine(matrix):
    """`sine` with a VJP and nothing else, which can only be called. And the calls."""
    calls = []

    def host_cotangent(x, g):
        calls.append(g)
        return sine_jacobian(np.asarray(x), matrix).T @ np.asarray(g)

    fn = jax.custom_vjp(lambda x: sine(x, matrix))
    fn.defvjp(
        lambda x: (fn(x), x), lambda x, g: (jax.pure_callback(host_cotangent, x, x, g),)
    )
    return lambda x, args: fn(x), calls


#
# The spy
#

_lazy = (lx.JacobianLinearOperator, lx.FunctionLinearOperator)
_composite = (
    lx.AddLinearOperator,
    lx.MulLinearOperator,
    lx.NegLinearOperator,
    lx.DivLinearOperator,
    lx.ComposedLinearOperator,
)


@contextlib.contextmanager
def dense_path_fails():
    """Any attempt to read more than the tagged entries of an operator raises."""

    def fail(*args, **kwargs):
        raise AssertionError("The dense path was taken.")

    with contextlib.ExitStack() as stack:
        for cls in _lazy + _composite:
            stack.enter_context(mock.patch.object(cls, "as_matrix", fail))
        for cls in _lazy:
            stack.callback(lx.materialise.register, cls, lx.materialise.dispatch(cls))
            lx.materialise.register(cls, fail)
        for module, name in (
            (lineax_ext._rules, "read_diagonals"),
            (lineax_ext._materialise, "map_chunked"),
        ):
            stack.enter_context(mock.patch.object(module, name, fail))
        yield
