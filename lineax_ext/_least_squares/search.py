"""The update of the damping after a step that was tried."""

from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Float, PyTree, Scalar, ScalarLike


_Y = TypeVar("_Y")


class _State(eqx.Module):
    step_size: Float[Array, ""]
    growth: Float[Array, ""]


def _inner(a: PyTree[Array], b: PyTree[Array]) -> Scalar:
    """Re aᴴ b, in the highest precision that is there."""
    dtype = jnp.zeros(()).dtype
    terms = jax.tree.map(lambda x, y: jnp.sum(jnp.real(jnp.conj(x) * y)), a, b)
    return sum((x.astype(dtype) for x in jax.tree.leaves(terms)), jnp.zeros((), dtype))


class NielsenDamping(
    optx.AbstractSearch[
        _Y, optx.FunctionInfo.ResidualJac, optx.FunctionInfo.ResidualJac, _State
    ]
):
    """Nielsen's update of the damping λ = 1/step_size, for least squares.

    With ρ the reduction of ½ ‖r‖² over what the linear model predicts, a step is
    accepted if ρ ≥ `threshold`. Then λ is multiplied by a number between 1/3 (where the
    model is right) and 2,

        max(1/3, min(2, 1 − (2 ρ − 1)³));

    after a rejection by 2, then 4, then 8, ... until a step is accepted. A residual
    that is not finite is a rejection.

    For a descent whose damping is relative to the Jacobian, as
    [`lineax_ext.DampedNewtonDescent`][] with `scale="jacobian"`. Where the reductions
    are too small to be told from rounding, a step is accepted, for the solver to see
    that it has converged.

    **Arguments:**

    - `initial`: the first λ.
    - `threshold`: the least ρ.

    ??? cite "References"

        Nielsen, *Damping parameter in Marquardt's method*, report IMM-REP-1999-05,
        Technical University of Denmark (1999).
    """

    initial: ScalarLike = 1e-3
    threshold: ScalarLike = 1e-4

    def init(self, y, f_info_struct):
        del y, f_info_struct
        dtype = jnp.zeros(()).dtype
        return _State(1 / jnp.asarray(self.initial, dtype), jnp.asarray(2, dtype))

    def step(
        self,
        first_step: Bool[Array, ""],
        y,
        y_eval,
        f_info,
        f_eval_info,
        state: _State,
    ):
        y_diff = jax.tree.map(jnp.subtract, y_eval, y)
        r, r_eval = f_info.residual, f_eval_info.residual
        half = lambda x: jax.tree.map(lambda xi: 0.5 * xi, x)
        add = lambda a, b: jax.tree.map(jnp.add, a, b)
        # Each half a difference of squares, by its factors: ½ (a − b)(a + b).
        j_diff = f_info.jac.mv(y_diff)
        predicted = -_inner(j_diff, add(r, half(j_diff)))
        r_diff = jax.tree.map(jnp.subtract, r, r_eval)
        actual = _inner(r_diff, half(add(r, r_eval)))
        loss = 0.5 * _inner(r, r)

        eps = jnp.finfo(predicted.dtype).eps
        noise = 10 * eps * loss
        settled = (predicted <= noise) & (jnp.abs(actual) <= noise)
        ratio = actual / jnp.where(predicted > 0, predicted, 1)
        accept = (predicted > 0) & (ratio >= self.threshold)
        accept = accept | settled | first_step

        # A ratio of NaN is a rejection.
        shrink = jnp.clip(1 - (2 * ratio - 1) ** 3, 1 / 3, 2)
        factor = jnp.where(accept, shrink, state.growth)
        factor = jnp.where(first_step | settled, 1, factor)
        growth = jnp.where(accept, 2, 2 * state.growth)
        step_size = state.step_size / factor
        return (
            step_size,
            accept,
            optx.RESULTS.successful,
            _State(step_size, growth.astype(step_size.dtype)),
        )
