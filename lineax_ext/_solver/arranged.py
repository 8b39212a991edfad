"""The state of a solver that knows an arrangement of its matrix."""

import dataclasses
import functools as ft
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree

from .._arrangement import AbstractArrangement, Entries
from .._flat import thaw, unravel
from .._result import result_of
from .orientation import orient, Orientation


class Arranged(eqx.Module):
    """An operator, factorised as `arrangement` has it: from pytrees to pytrees."""

    factors: PyTree[Array]
    arrangement: AbstractArrangement = eqx.field(static=True)
    orientation: Orientation

    @staticmethod
    def of(
        operator: lx.AbstractLinearOperator,
        arrangement: AbstractArrangement,
        entries: Entries,
    ) -> "Arranged":
        # Once more for what the operator closes over.
        factors = lax.stop_gradient(arrangement.factor(entries))
        return Arranged(factors, arrangement, orient(operator))

    def solve(
        self, vector: PyTree[Array]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        orientation = self.orientation
        # Ā⁻¹ b = conj(A⁻¹ b̄).
        conj = jnp.conj if orientation.conjugated else lambda x: x
        structures = orientation.in_structure, orientation.out_structure
        b, transposed = conj(orientation.flat(vector)), orientation.transposed
        x, singular = _solve(self.arrangement, self.factors, b, transposed)
        x = unravel(conj(x), thaw(structures[transposed]))
        return x, result_of(singular), {}

    def transpose(self) -> "Arranged":
        return dataclasses.replace(self, orientation=self.orientation.transpose())

    def conj(self) -> "Arranged":
        return dataclasses.replace(self, orientation=self.orientation.conj())


# Traced once for all of the places from which a solve is called.
@ft.partial(jax.jit, static_argnums=(0, 3))
def _solve(arrangement, factors, b, transposed):
    return arrangement.solve(factors, b, transposed)
