"""Which of A, Aᵀ, Ā, Aᴴ a factorisation of A currently stands for."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Inexact, PyTree

from .._flat import (
    freeze,
    FrozenStructure,
    is_complex,
    ravel,
    result_dtype,
    thaw,
    unravel,
)
from .._materialise import as_matrix, sharded_columns
from .._rows import Rows


class Orientation(eqx.Module):
    """The static half of a solver's state: compared and hashed by value.

    A solver writes two functions, A⁺ b and (A⁺)ᴴ c. The other two follow, without
    touching the factors, from (Ā)⁺ b = conj(A⁺ b̄) and (Aᵀ)⁺ c = conj((A⁺)ᴴ c̄).
    """

    in_structure: FrozenStructure = eqx.field(static=True)
    out_structure: FrozenStructure = eqx.field(static=True)
    transposed: bool = eqx.field(static=True, default=False)
    conjugated: bool = eqx.field(static=True, default=False)
    # How flat `out` lies on several devices; one vector on one device if `None`.
    rows: Rows | None = None

    def transpose(self) -> "Orientation":
        return dataclasses.replace(self, transposed=not self.transposed)

    def of_transpose(self) -> "Orientation":
        """For a factorisation of Aᵀ that is to stand for A."""
        return Orientation(
            self.out_structure, self.in_structure, not self.transposed, self.conjugated
        )

    def conj(self) -> "Orientation":
        return dataclasses.replace(self, conjugated=not self.conjugated)

    def flat(self, vector: PyTree[Array]) -> Inexact[Array, " size"]:
        """In the precision of the entries: one that is handed to a transposed operator
        may have less."""
        return ravel(vector).astype(result_dtype(thaw(self.out_structure)))

    def ravel_out(self, vector: PyTree[Array]) -> Inexact[Array, "..."]:
        return ravel(vector) if self.rows is None else self.rows.blocks(vector)

    def unravel_out(self, flat: Inexact[Array, "..."]) -> PyTree[Array]:
        if self.rows is None:
            return unravel(flat, thaw(self.out_structure))
        return self.rows.unblock(flat)

    def apply(
        self,
        solve: Callable[[PyTree[Array]], PyTree[Array]],
        adjoint: Callable[[PyTree[Array]], PyTree[Array]],
        vector: PyTree[Array],
    ) -> PyTree[Array]:
        """`solve` maps flat `out` to flat `in`; `adjoint` the other way."""
        fn = adjoint if self.transposed else solve
        if self.transposed == self.conjugated:
            return fn(vector)
        conj = lambda tree: jax.tree_util.tree_map(jnp.conj, tree)
        return conj(fn(conj(vector)))

    def solve_flat(
        self,
        solve: Callable[[Inexact[Array, " m"]], Inexact[Array, " n"]],
        adjoint: Callable[[Inexact[Array, " n"]], Inexact[Array, " m"]],
        vector: PyTree[Array],
        dtype: jnp.dtype,
    ) -> PyTree[Array]:
        """`apply`, from pytrees to pytrees."""
        flat = ravel(vector) if self.transposed else self.ravel_out(vector)
        flat = self.apply(solve, adjoint, flat.astype(dtype))
        if self.transposed:
            return self.unravel_out(flat)
        return unravel(flat, thaw(self.in_structure))


def orient(
    operator: lx.AbstractLinearOperator, rows: Rows | None = None
) -> Orientation:
    return Orientation(
        freeze(operator.in_structure()), freeze(operator.out_structure()), rows=rows
    )


def frozen(
    operator: lx.AbstractLinearOperator, solver: str
) -> lx.AbstractLinearOperator:
    """What `solver` is to factorise, its arrays cut off from differentiation.

    lineax takes derivatives from the operator and the answers, never from a state.
    """
    if is_complex(operator.in_structure()) != is_complex(operator.out_structure()):
        raise ValueError(
            f"`{solver}` was given an operator between a real and a complex space. Its "
            "least-squares problem is one over the reals: stack the real and the "
            "imaginary part of the complex side instead."
        )
    dynamic, static = eqx.partition(operator, eqx.is_array)
    return eqx.combine(jax.lax.stop_gradient(dynamic), static)


def frozen_matrix(
    operator: lx.AbstractLinearOperator, solver: str, rows: Rows | None = None
) -> Inexact[Array, "m n"] | Inexact[Array, "n p l"]:
    """The matrix of `frozen(operator, solver)`; `ormqr` could not be differentiated.

    Its columns, in blocks of rows, if these are on several devices.
    """
    operator = frozen(operator, solver)
    if rows is None:
        matrix = as_matrix(operator)
    else:
        matrix = sharded_columns(operator, rows)
    # Once more for what the operator closes over: constants of its function.
    return jax.lax.stop_gradient(matrix)
