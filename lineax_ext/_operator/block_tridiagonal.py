"""A matrix whose blocks lie on three diagonals."""

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, Inexact, Shaped

from .._flat import is_complex, result_dtype
from .._tags import tag_set


def _multiply(blocks: Array, vectors: Array) -> Array:
    return jnp.einsum("nij,nj->ni", blocks, vectors, precision=lax.Precision.HIGHEST)


class BlockTridiagonalLinearOperator(lx.AbstractLinearOperator):
    """A square matrix with N×N blocks of size k×k, zero but for three block diagonals:

    (A x)ᵢ = Lᵢ₋₁ xᵢ₋₁ + Dᵢ xᵢ + Uᵢ xᵢ₊₁, for x cut into N pieces of size k.

    Acts on flat vectors of size N·k. O(N k²) memory, and as much work for one
    application. To solve with it: [`lineax_ext.BlockTridiagonal`][].

    **Arguments:**

    - `diagonal`: D, of shape (N, k, k).
    - `lower_diagonal`: L, of shape (N−1, k, k): block i stands in block row i+1.
    - `upper_diagonal`: U, of shape (N−1, k, k): block i stands in block row i.
    - `tags`: what else is known of the matrix, as for `lineax.MatrixLinearOperator`.
        Taken on trust.

    **Raises:**

    `ValueError` for blocks of other shapes.
    """

    diagonal: Inexact[Array, "N k k"]
    lower_diagonal: Inexact[Array, "N-1 k k"]
    upper_diagonal: Inexact[Array, "N-1 k k"]
    tags: frozenset[object] = eqx.field(static=True)

    def __init__(
        self,
        diagonal: Shaped[Array, "N k k"],
        lower_diagonal: Shaped[Array, "N-1 k k"],
        upper_diagonal: Shaped[Array, "N-1 k k"],
        tags: object = (),
    ):
        bands = jtu.tree_map(jnp.asarray, (diagonal, lower_diagonal, upper_diagonal))
        shapes = [x.shape for x in bands]
        count, *block = shapes[0] if bands[0].ndim == 3 else (0, 0)
        off = (max(count - 1, 0), *block)
        if len(block) != 2 or block[0] != block[1] or shapes[1:] != [off, off]:
            raise ValueError(
                "`BlockTridiagonalLinearOperator` needs `diagonal` of shape (N, k, k), "
                "`lower_diagonal` and `upper_diagonal` of shape (N-1, k, k); found "
                f"{', '.join(map(str, shapes))}."
            )
        dtype = result_dtype(bands)
        if not jnp.issubdtype(dtype, jnp.inexact):
            dtype = jnp.zeros(()).dtype
        bands = [x.astype(dtype) for x in bands]
        self.diagonal, self.lower_diagonal, self.upper_diagonal = bands
        self.tags = tag_set(tags)

    def mv(self, vector: Inexact[Array, " N*k"]) -> Inexact[Array, " N*k"]:
        x = vector.reshape(self.diagonal.shape[:2])
        out = _multiply(self.diagonal, x)
        out = out.at[1:].add(_multiply(self.lower_diagonal, x[:-1]))
        out = out.at[:-1].add(_multiply(self.upper_diagonal, x[1:]))
        return out.reshape(vector.shape)

    def as_matrix(self) -> Inexact[Array, "N*k N*k"]:
        count, k, _ = self.diagonal.shape
        i = jnp.arange(count)
        out = jnp.zeros((count, count, k, k), self.diagonal.dtype)
        out = out.at[i, i].set(self.diagonal)
        out = out.at[i[1:], i[:-1]].set(self.lower_diagonal)
        out = out.at[i[:-1], i[1:]].set(self.upper_diagonal)
        return out.transpose(0, 2, 1, 3).reshape(count * k, count * k)

    def transpose(self) -> "BlockTridiagonalLinearOperator":
        if lx.is_symmetric(self):
            return self
        return BlockTridiagonalLinearOperator(
            self.diagonal.mT,
            self.upper_diagonal.mT,
            self.lower_diagonal.mT,
            lx.transpose_tags(self.tags),
        )

    def in_structure(self) -> jax.ShapeDtypeStruct:
        count, k, _ = self.diagonal.shape
        return jax.ShapeDtypeStruct((count * k,), self.diagonal.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return self.in_structure()


@lx.linearise.register(BlockTridiagonalLinearOperator)
def _(operator):
    return operator


@lx.materialise.register(BlockTridiagonalLinearOperator)
def _(operator):
    return operator


@lx.conj.register(BlockTridiagonalLinearOperator)
def _(operator):
    return BlockTridiagonalLinearOperator(
        operator.diagonal.conj(),
        operator.lower_diagonal.conj(),
        operator.upper_diagonal.conj(),
        operator.tags,
    )


@lx.diagonal.register(BlockTridiagonalLinearOperator)
def _(operator):
    return jnp.diagonal(operator.diagonal, axis1=1, axis2=2).reshape(-1)


@lx.tridiagonal.register(BlockTridiagonalLinearOperator)
def _(operator):
    def off_diagonal(offset, corners):
        # k−1 entries within each block, and one between it and the next.
        inside = jnp.diagonal(operator.diagonal, offset, axis1=1, axis2=2)
        between = jnp.pad(corners, (0, len(inside) - len(corners)))
        return jnp.concatenate([inside, between[:, None]], axis=1).reshape(-1)[:-1]

    if operator.in_size() == 0:
        empty = jnp.zeros((0,), operator.diagonal.dtype)
        return empty, empty, empty
    lower = off_diagonal(-1, operator.lower_diagonal[:, 0, -1])
    upper = off_diagonal(1, operator.upper_diagonal[:, -1, 0])
    return lx.diagonal(operator), lower, upper


@lx.is_tridiagonal.register(BlockTridiagonalLinearOperator)
def _(operator):
    return operator.diagonal.shape[1] == 1 or any(
        tag in operator.tags for tag in (lx.tridiagonal_tag, lx.diagonal_tag)
    )


@lx.is_symmetric.register(BlockTridiagonalLinearOperator)
def _(operator):
    # Semidefinite is Hermitian, which is symmetric if it is real.
    semidefinite = (lx.positive_semidefinite_tag, lx.negative_semidefinite_tag)
    tags = (lx.symmetric_tag, lx.diagonal_tag)
    tags = tags if is_complex(operator.diagonal) else (*tags, *semidefinite)
    return any(tag in operator.tags for tag in tags)


for _check, _tags in (
    (lx.is_diagonal, (lx.diagonal_tag,)),
    (lx.has_unit_diagonal, (lx.unit_diagonal_tag,)),
    (lx.is_lower_triangular, (lx.lower_triangular_tag, lx.diagonal_tag)),
    (lx.is_upper_triangular, (lx.upper_triangular_tag, lx.diagonal_tag)),
    (lx.is_positive_semidefinite, (lx.positive_semidefinite_tag,)),
    (lx.is_negative_semidefinite, (lx.negative_semidefinite_tag,)),
):

    @_check.register(BlockTridiagonalLinearOperator)
    def _(operator, tags=_tags):
        return any(tag in operator.tags for tag in tags)
