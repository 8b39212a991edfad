"""A function applied to one sample after another, and its Jacobian."""

import functools as ft
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from jaxtyping import (
    Array,
    ArrayLike,
    Float,
    Inexact,
    Int,
    PyTree,
    ScalarLike,
    Shaped,
)

from .._flat import is_complex
from .._materialise import as_matrix
from .._structure.extract import map_chunked, sum_chunked
from .damped import as_real_inexact, check_damping, is_concrete


class SplitComplex(eqx.Module):
    """`fn`, with complex outputs as real and imaginary part, along a new last axis."""

    fn: Callable[..., PyTree[Array]]

    def __call__(self, *args):
        split = lambda x: jnp.stack([x.real, x.imag], axis=-1)
        return jtu.tree_map(
            lambda x: split(x) if jnp.iscomplexobj(x) else x, self.fn(*args)
        )


class Samplewise(eqx.Module):
    """(params, samples) ↦ the outputs, stacked; each is that of its own sample alone.

    In this the function of a `lx.JacobianLinearOperator` differs from any other: the
    rows of a sample cost one sample. Complex outputs of real parameters come as their
    real and imaginary part.
    """

    fn: Callable[[PyTree[Array], PyTree[Array]], PyTree[Array]]
    chunk_size: int | None = eqx.field(static=True)

    def __init__(
        self,
        fn: Callable[[PyTree[Array], PyTree[Array]], PyTree[Array]],
        params: PyTree[Inexact[Array, "..."]],
        samples: PyTree[Shaped[Array, "samples ..."]],
        chunk_size: int | None,
    ):
        sample = jax.eval_shape(lambda: _take(samples, 0))
        if not is_complex(params):
            fn = SplitComplex(fn)
        # What it closes over is flushed out, as by `lx.JacobianLinearOperator`.
        self.fn = eqx.filter_closure_convert(fn, params, sample)
        self.chunk_size = chunk_size

    def __call__(self, params, samples):
        batch = jax.vmap(ft.partial(self.fn, params))
        count = sample_count(samples)
        if self.chunk_size is None or self.chunk_size >= count:
            return batch(samples)
        loops = -(-count // self.chunk_size)
        chunk = -(-count // loops)  # equal chunks: the fewest samples twice

        # Every `loops`-th sample is one of a chunk: where samples lie on many devices,
        # each device has its share of every chunk, and none has to move.
        def split(x):
            if loops * chunk > count:
                x = x[jnp.minimum(lax.iota(jnp.int32, loops * chunk), count - 1)]
            return x.reshape(chunk, loops, *x.shape[1:])

        split_samples = jtu.tree_map(split, samples)

        # Checkpointed, or a linearisation would keep what each chunk computes.
        @ft.partial(jax.checkpoint, prevent_cse=False)
        def of_chunk(index):
            part = lambda x: lax.dynamic_index_in_dim(x, index, 1, keepdims=False)
            return batch(jtu.tree_map(part, split_samples))

        def join(x):
            return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])[:count]

        return jtu.tree_map(join, lax.map(of_chunk, lax.iota(jnp.int32, loops)))


class Samples(NamedTuple):
    """The Jacobian of a `Samplewise` function, a sample at a time."""

    fn: Samplewise
    params: PyTree[Inexact[Array, "..."]]
    samples: PyTree[Shaped[Array, "samples ..."]]

    def rows(self, index: Int[Array, ""]) -> Inexact[Array, "outputs n"]:
        """The rows that belong to one sample, whose outputs are flattened."""
        fn, sample = self.fn.fn, _take(self.samples, index)
        operator = lx.JacobianLinearOperator(
            fn, self.params, sample, closure_convert=False
        )
        few = operator.out_size() < operator.in_size()
        return as_matrix(operator, by="rows" if few else "columns")

    def matrix(self) -> Inexact[Array, "outputs n"]:
        """All rows, in the order of the flattened outputs."""
        indices = lax.iota(jnp.int32, sample_count(self.samples))
        stacked = map_chunked(self.rows, indices)
        # From the order of samples to that of leaves.
        outputs = jax.eval_shape(self.fn.fn, self.params, _take(self.samples, 0))
        stops = np.cumsum([leaf.size for leaf in jtu.tree_leaves(outputs)])[:-1]
        leaves = jnp.split(stacked, stops, axis=1)
        return jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in leaves])

    def column_squares(
        self, weights: Float[Array, " samples"] | None, centre: bool
    ) -> Float[Array, " n"]:
        """The squared norms of the columns of W^½ C A, or of W^½ A."""
        average = None
        if centre:
            averaged = lambda x, args: mean(weights, self.fn(x, args))
            average = as_matrix(
                lx.JacobianLinearOperator(averaged, self.params, self.samples)
            )

        def term(index):
            rows = self.rows(index)
            if average is not None:
                rows = rows - average
            squares = jnp.sum(square(rows), axis=0)
            if weights is None:
                return squares
            return weights[index].astype(squares.dtype) * squares

        return sum_chunked(term, sample_count(self.samples))


def over_one_field(operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
    """`operator`, its complex outputs of real parameters split in two."""
    params, outputs = operator.in_structure(), operator.out_structure()
    complex_params = set(map(is_complex, jtu.tree_leaves(params)))
    complex_outputs = set(map(is_complex, jtu.tree_leaves(outputs)))
    if complex_params == {False} and True in complex_outputs:
        if isinstance(operator, lx.JacobianLinearOperator):
            fn, x, args = SplitComplex(operator.fn), operator.x, operator.args
            return lx.JacobianLinearOperator(
                fn, x, args, jac=operator.jac, closure_convert=False
            )
        fn = SplitComplex(lx.linearise(operator).mv)
        return lx.FunctionLinearOperator(fn, params, closure_convert=False)
    if len(complex_params | complex_outputs) > 1:
        raise ValueError(
            "`GramLinearOperator` was given an operator from complex to real leaves, "
            "or from both kinds, which is linear over the reals only. Write the "
            "complex ones as their real and imaginary parts."
        )
    return operator


class _NoArgs(eqx.Module):
    fn: Callable[[PyTree[Array]], PyTree[Array]]

    def __call__(self, x, args):
        return self.fn(x)


def as_jacobian(
    fn: Callable[[PyTree[Array]], PyTree[Array]],
    structure: PyTree[jax.ShapeDtypeStruct],
) -> lx.JacobianLinearOperator:
    """A linear function is its own Jacobian, of which rows can be read, too."""
    zeros = jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), structure)
    return lx.JacobianLinearOperator(_NoArgs(fn), zeros, closure_convert=False)


def samples_of(operator: lx.AbstractLinearOperator) -> Samples | None:
    if isinstance(operator, lx.JacobianLinearOperator):
        if isinstance(operator.fn, Samplewise):
            return Samples(operator.fn, operator.x, operator.args)
    return None


def jacobian_matrix(
    operator: lx.AbstractLinearOperator,
) -> Inexact[Array, "outputs n"]:
    """The matrix of A, read by its rows if these are fewer."""
    samples = samples_of(operator)
    if samples is not None and operator.in_size() > 0:
        return samples.matrix()
    if isinstance(operator, lx.FunctionLinearOperator):
        operator = as_jacobian(operator.fn, operator.in_structure())
    return as_matrix(operator)


def square(x: Inexact[Array, "..."]) -> Float[Array, "..."]:
    return (x * x.conj()).real


def _take(samples: PyTree[Array], index: Any) -> PyTree[Array]:
    return jtu.tree_map(lambda x: x[index], samples)


def sample_count(samples: PyTree[Any]) -> int:
    """The common length of the leading axes; an error where there is none."""
    shapes = [jnp.shape(x) for x in jtu.tree_leaves(samples)]
    lengths = {shape[:1] for shape in shapes}
    if len(lengths) != 1 or () in lengths:
        raise ValueError(
            "The samples of a `GramLinearOperator` are the leading axis of every "
            f"array, of one length; found the shapes {shapes}."
        )
    return shapes[0][0]


_NEGATIVE = (
    "`GramLinearOperator`: `weights` and `shift` must be non-negative and finite, or "
    "the operator is not positive semidefinite."
)


def check_weights(
    weights: ArrayLike, out_structure: PyTree[jax.ShapeDtypeStruct]
) -> Float[Array, " samples"]:
    weights = as_real_inexact(weights, "weights")
    count = sample_count(out_structure)
    if weights.shape != (count,):
        raise ValueError(
            "`GramLinearOperator(weights=...)` needs one weight for each sample, the "
            f"shape {(count,)}; found {weights.shape}."
        )
    if not is_concrete(weights):
        invalid = ~((weights >= 0) & (weights < jnp.inf))
        # By way of a scalar: on several devices, what passes through a check is
        # gathered on one of them.
        one = jnp.ones((), weights.dtype)
        return weights * eqx.error_if(one, invalid, _NEGATIVE)
    values = np.asarray(weights)
    if not np.all((values >= 0) & np.isfinite(values)):
        raise ValueError(_NEGATIVE)
    return weights


def check_shift(shift: ScalarLike) -> Float[Array, ""]:
    shift = check_damping(shift, "shift")
    if is_concrete(shift):
        return shift
    return eqx.error_if(shift, ~((shift >= 0) & (shift < jnp.inf)), _NEGATIVE)


#
# What acts on the leading axis of outputs
#


def _along(weights: Float[Array, " samples"], x: Array) -> Array:
    """`weights`, to be multiplied with the leading axis of x."""
    return weights.astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def scale_samples(
    weights: Float[Array, " samples"] | None, outputs: PyTree[Array]
) -> PyTree[Array]:
    if weights is None:
        return outputs
    return jtu.tree_map(lambda x: _along(weights, x) * x, outputs)


def _probabilities(
    weights: Float[Array, " samples"], dtype
) -> Float[Array, " samples"]:
    """weights / Σ weights, which must sum to one in the precision of the outputs."""
    weights = weights.astype(jnp.finfo(dtype).dtype)
    total = jnp.sum(weights)
    # Weights that are all zero make W C zero, whatever the mean.
    return weights / jnp.where(total > 0, total, jnp.ones_like(total))


def mean(
    weights: Float[Array, " samples"] | None, outputs: PyTree[Array]
) -> PyTree[Array]:
    def average(x):
        if weights is None:
            return jnp.mean(x, axis=0)
        return jnp.sum(_along(_probabilities(weights, x.dtype), x) * x, axis=0)

    return jtu.tree_map(average, outputs)


def subtract_mean(
    weights: Float[Array, " samples"] | None, outputs: PyTree[Array]
) -> PyTree[Array]:
    return jtu.tree_map(lambda x, y: x - y[None], outputs, mean(weights, outputs))


def subtract_share(
    weights: Float[Array, " samples"] | None, outputs: PyTree[Array]
) -> PyTree[Array]:
    """Cᵀ y = y − p Σ y: the transpose of `subtract_mean`."""

    def subtract(x):
        total = jnp.sum(x, axis=0, keepdims=True)
        if weights is None:
            return x - total / x.shape[0]
        return x - _along(_probabilities(weights, x.dtype), x) * total

    return jtu.tree_map(subtract, outputs)
