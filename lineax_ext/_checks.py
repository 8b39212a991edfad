"""Arguments that are easily mistaken, told where they are handed over."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from jaxtyping import PyTree


def called(x: Any) -> str:
    """What an error calls it."""
    if isinstance(x, type):
        return f"the class `{x.__name__}` itself, not an instance"
    if isinstance(x, jax.Array | np.ndarray):
        return f"an array of shape {x.shape}"
    return f"a `{type(x).__name__}`"


def check_operator(operator: Any, name: str) -> None:
    if not isinstance(operator, lx.AbstractLinearOperator):
        raise ValueError(
            f"`{name}` needs a `lineax.AbstractLinearOperator`; found "
            f"{called(operator)}. A matrix can be wrapped in a "
            "`lineax.MatrixLinearOperator`."
        )


def check_key(key: Any, name: str) -> None:
    if not isinstance(key, jax.Array | np.ndarray):
        raise ValueError(
            f"`{name}(key=…)` must be a random key, `jax.random.key(0)`; found "
            f"{called(key)}."
        )


def check_linear_solver(solver: Any, name: str) -> None:
    if not isinstance(solver, lx.AbstractLinearSolver):
        raise ValueError(
            f"`{name}` must be a linear solver, such as "
            f"`lineax_ext.AutoStructuredLinearSolver()`; found {called(solver)}."
        )


def check_state(state: Any, expected: Any, solver: lx.AbstractLinearSolver) -> None:
    if not isinstance(state, expected):
        raise ValueError(
            f"`state` is not one of `{type(solver).__name__}`; found a "
            f"`{type(state).__name__}`."
        )


def check_vector(
    vector: PyTree[Any], operator: lx.AbstractLinearOperator, name: str
) -> None:
    """That shapes agree, and dtypes but for what can be cast without loss."""
    structure = operator.out_structure()
    struct = lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x))
    found = jtu.tree_map(struct, vector)
    shapes = lambda tree: jtu.tree_map(jnp.shape, tree)
    pairs = zip(jtu.tree_leaves(found), jtu.tree_leaves(structure))
    fits = eqx.tree_equal(shapes(found), shapes(structure)) and all(
        np.can_cast(x.dtype, s.dtype) or not jnp.issubdtype(x.dtype, jnp.inexact)
        for x, s in pairs
    )
    if not fits:
        raise ValueError(
            f"`{name}(operator, vector, …)`: the vector must have the structure of the "
            f"operator's output, {structure}; found {found}."
        )
