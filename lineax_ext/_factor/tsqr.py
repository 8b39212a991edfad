"""QR of a matrix whose rows lie on many devices."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Inexact

from .._rows import Rows
from .householder import householder_qr, HouseholderQR
from .triangular_stack import condense


class TSQR(eqx.Module):
    """A = Q R, Q as a tree of Householder factors; for use as `HouseholderQR`.

    `factors[0]` are the QRs of the blocks, one on each device. `factors[i]` are those
    of the stacks of triangles that were gathered along the i-th axis of the mesh,
    counted from the minor one; the devices along that axis all hold the same one.
    """

    factors: tuple[HouseholderQR, ...]
    rows: Rows

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.size, self.factors[0].shape[1]

    @property
    def dtype(self) -> jnp.dtype:
        return self.factors[0].dtype

    @property
    def r(self) -> Inexact[Array, "n n"]:
        """R in the upper triangle, to be taken out."""
        return self.factors[-1].householder[0, : self.shape[1]]

    def q_adjoint_multiply(self, blocks: Inexact[Array, "p l"]) -> Inexact[Array, " n"]:
        """The first n entries of Qᴴ b: a gather of n numbers a device."""

        def apply(factors, blocks):
            local, *gathered = _here(factors)
            c = local.q_adjoint_multiply(_fill(blocks[0], local.shape[0]))
            for axis, qr in zip(reversed(self.rows.axes), gathered):
                c = qr.q_adjoint_multiply(lax.all_gather(c, axis, tiled=True))
            return c

        specs = (_specs(self.rows), PartitionSpec(self.rows.axes))
        return _on_devices(self.rows, apply, specs, PartitionSpec())(
            self.factors, blocks
        )

    def q_multiply(self, vector: Inexact[Array, " n"]) -> Inexact[Array, "p l"]:
        """Q [c; 0], as blocks: no communication."""
        n, length = self.shape[1], self.rows.length

        def apply(factors, c):
            local, *gathered = _here(factors)
            for axis, qr in zip(self.rows.axes, reversed(gathered)):
                c = qr.q_multiply(c)
                c = lax.dynamic_slice_in_dim(c, lax.axis_index(axis) * n, n)
            return local.q_multiply(c)[None, :length]

        specs = (_specs(self.rows), PartitionSpec())
        out = PartitionSpec(self.rows.axes)
        return _on_devices(self.rows, apply, specs, out)(self.factors, vector)


def tsqr(columns: Inexact[Array, "n p l"], rows: Rows) -> TSQR:
    """The QR of a tall matrix, given as `sharded_columns` returns it.

    A QR on each device, of l rows, or of n where there are fewer; then, along each axis
    of the mesh in turn, from the minor to the major one, a gather of the n×n triangles
    and the QR of their stack, the same on all devices along that axis. One axis is a
    tree of height one, several axes are a tree along the mesh.

    2 l n² + 2 n³ Σ pᵢ flops a device, for axes of pᵢ devices, and a gather of n² pᵢ
    numbers for each.

    Source: Demmel, Grigori, Hoemmen, Langou, *Communication-optimal Parallel and
    Sequential QR and LU Factorizations*, SIAM J. Sci. Comput. 34 (2012),
    doi:10.1137/080731992.
    """

    def factorise(columns):
        n = columns.shape[0]
        qr = HouseholderQR(*householder_qr(_fill(columns[:, 0].T, n)))
        factors = [qr]
        for axis in reversed(rows.axes):
            stack = lax.all_gather(jnp.triu(qr.r), axis, tiled=True)
            qr = HouseholderQR(*householder_qr(stack))
            factors.append(qr)
        return jtu.tree_map(lambda x: x[None], tuple(factors))

    spec = PartitionSpec(None, rows.axes)
    return TSQR(_on_devices(rows, factorise, (spec,), _specs(rows))(columns), rows)


def condense_rows(
    columns: Inexact[Array, "n p l"], blocks: Inexact[Array, "p l"], rows: Rows
) -> tuple[Inexact[Array, "n n"], Inexact[Array, " n"]]:
    """As `condense`, of rows on many devices: one gather of n² + n numbers a device."""

    def apply(columns, blocks):
        n = columns.shape[0]
        st, c = condense(_fill(columns[:, 0].T, n), _fill(blocks[0], n))
        for axis in reversed(rows.axes):
            gather: Any = lambda x: lax.all_gather(x, axis, tiled=True)  # noqa: B023
            stack = gather(jnp.concatenate([st.T, c[:, None]], axis=1))
            st, c = condense(stack[:, :n], stack[:, n])
        return st, c

    specs = PartitionSpec(None, rows.axes), PartitionSpec(rows.axes)
    out = PartitionSpec(), PartitionSpec()
    return _on_devices(rows, apply, specs, out)(columns, blocks)


def _specs(rows: Rows) -> tuple[PartitionSpec, ...]:
    """Of the factors, whose leading axis is that of the devices that differ."""
    varying = [rows.axes[: len(rows.axes) - i] for i in range(len(rows.axes) + 1)]
    return tuple(PartitionSpec(axes or None) for axes in varying)


def _here(factors: tuple[HouseholderQR, ...]) -> tuple[HouseholderQR, ...]:
    return jtu.tree_map(lambda x: x[0], factors)


def _fill(rows: Array, count: int) -> Array:
    """Zeros below, up to `count` rows; they change nothing, not even a rounding."""
    missing = max(0, count - rows.shape[0])
    return jnp.pad(rows, [(0, missing)] + [(0, 0)] * (rows.ndim - 1))


def _on_devices(rows: Rows, fn: Callable, in_specs: Any, out_specs: Any) -> Callable:
    # Unchecked: it cannot be seen that a gather leaves the same on all devices.
    mapped = jax.shard_map(
        fn,
        mesh=rows.mesh,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names=frozenset(rows.axes),
        check_vma=False,
    )
    if not rows.explicit:
        return mapped

    # What lineax says of a state to `eval_shape` leaves shardings out.
    def resharded(*args):
        place = lambda spec, x: jax.sharding.reshard(x, NamedSharding(rows.mesh, spec))
        leaf = lambda x: isinstance(x, PartitionSpec)
        each = lambda spec, arg: jtu.tree_map(lambda x: place(spec, x), arg)
        return mapped(*jtu.tree_map(each, in_specs, args, is_leaf=leaf))

    return resharded
