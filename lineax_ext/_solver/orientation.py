"""Which of A, Aᵀ, Ā, Aᴴ a factorisation of A currently stands for."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Inexact, PyTree

from .._flat import freeze, FrozenStructure, is_complex, ravel, thaw, unravel
from .._materialise import as_matrix


class Orientation(eqx.Module):
    """The static half of a solver's state: compared and hashed by value.

    A solver writes two functions, A⁺ b and (A⁺)ᴴ c. The other two follow, without
    touching the factors, from (Ā)⁺ b = conj(A⁺ b̄) and (Aᵀ)⁺ c = conj((A⁺)ᴴ c̄).
    """

    in_structure: FrozenStructure = eqx.field(static=True)
    out_structure: FrozenStructure = eqx.field(static=True)
    transposed: bool = eqx.field(static=True, default=False)
    conjugated: bool = eqx.field(static=True, default=False)

    def transpose(self) -> "Orientation":
        return Orientation(
            self.in_structure, self.out_structure, not self.transposed, self.conjugated
        )

    def of_transpose(self) -> "Orientation":
        """For a factorisation of Aᵀ that is to stand for A."""
        return Orientation(
            self.out_structure, self.in_structure, not self.transposed, self.conjugated
        )

    def conj(self) -> "Orientation":
        return Orientation(
            self.in_structure, self.out_structure, self.transposed, not self.conjugated
        )

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
        target = self.out_structure if self.transposed else self.in_structure
        flat = self.apply(solve, adjoint, ravel(vector).astype(dtype))
        return unravel(flat, thaw(target))


def orient(operator: lx.AbstractLinearOperator) -> Orientation:
    return Orientation(
        freeze(operator.in_structure()), freeze(operator.out_structure())
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
    operator: lx.AbstractLinearOperator, solver: str
) -> Inexact[Array, "m n"]:
    """The matrix of `frozen(operator, solver)`; `ormqr` could not be differentiated."""
    # Once more for what the operator closes over: constants of its function.
    return jax.lax.stop_gradient(as_matrix(frozen(operator, solver)))
