"""Which rows of an operator a solver takes to be on which device."""

from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
import lineax as lx
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from .._checks import called
from .._flat import freeze
from .._rows import Rows


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
    axes = axes_of(sharding)
    return Rows(mesh_here(sharding), axes, freeze(operator.out_structure()))


def mesh_here(sharding: NamedSharding) -> Mesh | AbstractMesh:
    """The mesh, its axes of the types that `jax.set_mesh` or `auto_axes` gives them."""
    here = jax.sharding.get_abstract_mesh()
    return here if here.shape == sharding.mesh.shape else sharding.mesh


def check_rows(sharding: Any, solver: str) -> None:
    if sharding is not None:
        check_sharding(sharding, f"{solver}(rows=...)")


def check_sharding(sharding: Any, argument: str) -> None:
    if not isinstance(sharding, NamedSharding):
        raise ValueError(
            f"`{argument}` must be a `jax.sharding.NamedSharding`; found "
            f"{called(sharding)}."
        )
    if len(axes_of(sharding)) == 0:
        raise ValueError(
            f"`{argument}` must name the axes of the mesh along which a leading axis "
            "is split, and no others, as `NamedSharding(mesh, PartitionSpec('rows'))`; "
            f"found {sharding.spec}."
        )


def check_summable(structure: PyTree[Any], descent: str) -> None:
    """That optimistix can add up residuals; not if their types are explicit."""
    for leaf in jtu.tree_leaves(structure):
        if leaf.sharding is not None and any(leaf.sharding.spec):
            raise ValueError(
                f"`{descent}` was given residuals with the explicit sharding "
                f"{leaf.sharding.spec}, which optimistix cannot add up. Make the mesh "
                "with `axis_types=(jax.sharding.AxisType.Auto,)`, or fit inside of "
                "`jax.sharding.auto_axes`."
            )


def axes_of(sharding: NamedSharding) -> tuple[str, ...]:
    """Those of the mesh along which the leading axis is split, and no other is."""
    first, *rest = sharding.spec or (None,)
    if first is None or any(axis is not None for axis in rest):
        return ()
    return first if isinstance(first, tuple) else (first,)


def _explicit(operator: lx.AbstractLinearOperator) -> NamedSharding | None:
    """The sharding of the leading axis, if the types of all outputs carry the same."""
    arrays = eqx.filter(operator, eqx.is_array)
    meshes = [jax.typeof(x).sharding.mesh for x in jtu.tree_leaves(arrays)]
    meshes.append(jax.sharding.get_abstract_mesh())
    if all(AxisType.Explicit not in mesh.axis_types for mesh in meshes):
        return None
    # `out_structure` says nothing of a sharding.
    structure = jax.eval_shape(operator.mv, operator.in_structure())
    found = set()
    for leaf in jtu.tree_leaves(structure):
        if leaf.sharding is None:
            return None
        spec = leaf.sharding.spec
        axes = axes_of(NamedSharding(leaf.sharding.mesh, PartitionSpec(*spec[:1])))
        found.add(NamedSharding(leaf.sharding.mesh, PartitionSpec(axes or None)))
    sharding = found.pop() if len(found) == 1 else None
    return None if sharding is None or len(axes_of(sharding)) == 0 else sharding
