"""The iteration of optimistix's Gauss–Newton methods, where the Jacobian is small."""

import dataclasses
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jaxtyping import Array, Inexact, PyTree

from .._factor.product import matmul
from .._flat import ravel, unravel
from .._materialise import as_matrix
from .._solver.damped_qr import TallPath
from .._solver.damped_sparse import DampedSparse
from .descent import AbstractFactorisedDescent


_Y = TypeVar("_Y")
_Out = TypeVar("_Out")
_Aux = TypeVar("_Aux")

# The most entries of a Jacobian that is kept. A larger one is better not held twice.
_largest = 2**16


class _Kept(eqx.Module):
    """What stands for `f_info` in the state: Jᵀ, whose rows are what is made, and r.

    `None` where the descent keeps them.
    """

    jt: Inexact[Array, "n m"] | None
    r: Inexact[Array, " m"] | None

    def of(self, descent_state: Any) -> tuple[Array, Array]:
        if self.jt is None or self.r is None:
            return descent_state.problem.st, descent_state.problem.c
        return self.jt, self.r


class AbstractFactorisedGaussNewton(optx.AbstractGaussNewton[_Y, _Out, _Aux]):
    """`optimistix.AbstractGaussNewton`, with small steps that cost less.

    The same iteration, state and results. But where J has few entries, the state holds
    J in place of a function for its columns. Such a function closes over whatever the
    residuals went through, and to choose between the ones at two points takes a copy of
    each: more than the arithmetic of a small step.
    """

    def _keeps(self, y: PyTree, f_info: optx.FunctionInfo.ResidualJac) -> bool:
        solver = getattr(self.descent, "linear_solver", None)
        dtypes = {x.dtype for x in jax.tree.leaves((y, f_info.residual))}
        return (
            isinstance(self.descent, AbstractFactorisedDescent)
            and isinstance(f_info.jac, lx.FunctionLinearOperator)
            and not isinstance(solver, DampedSparse)
            and getattr(solver, "rows", None) is None
            and len(dtypes) == 1
            and f_info.jac.out_size() * f_info.jac.in_size() <= _largest
        )

    def init(self, fn, y, args, options, f_struct, aux_struct, tags):
        state = super().init(fn, y, args, options, f_struct, aux_struct, tags)
        if not self._keeps(y, state.f_info):
            return state
        problem = state.descent_state.problem
        if isinstance(problem, TallPath) and problem.whole:
            kept: Any = _Kept(None, None)
        else:
            jac, r = state.f_info.jac, ravel(state.f_info.residual)
            kept = _Kept(jnp.zeros((jac.in_size(), r.size), r.dtype), r)
        return dataclasses.replace(state, f_info=kept)

    def step(self, fn, y, args, options, state, tags):
        kept = state.f_info
        if not isinstance(kept, _Kept):
            return super().step(fn, y, args, options, state, tags)
        jt, r = kept.of(state.descent_state)
        f_eval, columns, aux = jax.linearize(
            lambda y: fn(y, args), state.y_eval, has_aux=True
        )
        r_eval, flat_eval = ravel(f_eval), ravel(state.y_eval)

        # A product with Jᵀ as it lies there.
        product = lx.FunctionLinearOperator(
            lambda x: matmul(x, jt), jax.eval_shape(lambda: flat_eval)
        )
        f_info = optx.FunctionInfo.ResidualJac(r, product)
        f_eval_info = optx.FunctionInfo.ResidualJac(r_eval, product)
        step_size, accept, search_result, search_state = self.search.step(
            state.first_step,
            ravel(y),
            flat_eval,
            f_info,
            f_eval_info,
            state.search_state,
        )

        def accepted(descent_state):
            jac = as_matrix(
                lx.FunctionLinearOperator(columns, jax.eval_shape(lambda: y))
            )
            info = optx.FunctionInfo.ResidualJac(r_eval, lx.MatrixLinearOperator(jac))
            descent_state = self.descent.query(flat_eval, info, descent_state)
            new = kept if kept.jt is None else _Kept(jac.T, r_eval)
            f = unravel(r, jax.eval_shape(lambda: f_eval))
            terminate = self._settled(state.y_eval, f_eval, y, f)
            return state.y_eval, new, aux, descent_state, terminate

        def rejected(descent_state):
            return y, kept, state.aux, descent_state, jnp.array(False)

        dynamic, static = eqx.partition(state.descent_state, eqx.is_array)
        branch = lambda fn: (
            lambda x: eqx.filter(fn(eqx.combine(x, static)), eqx.is_array)
        )
        y, kept, aux, dynamic, terminate = lax.cond(
            accept, branch(accepted), branch(rejected), dynamic
        )
        descent_state = eqx.combine(dynamic, static)
        self.verbose(
            num_steps=("Step", state.num_steps),
            accepted_steps=("Accepted steps", state.num_accepted_steps),
            steps_since_acceptance=(
                "Steps since acceptance",
                state.num_steps_since_acceptance,
            ),
            loss_this_step=("Loss on this step", f_eval_info.as_min()),
            loss_last_accepted_step=(
                "Loss on the last accepted step",
                f_info.as_min(),
            ),
            step_size=("Step size", step_size),
            y=("y", state.y_eval),
            y_last_accepted_step=("y on the last accepted step", y),
        )

        # As optimistix: the one at the point before.
        last_aux = jax.tree.map(
            lambda x, last: jnp.where(state.first_step, x, last), aux, state.aux
        )
        descent, descent_result = self.descent.step(step_size, descent_state)
        results: Any = optx.RESULTS
        successful = search_result == results.successful
        state = dataclasses.replace(
            state,
            first_step=jnp.array(False),
            y_eval=jax.tree.map(jnp.add, y, descent),
            search_state=search_state,
            f_info=kept,
            aux=aux,
            descent_state=descent_state,
            terminate=terminate,
            result=results.where(successful, descent_result, search_result),
            num_steps=state.num_steps + 1,
            num_accepted_steps=state.num_accepted_steps + jnp.where(accept, 1, 0),
            num_steps_since_acceptance=jnp.where(
                accept, 0, state.num_steps_since_acceptance + 1
            ),
        )
        return y, state, last_aux

    def _settled(self, y: PyTree, f: PyTree, last_y: PyTree, last_f: PyTree):
        """Whether ‖y − y₋‖ and ‖f − f₋‖ are within the tolerances."""

        def ratio(x, last):
            return jnp.abs(x - last) / (self.atol + self.rtol * jnp.abs(x))

        changes = (jax.tree.map(ratio, y, last_y), jax.tree.map(ratio, f, last_f))
        settled_y, settled_f = (self.norm(change) < 1 for change in changes)
        return settled_y & settled_f
