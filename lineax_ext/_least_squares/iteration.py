"""The iteration of optimistix's Gauss–Newton methods, where the Jacobian is small."""

import dataclasses
import functools as ft
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jaxtyping import Array, Float, Inexact, PyTree

from .._factor.product import matmul
from .._factor.sparse.lanes import in_lanes_if
from .._factor.triangular_stack import is_tiny
from .._flat import ravel, unravel
from .._materialise import as_matrix
from .._solver.damped_qr import TallPath
from .._solver.damped_sparse import DampedSparse
from .descent import AbstractFactorisedDescent
from .geodesic import AbstractGeodesicDescent
from .trust_region import Model


_Y = TypeVar("_Y")
_Out = TypeVar("_Out")
_Aux = TypeVar("_Aux")

# The most entries of a Jacobian that is kept. A larger one is better not held twice.
_largest = 2**16


class _Kept(eqx.Module):
    """What stands for `f_info` in the state: Jᵀ, whose rows are what is made.

    `None` where the descent keeps a triangle, or a sparse J, which tells the search as
    much.
    """

    residual: PyTree[Array]
    loss: Float[Array, ""]
    jt: Inexact[Array, "n m"] | None
    # y + v of an accelerated step: where the linear model is asked, not y + v + a/2.
    linear: Inexact[Array, " n"] | None


class AbstractFactorisedGaussNewton(optx.AbstractGaussNewton[_Y, _Out, _Aux]):
    """`optimistix.AbstractGaussNewton`, with small steps that cost less.

    The same iteration, state and results. But where J has few entries, or is sparse,
    the state holds J in place of a function for its columns. Such a function closes
    over whatever the residuals went through, and to choose between the ones at two
    points takes a copy of each: more than the arithmetic of a small step. Where the
    descent keeps a triangle R of J, or the entries of a sparse one, the state holds no
    J besides, and of up to four parameters the triangle is made in every step: a batch
    does so anyhow, as it runs both branches of a choice.
    """

    geodesic: eqx.AbstractVar[bool]

    def _keeps(self, y: PyTree, f_info: Any, descent_state: Any) -> bool:
        dtypes = {x.dtype for x in jax.tree.leaves((y, f_info.residual))}
        if (
            not isinstance(self.descent, AbstractFactorisedDescent)
            or not isinstance(f_info.jac, lx.FunctionLinearOperator)
            or len(dtypes) != 1
        ):
            return False
        if isinstance(descent_state.solver, DampedSparse):
            return True
        small = f_info.jac.out_size() * f_info.jac.in_size() <= _largest
        whole = getattr(descent_state.solver, "rows", None) is None
        return (small or self.geodesic) and whole

    def init(self, fn, y, args, options, f_struct, aux_struct, tags):
        if not jax.tree.leaves(f_struct):
            raise ValueError(
                f"`{type(self).__name__}` was given residuals without an array. Does "
                "the function of `(y, args)` return them?"
            )
        state = super().init(fn, y, args, options, f_struct, aux_struct, tags)
        if not self._keeps(y, state.f_info, state.descent_state):
            if self.geodesic:
                raise ValueError(
                    "`geodesic=True` needs parameters and residuals of one dtype, on "
                    'one device, and `options=dict(jac="fwd")`, which is the default.'
                )
            return state
        f_info = state.f_info
        shape = f_info.jac.in_size(), f_info.jac.out_size()
        problem = state.descent_state.problem
        triangle = isinstance(problem, TallPath) and not problem.whole
        # Moré's search takes differences of residuals.
        if triangle and isinstance(self.search, optx.ClassicalTrustRegion):
            jt = None
        elif isinstance(state.descent_state.solver, DampedSparse):
            jt = None
        else:
            jt = jnp.zeros(shape, ravel(y).dtype)
        loss = f_info.as_min()
        linear = ravel(y) if self.geodesic else None
        kept: Any = _Kept(f_info.residual, jnp.zeros_like(loss), jt, linear)
        return dataclasses.replace(state, f_info=kept)

    def step(self, fn, y, args, options, state, tags):
        if not isinstance(state.f_info, _Kept):
            ended = lambda state: state.descent_state.ended
            state = eqx.tree_at(ended, state, state.terminate)
            return super().step(fn, y, args, options, state, tags)
        f, loss, jt = state.f_info.residual, state.f_info.loss, state.f_info.jt
        linear = state.f_info.linear
        f_eval, columns, aux_eval = jax.linearize(
            lambda y: fn(y, args), state.y_eval, has_aux=True
        )
        flat: Any = ravel(y)
        flat_eval: Any = ravel(state.y_eval)
        loss_eval = optx.FunctionInfo.Residual(f_eval).as_min()

        problem = state.descent_state.problem
        sparse = isinstance(state.descent_state.solver, DampedSparse)
        if sparse:
            # A branch: of 20,000 rows, the product took 1.5 ms where XLA made it a part
            # of the sums that the search takes, and takes 0.2 so.
            product = in_lanes_if(lambda problem, x: problem.multiply(x))
            multiply = lambda x: product(problem, x, ~state.first_step)
            c = ravel(f)
        else:
            st, c = (problem.st, problem.c) if jt is None else (jt, ravel(f))
            multiply = lambda x: matmul(x, st)  # with Jᵀ as it lies there
        jac = lx.FunctionLinearOperator(multiply, jax.eval_shape(lambda: flat_eval))
        predicted: Any = flat_eval if linear is None else linear
        step_size, accept, search_result, search_state = self.search.step(
            state.first_step, flat, predicted,
            Model(c, jac, loss, ravel(f)),
            Model(ravel(f_eval), jac, loss_eval, ravel(f_eval)), state.search_state,
        )  # fmt: skip
        terminate = accept & self._settled(state.y_eval, f_eval, y, f)
        choose = ft.partial(jnp.where, accept)

        # Where no factor is kept, all but J is chosen more cheaply than by a branch.
        whole = isinstance(problem, TallPath) and problem.whole
        dynamic, static = eqx.partition(state.descent_state, eqx.is_array)

        struct = jax.eval_shape(lambda: y)

        def accepted(dynamic):
            matrix = as_matrix(lx.FunctionLinearOperator(columns, struct))
            if not whole:
                info = _info(f_eval, lx.MatrixLinearOperator(matrix))
                descent_state = eqx.combine(dynamic, static)
                descent_state = self.descent.query(flat_eval, info, descent_state)
                dynamic = eqx.filter(descent_state, eqx.is_array)
            return None if jt is None else matrix.T, dynamic

        if sparse:
            info = _info(f_eval, lx.FunctionLinearOperator(columns, struct))
            # The last point has no step to take, and none of a batch that waits.
            ended = terminate | state.terminate
            descent: Any = self.descent
            descent_state = descent.query_if(
                accept & ~ended, flat_eval, info, state.descent_state
            )
            descent_state = dataclasses.replace(descent_state, ended=ended)
            dynamic = eqx.filter(descent_state, eqx.is_array)
        elif jt is None and is_tiny(flat.size):
            dynamic = jax.tree.map(choose, accepted(dynamic)[1], dynamic)
        else:
            jt, dynamic = lax.cond(accept, accepted, lambda x: (jt, x), dynamic)
        last = y, f, state.aux
        y, f, aux = jax.tree.map(choose, (state.y_eval, f_eval, aux_eval), last)
        descent_state = eqx.combine(dynamic, static)
        if whole:
            assert jt is not None
            info = _info(f, lx.MatrixLinearOperator(jt.T))
            flat = ravel(y)
            descent_state = self.descent.query(flat, info, descent_state)
        new_loss = choose(loss_eval, loss)
        finite = jnp.isfinite(new_loss)
        descent_state = dataclasses.replace(descent_state, finite=finite)

        self.verbose(
            num_steps=("Step", state.num_steps),
            accepted_steps=("Accepted steps", state.num_accepted_steps),
            steps_since_acceptance=(
                "Steps since acceptance",
                state.num_steps_since_acceptance,
            ),
            loss_this_step=("Loss on this step", loss_eval),
            loss_last_accepted_step=("Loss on the last accepted step", loss),
            step_size=("Step size", step_size),
            y=("y", state.y_eval),
            y_last_accepted_step=("y on the last accepted step", y),
        )

        # As optimistix: the one at the point before.
        last_aux = jax.tree.map(
            lambda x, last: jnp.where(state.first_step, x, last), aux, state.aux
        )
        if linear is None:
            descent, descent_result = self.descent.step(step_size, descent_state)
        else:
            assert isinstance(self.descent, AbstractGeodesicDescent)
            if sparse:
                adjoint = descent_state.problem.adjoint
            else:
                assert jt is not None
                adjoint = ft.partial(matmul, jnp.conj(jt))
            curvature = lambda v: adjoint(_second_derivative(fn, y, args, v))
            v, descent, descent_result = self.descent.accelerated(
                step_size, descent_state, curvature
            )
            linear = ravel(y) + v
        results: Any = optx.RESULTS
        successful = search_result == results.successful
        state = dataclasses.replace(
            state,
            first_step=jnp.array(False),
            y_eval=jax.tree.map(jnp.add, y, descent),
            search_state=search_state,
            f_info=_Kept(f, new_loss, jt, linear),
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


def _second_derivative(fn: Any, y: PyTree, args: PyTree, v: Inexact[Array, " n"]):
    """That of the residuals at y along v; flat."""
    tangent = unravel(v, jax.eval_shape(lambda: y))
    first = lambda y: jax.jvp(lambda y: fn(y, args)[0], (y,), (tangent,))[1]
    return ravel(jax.jvp(first, (y,), (tangent,))[1])


def _info(f: PyTree[Array], jac: lx.AbstractLinearOperator):
    """Flat."""
    return optx.FunctionInfo.ResidualJac(ravel(f), jac)
