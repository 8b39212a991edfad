"""Direct solution of block-tridiagonal systems."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree

from .._operator.block_tridiagonal import BlockTridiagonalLinearOperator
from .._structure.blocks import block_size, Blocks, merge
from .._structure.extract import untagged
from .block_lu import block_lu, BlockLU
from .orientation import orient, Orientation


class _BlockTridiagonalState(eqx.Module):
    factors: BlockLU | None
    orientation: Orientation


class BlockTridiagonal(lx.AbstractLinearSolver[_BlockTridiagonalState]):
    """Gaussian elimination of a block-tridiagonal matrix."""

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> _BlockTridiagonalState:
        del options
        inner = untagged(operator)
        if not isinstance(inner, BlockTridiagonalLinearOperator):
            raise ValueError(
                "`BlockTridiagonal` solves with a `BlockTridiagonalLinearOperator`, "
                f"and was given a `{type(inner).__name__}`."
            )
        orientation = orient(inner)
        if inner.in_size() == 0:
            return _BlockTridiagonalState(None, orientation)
        blocks = Blocks(inner.diagonal, inner.lower_diagonal, inner.upper_diagonal)
        blocks = jax.lax.stop_gradient(blocks)
        k = inner.diagonal.shape[1]
        factor = max(1, block_size(2 * k - 1) // k)
        return _BlockTridiagonalState(block_lu(merge(blocks, factor)), orientation)

    def compute(
        self,
        state: _BlockTridiagonalState,
        vector: PyTree[Array],
        options: dict[str, Any],
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        del options
        factors = state.factors
        if factors is None:
            return vector, lx.RESULTS.successful, {}
        count, k = factors.scale.shape

        def fold(fn):
            def folded(b):
                padded = jnp.pad(b, (0, count * k - b.size))
                return fn(padded.reshape(count, k)).reshape(-1)[: b.size]

            return folded

        solution = state.orientation.solve_flat(
            fold(factors.solve),
            fold(factors.solve_adjoint),
            vector,
            factors.forward.dtype,
        )
        result = lx.RESULTS.where(
            factors.singular, lx.RESULTS.singular, lx.RESULTS.successful
        )
        return solution, result, {}

    def transpose(self, state: _BlockTridiagonalState, options: dict[str, Any]):
        del options
        return dataclasses.replace(state, orientation=state.orientation.transpose()), {}

    def conj(self, state: _BlockTridiagonalState, options: dict[str, Any]):
        del options
        return dataclasses.replace(state, orientation=state.orientation.conj()), {}

    def assume_full_rank(self) -> bool:
        return True
