"""The dense matrix of an operator, in chunks."""

from typing import Literal

import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, Inexact, PyTree

from ._flat import unravel
from ._structure.extract import basis_vector, map_chunked, reader, untagged


def as_matrix(
    operator: lx.AbstractLinearOperator, by: Literal["columns", "rows"] | None = None
) -> Inexact[Array, "m n"]:
    """The matrix of `operator`, as `operator.as_matrix()`.

    Jacobian and Function operators are read a chunk of basis vectors at a time: one
    `vmap` over all of them leaves the cache, and is 2 to 3 times slower on a CPU.
    Columns are stacked as the rows of the transpose, so that what LAPACK is handed is
    already in its column-major layout.

    `by` is as for `reader`; by default, what lineax takes to be the cheaper one.
    """
    inner = untagged(operator)
    if not isinstance(inner, lx.JacobianLinearOperator | lx.FunctionLinearOperator):
        return inner.as_matrix()
    m, n = inner.out_size(), inner.in_size()
    wide = n >= 100 and n > 1.5 * m
    read = reader(inner, by or ("rows" if wide else "columns"))
    count = n if read.by == "columns" else m
    if count == 0:
        return jnp.zeros((m, n), read.dtype)

    if count * count <= 4 * m * n:
        # Not made anew for every chunk: the comparisons would be fused into whatever
        # is applied to them, and slowed the Jacobian of a network down by half.
        stacked = map_chunked(read.apply, jnp.eye(count, dtype=read.dtype))
    else:
        basis = lambda index: basis_vector(index, count, read.dtype)
        indices = lax.iota(jnp.int32, count)
        stacked = map_chunked(lambda index: read.apply(basis(index)), indices)
    return stacked.T if read.by == "columns" else stacked


def as_pytree_operator(
    matrix: Inexact[Array, "m n"],
    in_structure: PyTree[jax.ShapeDtypeStruct],
    out_structure: PyTree[jax.ShapeDtypeStruct],
) -> lx.PyTreeLinearOperator:
    """The operator between pytrees of one dtype that has this matrix."""
    leaves, treedef = jtu.tree_flatten(out_structure)
    pytree, start = [], 0
    for leaf in leaves:
        rows = matrix[start : start + leaf.size].reshape(*leaf.shape, matrix.shape[1])
        split = lambda row: unravel(row, in_structure)
        for _ in leaf.shape:
            split = jax.vmap(split)
        pytree.append(split(rows))
        start += leaf.size
    return lx.PyTreeLinearOperator(treedef.unflatten(pytree), out_structure)
