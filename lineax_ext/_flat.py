"""Flat vectors in place of pytrees, for any mixture of leaf dtypes.

`jax.flatten_util.ravel_pytree` refuses mixed dtypes under strict promotion, and
returns a closure; a solver's state must compare by value.
"""

import math
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Inexact, PyTree


# A structure as hashable data: what a static field of a solver's state can hold.
FrozenStructure: TypeAlias = tuple[Any, tuple[jax.ShapeDtypeStruct, ...]]


def freeze(structure: PyTree[jax.ShapeDtypeStruct]) -> FrozenStructure:
    leaves, treedef = jtu.tree_flatten(structure)
    return treedef, tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves)


def thaw(frozen: FrozenStructure) -> PyTree[jax.ShapeDtypeStruct]:
    treedef, leaves = frozen
    return jtu.tree_unflatten(treedef, leaves)


def result_dtype(tree: PyTree[Any]) -> jnp.dtype:
    """The dtype of `ravel(tree)`: what the leaves promote to."""
    leaves = jtu.tree_leaves(tree)
    if len(leaves) == 0:
        return jnp.zeros(()).dtype
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*[x.dtype for x in leaves])


def is_complex(tree: PyTree[Any]) -> bool:
    return jnp.issubdtype(result_dtype(tree), jnp.complexfloating)


def tree_size(structure: PyTree[jax.ShapeDtypeStruct]) -> int:
    return sum(math.prod(x.shape) for x in jtu.tree_leaves(structure))


def ravel(tree: PyTree[Array]) -> Inexact[Array, " size"]:
    """Concatenates the leaves, in `jax.tree_util` order, each in row-major order."""
    dtype = result_dtype(tree)
    leaves = [x.astype(dtype).reshape(-1) for x in jtu.tree_leaves(tree)]
    if len(leaves) == 0:
        return jnp.zeros((0,), dtype)
    return leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves)


def cast(x: Array, dtype: Any) -> Array:
    """`astype`, saying that a complex value meant for a real slot keeps its real part.

    Only reached by operators that mix real and complex leaves.
    """
    if jnp.iscomplexobj(x) and not jnp.issubdtype(dtype, jnp.complexfloating):
        x = x.real
    return x.astype(dtype)


def unravel(
    flat: Inexact[Array, " size"], structure: PyTree[jax.ShapeDtypeStruct]
) -> PyTree[Array]:
    """The inverse of `ravel`; every leaf gets its own dtype back."""
    leaves, treedef = jtu.tree_flatten(structure)
    out, start = [], 0
    for leaf in leaves:
        stop = start + math.prod(leaf.shape)
        out.append(cast(flat[start:stop].reshape(leaf.shape), leaf.dtype))
        start = stop
    return jtu.tree_unflatten(treedef, out)
