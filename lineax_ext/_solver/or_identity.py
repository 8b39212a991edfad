"""A solver whose state can stand for the identity without a factorisation of it."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, Bool, PyTree


class _State(eqx.Module):
    factorised: Bool[Array, ""]
    state: PyTree[Any]


class OrIdentity(lx.AbstractLinearSolver[_State]):
    """`solver`, among whose states that of zeros stands for the identity."""

    solver: lx.AbstractLinearSolver

    def init(self, operator, options):
        return _State(jnp.array(True), self.solver.init(operator, options))

    def compute(self, state, vector, options):
        x, result, stats = self.solver.compute(state.state, vector, options)
        choose = lambda x, b: jnp.where(state.factorised, x, b.astype(x.dtype))
        failed = state.factorised & (result != lx.RESULTS.successful)
        result = lx.RESULTS.where(failed, result, lx.RESULTS.successful)
        return jtu.tree_map(choose, x, vector), result, stats

    def transpose(self, state, options):
        inner, options = self.solver.transpose(state.state, options)
        return _State(state.factorised, inner), options

    def conj(self, state, options):
        inner, options = self.solver.conj(state.state, options)
        return _State(state.factorised, inner), options

    def assume_full_rank(self):
        return self.solver.assume_full_rank()
