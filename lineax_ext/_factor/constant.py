"""Arrays that no transformation takes for an argument."""

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.interpreters import mlir
from jaxtyping import Array


class _Held:
    """An array as a parameter: compares by identity."""

    def __init__(self, array: np.ndarray):
        self.array = array

    def __eq__(self, other):
        return isinstance(other, _Held) and self.array is other.array

    def __hash__(self):
        return id(self.array)


constant_p = jex.Primitive("constant")


def constant(array: np.ndarray) -> Array:
    """The array, as an operation without operands.

    JAX makes what a branch of `lax.cond` closes over an operand of it, and where `vmap`
    batches what chooses the branch, one for each lane: 16 lanes copied their index
    arrays 16 times, which took as long as what was done with them.
    """
    return constant_p.bind(held=_Held(array))


def _made(*, held: _Held) -> Array:
    return jnp.asarray(held.array)


constant_p.def_impl(jax.jit(_made, static_argnames=("held",)))
constant_p.def_abstract_eval(
    lambda *, held: ShapedArray(held.array.shape, held.array.dtype)
)
mlir.register_lowering(constant_p, mlir.lower_fun(_made, multiple_results=False))
