"""Q of a triangle on top of another, panel by panel."""

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact

from .product import matmul


class Panels(eqx.Module):
    """Q₁ Q₂ ⋯, each I − V T Vᴴ with V = [I; V₂], all of one shape.

    Qᵢ is on w rows of the top, from `start[i]` on, and on e of the bottom, from
    `below[i]` on.
    """

    v2t: Inexact[Array, "p w e"]
    t: Inexact[Array, "p w w"]
    start: tuple[int, ...] = eqx.field(static=True)
    below: tuple[int, ...] = eqx.field(static=True)

    @property
    def rows(self) -> tuple[int, int]:
        """Of the top and of the bottom, as many as this reaches to."""
        _, w, e = self.v2t.shape
        return max(self.start) + w, max(self.below) + e

    def multiply(self, top: Array, bottom: Array, *, adjoint: bool):
        _, w, e = self.v2t.shape

        def one(pair, panel):
            top, bottom = pair
            v2t, t, start, below = panel
            upper = lax.dynamic_slice_in_dim(top, start, w)
            lower = lax.dynamic_slice_in_dim(bottom, below, e)
            y = upper + matmul(jnp.conj(v2t), lower)
            y = matmul(jnp.conj(t.T) if adjoint else t, y)
            put = lax.dynamic_update_slice_in_dim
            top = put(top, upper - y, start, axis=0)
            return (top, put(bottom, lower - matmul(v2t.T, y), below, axis=0)), None

        if len(self.start) == 1:  # Not a loop, to be compiled faster.
            alone = self.v2t[0], self.t[0], self.start[0], self.below[0]
            return one((top, bottom), alone)[0]
        panels = self.v2t, self.t, np.array(self.start), np.array(self.below)
        return lax.scan(one, (top, bottom), panels, reverse=not adjoint)[0]


class TriangularStackQR(eqx.Module):
    """The factors of [R₁; R₂], as returned by `triangular_stack_qr`."""

    rt: Inexact[Array, "n n"]
    panels: tuple[Panels, ...]

    def q_adjoint_multiply(self, top: Array, bottom: Array) -> tuple[Array, Array]:
        """Q̃ᴴ (top, bottom), for Q̃ square."""
        return self._multiply(top, bottom, adjoint=True)

    def q_multiply(self, top: Array, bottom: Array) -> tuple[Array, Array]:
        """Q̃ (top, bottom), for Q̃ square."""
        return self._multiply(top, bottom, adjoint=False)

    def _multiply(self, top: Array, bottom: Array, *, adjoint: bool):
        n = top.size
        upper, lower = np.max([(n, n), *(x.rows for x in self.panels)], axis=0)
        top, bottom = jnp.pad(top, (0, upper - n)), jnp.pad(bottom, (0, lower - n))
        for panels in self.panels if adjoint else reversed(self.panels):
            top, bottom = panels.multiply(top, bottom, adjoint=adjoint)
        return top[:n], bottom[:n]
