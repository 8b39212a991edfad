"""The dense matrix of an operator, in chunks."""

from typing import Literal

import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from jaxtyping import Array, Inexact, PyTree

from ._flat import cast, result_dtype, thaw, unravel
from ._rows import Rows
from ._structure.extract import (
    basis_vector,
    column_function,
    map_chunked,
    reader,
    untagged,
)


# Up to this many columns are written out one by one. In a batch this takes half as long
# as a `vmap` over them, whose every column reads all that any of them depends on.
_unrolled = 4


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

    if read.by == "columns" and count <= _unrolled:
        basis = np.eye(count, dtype=read.dtype)
        return jnp.stack([read.apply(jnp.asarray(seed)) for seed in basis]).T
    if count * count <= 4 * m * n:
        # Not made anew for every chunk: the comparisons would be fused into whatever
        # is applied to them, and slowed the Jacobian of a network down by half.
        stacked = map_chunked(read.apply, jnp.eye(count, dtype=read.dtype))
    else:
        basis = lambda index: basis_vector(index, count, read.dtype)
        indices = lax.iota(jnp.int32, count)
        stacked = map_chunked(lambda index: read.apply(basis(index)), indices)
    return stacked.T if read.by == "columns" else stacked


def sharded_columns(
    operator: lx.AbstractLinearOperator, rows: Rows
) -> Inexact[Array, "n p l"]:
    """The columns of `operator`, each device computing the rows that it holds.

    A chunk of columns at a time: next to the matrix, no device needs more memory
    than for a chunk of its own rows.
    """
    inner = untagged(operator)
    if isinstance(inner, lx.MatrixLinearOperator):
        structure = thaw(rows.structure)
        column = lambda x: rows.blocks(unravel(x, structure))
        return jax.vmap(column, in_axes=1)(inner.matrix)
    if isinstance(inner, lx.JacobianLinearOperator) and inner.jac == "bwd":
        raise ValueError(
            "`rows` cannot be used with `JacobianLinearOperator(jac='bwd')`: a row "
            "of the Jacobian is a backward pass over all devices. Use "
            "`jac='fwd'`, whose columns each device computes for its own rows."
        )
    fn, structure = column_function(inner), inner.in_structure()
    dtype = result_dtype(inner.out_structure())

    def apply(seed):
        return cast(rows.blocks(fn(unravel(seed, structure))), dtype)

    basis = jnp.eye(inner.in_size(), dtype=dtype)
    return rows.constrain(map_chunked(apply, basis, devices=rows.count), axis=1)


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
