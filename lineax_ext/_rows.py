"""How the rows of an operator lie on a mesh of devices."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Inexact, PyTree

from ._flat import cast, freeze, FrozenStructure, result_dtype, thaw, tree_size, unravel
from ._structure.extract import column_function, map_chunked, untagged


class Rows(eqx.Module):
    """The output of an operator as p blocks of l rows, block i on device i.

    Each leaf is split along its leading axis, as it lies on the mesh already; zeros
    fill what does not divide. The rows of a block are those of every leaf. This is a
    permutation of the flattened output, which least squares does not notice, and
    moves nothing: concatenated leaves would have to move from device to device.

    All of it is static, compared and hashed by value.
    """

    mesh: Mesh | AbstractMesh = eqx.field(static=True)
    # From the major one to the minor one.
    axes: tuple[str, ...] = eqx.field(static=True)
    structure: FrozenStructure = eqx.field(static=True)

    @property
    def count(self) -> int:
        return math.prod(self.mesh.shape[axis] for axis in self.axes)

    @property
    def size(self) -> int:
        """The number of rows without padding."""
        return tree_size(thaw(self.structure))

    @property
    def length(self) -> int:
        """The number l of rows of a block."""
        pieces = [self._split(leaf) for leaf in self.structure[1]]
        return sum(count * width for _, count, width in pieces)

    def _split(self, leaf: Any) -> tuple[int, int, int]:
        """The length of what is split, its share of a block, and entries of each."""
        size = math.prod(leaf.shape)
        lead = leaf.shape[0] if len(leaf.shape) > 0 else 1
        # A short leading axis would be mostly padding.
        lead = lead if lead >= self.count else size
        return lead, -(-lead // self.count), size // max(lead, 1)

    def constrain(self, x: Array, axis: int = 0) -> Array:
        spec = PartitionSpec(*[None] * axis, self.axes)
        sharding = NamedSharding(self.mesh, spec)
        types = dict(zip(self.mesh.axis_names, self.mesh.axis_types))
        if all(types[name] == AxisType.Explicit for name in self.axes):
            return jax.sharding.reshard(x, sharding)
        return jax.lax.with_sharding_constraint(x, sharding)

    def blocks(self, tree: PyTree[Array]) -> Inexact[Array, "p l"]:
        dtype = result_dtype(tree)

        def block(leaf):
            lead, share, width = self._split(leaf)
            x = leaf.astype(dtype).reshape(lead, width)
            if padding := self.count * share - lead:
                x = jnp.pad(x, ((0, padding), (0, 0)))
            # Two steps: the first splits the axis that is sharded, the second merges.
            x = x.reshape(self.count, share, width)
            return self.constrain(x.reshape(self.count, share * width))

        blocks = [block(leaf) for leaf in jtu.tree_leaves(tree)]
        return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=1)

    def unblock(self, blocks: Inexact[Array, "p l"]) -> PyTree[Array]:
        """The inverse of `blocks`; every leaf gets its own dtype back."""
        treedef, leaves = self.structure
        out, start = [], 0
        for leaf in leaves:
            lead, share, width = self._split(leaf)
            x = blocks[:, start : start + share * width]
            x = x.reshape(self.count, share, width).reshape(-1, width)
            x = x if len(x) == lead else x[:lead]
            out.append(cast(x.reshape(leaf.shape), leaf.dtype))
            start += share * width
        return jtu.tree_unflatten(treedef, out)

    def columns(self, operator: lx.AbstractLinearOperator) -> Inexact[Array, "n p l"]:
        """The columns of `operator`, each device computing the rows that it holds.

        A chunk of columns at a time: next to the matrix, no device needs more memory
        than for a chunk of its own rows.
        """
        inner = untagged(operator)
        if isinstance(inner, lx.MatrixLinearOperator):
            structure = thaw(self.structure)
            column = lambda x: self.blocks(unravel(x, structure))
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
            return cast(self.blocks(fn(unravel(seed, structure))), dtype)

        basis = jnp.eye(inner.in_size(), dtype=dtype)
        return self.constrain(map_chunked(apply, basis, devices=self.count), axis=1)


def find_rows(
    sharding: NamedSharding | None, operator: lx.AbstractLinearOperator, solver: str
) -> Rows | None:
    """The `rows` of a solver for `operator`; `None` if all is on one device.

    Where it is not given, it is taken from the type of the operator's output, which
    says how it is sharded if the axes of the mesh are `jax.sharding.AxisType.Explicit`.
    """
    if sharding is None:
        sharding = _explicit(operator)
        if sharding is None:
            return None
    m, n = operator.out_size(), operator.in_size()
    if m < n or n == 0:
        raise ValueError(
            f"`{solver}` with its rows on several devices needs an operator with at "
            f"least as many rows as columns, and one column; found {m}×{n}. Leave "
            "`rows` out."
        )
    axes = _row_axes(sharding)
    return Rows(sharding.mesh, axes, freeze(operator.out_structure()))


def check_rows(sharding: Any, solver: str) -> None:
    if sharding is None:
        return
    if not isinstance(sharding, NamedSharding):
        raise ValueError(
            f"`{solver}(rows=...)` must be a `jax.sharding.NamedSharding`; found a "
            f"`{type(sharding).__name__}`."
        )
    if len(_row_axes(sharding)) == 0:
        raise ValueError(
            f"`{solver}(rows=...)` must name the axes of the mesh along which the rows "
            "lie, and no others, as `NamedSharding(mesh, PartitionSpec('rows'))`; "
            f"found {sharding.spec}."
        )


def _row_axes(sharding: NamedSharding) -> tuple[str, ...]:
    first, *rest = sharding.spec or (None,)
    if first is None or any(axis is not None for axis in rest):
        return ()
    return first if isinstance(first, tuple) else (first,)


def _explicit(operator: lx.AbstractLinearOperator) -> NamedSharding | None:
    """The sharding of the leading axis, if the types of all outputs carry the same."""
    if AxisType.Explicit not in jax.sharding.get_abstract_mesh().axis_types:
        return None
    # `out_structure` says nothing of a sharding.
    structure = jax.eval_shape(operator.mv, operator.in_structure())
    found = set()
    for leaf in jtu.tree_leaves(structure):
        spec = leaf.sharding.spec
        axes = _row_axes(NamedSharding(leaf.sharding.mesh, PartitionSpec(*spec[:1])))
        found.add(NamedSharding(leaf.sharding.mesh, PartitionSpec(axes or None)))
    sharding = found.pop() if len(found) == 1 else None
    return None if sharding is None or len(_row_axes(sharding)) == 0 else sharding
