"""The solvers of the kinds of matrices that `arrange` knows."""

from typing import Any

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Inexact, PyTree

from .._operator.block_tridiagonal import BlockTridiagonalLinearOperator
from .._structure.arrange import arrange, Arrangement
from .._structure.blocks import block_size, pack_band
from .._structure.pattern import Pattern
from .._structure.rearranged import coloured_matrix, rearranged_band, rearranged_blocks
from .block_tridiagonal import BlockTridiagonal
from .checked_lu import _CheckedLU
from .householder import result_of


def solver_of(arrangement: Arrangement) -> lx.AbstractLinearSolver:
    """The solver, of a square matrix that is to be regular."""
    if arrangement.kind == "band":
        narrow = lx.Diagonal(well_posed=True), lx.Tridiagonal()
        half = arrangement.half_bandwidth
        return narrow[half] if half <= 1 else BlockTridiagonal()
    return _CheckedLU() if arrangement.kind == "blocks" else lx.Triangular()


def factorise(
    solver: lx.AbstractLinearSolver,
    operator: lx.AbstractLinearOperator,
    pattern: Pattern,
) -> PyTree[Any]:
    """The state of `solver` for the operator's matrix as `arrange(pattern)` has it."""
    arrangement = arrange(pattern)
    if arrangement.kind == "band":
        n, half = len(arrangement.rows), arrangement.half_bandwidth
        band = lax.stop_gradient(rearranged_band(operator, pattern, arrangement))
        if half == 0:
            matrix = lx.DiagonalLinearOperator(band[0])
        elif half == 1:
            zeros = jnp.zeros((n - 1,), band[0].dtype)
            off = band.get(-1, zeros), band.get(1, zeros)
            matrix = lx.TridiagonalLinearOperator(band[0], *off)
        else:
            matrix = BlockTridiagonalLinearOperator(
                *pack_band(band, n, block_size(half))
            )
    elif arrangement.kind == "blocks":
        blocks = lax.stop_gradient(rearranged_blocks(operator, pattern, arrangement))
        lu = lambda block: solver.init(lx.MatrixLinearOperator(block), {})
        return eqx.filter_vmap(lu)(blocks)
    else:
        lower = arrangement.kind == "lower triangular"
        matrix = lx.MatrixLinearOperator(
            lax.stop_gradient(coloured_matrix(operator, pattern)),
            lx.lower_triangular_tag if lower else lx.upper_triangular_tag,
        )
    return solver.init(matrix, {})


def solve(
    solver: lx.AbstractLinearSolver,
    state: PyTree[Any],
    arrangement: Arrangement,
    transposed: bool,
    b: Inexact[Array, " n"],
) -> tuple[Inexact[Array, " n"], lx.RESULTS]:
    """A⁻¹ b, or A⁻ᵀ b, in the order of the operator's own rows and columns."""
    order, positions = arrangement.rows, arrangement.column_positions
    if transposed:
        order, positions = arrangement.columns, arrangement.row_positions
    (n,) = b.shape
    if not arrangement.in_order:
        # Positions without a row read the zero.
        b = jnp.append(b, jnp.zeros((), b.dtype))[order]
    if arrangement.kind == "blocks":
        compute = lambda state, b: solver.compute(state, b, {})[:2]
        x, results = eqx.filter_vmap(compute)(state, b.reshape(-1, arrangement.block))
        singular = jnp.any(results == lx.RESULTS.singular)
        result = result_of(singular)
        x = x.reshape(-1)
    else:
        if isinstance(solver, BlockTridiagonal):
            k = block_size(arrangement.half_bandwidth)
            b = jnp.pad(b, (0, -n % k))
        x, result, _ = solver.compute(state, b, {})
    return x[:n] if arrangement.in_order else x[positions], result
