"""Many independent problems on many devices, without communication."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
from jaxtyping import ArrayLike, PyTree

from ._solver.sharding import axes_of, check_sharding, mesh_here


def sharded_vmap(
    fn: Callable[..., Any],
    lanes: NamedSharding,
    in_axes: int | None | Sequence[int | None] = 0,
) -> Callable[..., Any]:
    """`jax.vmap(fn)` over an axis that is split over devices: an ensemble.

    Each device maps `fn` over the lanes that it holds, and knows nothing of the others.
    No number is moved, whatever `fn` does; loops end on each device when its own lanes
    are done. (`jax.vmap` alone gives the same numbers. But a loop under it, such as
    those of a fit, of an ODE solver or of iterative refinement, goes on until all lanes
    on all devices are done, and in each round all devices are asked.)

    This is `jax.shard_map`, inside of which lineax, optimistix and diffrax cannot be
    called by themselves: they compare structures of arrays, some of which say how they
    are sharded. Here `fn` is traced without a mesh. For the same reason derivatives are
    taken inside: of one lane, as `sharded_vmap(jax.grad(loss), lanes)`.

    !!! Example

        ```python
        from jax.sharding import NamedSharding, PartitionSpec

        mesh = jax.make_mesh((jax.device_count(),), ("lanes",))
        lanes = NamedSharding(mesh, PartitionSpec("lanes"))

        def fit(start):
            solver = lxe.LevenbergMarquardt(rtol=1e-8, atol=1e-8)
            return optx.least_squares(residuals, solver, start, throw=False).value

        starts = jnp.stack([y0, y0 + 1] * jax.device_count())
        fits = jax.jit(lxe.sharded_vmap(fit, lanes))
        values = fits(jax.device_put(starts, lanes))
        ```

    **Arguments:**

    - `fn`: any function of pytrees of arrays. It may close over arrays, which all
        devices then hold.
    - `lanes`: the axes of a mesh over which the lanes are split.
    - `in_axes`: for each argument, the axis of its arrays that counts the lanes, or
        `None` if all lanes share it; an integer holds for all.

    **Returns:**

    A function of as many arguments, none by name. The leading axis of its outputs
    counts the lanes, and is split as `lanes` says.

    **Raises:**

    `ValueError` for `lanes` that name no axis of a mesh, for a number of lanes that is
    no multiple of the number of devices, for `in_axes` that the arguments do not have,
    on a mesh of `jax.sharding.AxisType.Explicit` for arrays that are not split as
    `lanes` says, and on differentiating from outside.
    """
    check_sharding(lanes, "sharded_vmap(lanes=...)")
    axes = axes_of(lanes)

    def here(*args):
        # The types of these are those of one device, and name no mesh.
        structures = jtu.tree_map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args
        )
        with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
            traced, closed_over = jax.closure_convert(
                jax.vmap(fn, in_axes), *structures
            )
        return traced(*args, *_undifferentiated(closed_over))

    def mapped(*args):
        each = (in_axes,) * len(args) if isinstance(in_axes, int | None) else in_axes
        if len(each) != len(args):
            raise ValueError(
                f"`sharded_vmap(in_axes=…)` has {len(each)} axes, for {len(args)} "
                "arguments."
            )
        return jax.shard_map(
            here,
            mesh=mesh_here(lanes),
            in_specs=tuple(_spec(arg, axis, axes) for arg, axis in zip(args, each)),
            out_specs=PartitionSpec(axes),
            axis_names=frozenset(axes),
            check_vma=False,
        )(*_undifferentiated(args))

    return mapped


def _spec(arg: PyTree[ArrayLike], axis: int | None, axes: tuple[str, ...]) -> Any:
    """How the arrays of an argument are split, if `axis` counts their lanes."""
    if axis is None:
        return PartitionSpec()

    def split(x):
        rank = jnp.ndim(x)
        if not -rank <= axis < rank:
            raise ValueError(
                f"`sharded_vmap` was given an array of shape {jnp.shape(x)}, which has "
                f"no axis {axis} that counts the lanes. With `None` in `in_axes` all "
                "lanes share it."
            )
        return PartitionSpec(*[None] * (axis % rank), axes)

    return jtu.tree_map(split, arg)


@jax.custom_jvp
def _undifferentiated(args):
    return args


@_undifferentiated.defjvp
def _(primals, tangents):
    # The rules of lineax and equinox would be called with types that name the mesh.
    raise ValueError(
        "`sharded_vmap` cannot be differentiated from outside. Differentiate the "
        "function of one lane: `sharded_vmap(jax.grad(loss), lanes)`."
    )
