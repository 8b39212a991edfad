"""Pytrees as blocks of rows on a mesh of devices."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Inexact, PyTree

from ._flat import cast, FrozenStructure, result_dtype, thaw, tree_size


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
    def explicit(self) -> bool:
        """Whether the types of arrays say how they lie on the axes."""
        types = dict(zip(self.mesh.axis_names, self.mesh.axis_types))
        return all(types[name] == AxisType.Explicit for name in self.axes)

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
        if self.explicit:
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
