"""Damped linear least squares, differentiable in all of it."""

import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jax.core import Tracer
from jaxtyping import ArrayLike, PyTree, ScalarLike

from ._checks import called, check_operator, check_vector
from ._operator.damped import DampedLinearOperator
from ._solver.damped import AbstractDampedSolver
from ._solver.damped_qr import DampedQR
from ._solver.orientation import orient, Orientation


def damped_solve(
    operator: lx.AbstractLinearOperator,
    vector: PyTree[ArrayLike],
    damping: ScalarLike,
    solver: AbstractDampedSolver = DampedQR(),
    *,
    scale: PyTree[ArrayLike] | None = None,
    options: dict[str, Any] | None = None,
    state: PyTree[Any] | None = None,
    throw: bool = True,
) -> lx.Solution:
    """Solves the damped least-squares problem.

        argmin_x ‖A x − b‖² + λ ‖D x‖²,    D = diag(scale)

    Also known as Tikhonov regularisation or ridge regression. Differentiable with
    respect to `operator`, `vector`, `damping` and `scale`, any number of times, forward
    and reverse: it is `lx.linear_solve` of the
    [`lineax_ext.DampedLinearOperator`][]. (With respect to `damping` where that is 0 it
    is an error at run time: the √λ in this operator has no derivative there.)

    The cost is that of one factorisation of `operator` by `solver`, or none if its
    `state` is given, and of `solver.damp`.

    !!! Example

        ```python
        solver = lxe.DampedQR()
        state = solver.init(operator, options={})  # once

        def path(damping):
            sol = lxe.damped_solve(operator, vector, damping, solver, state=state)
            return sol.value

        solutions = jax.lax.map(path, dampings)
        ```

    **Arguments:**

    - `operator`: A, any linear operator, m×n.
    - `vector`: b, with the structure of the output of A.
    - `damping`: λ ≥ 0, a real scalar.
    - `solver`: [`lineax_ext.DampedQR`][], [`lineax_ext.DampedSVD`][], for a sparse A
        [`lineax_ext.DampedSparse`][], or any other
        [`lineax_ext.AbstractDampedSolver`][].
    - `scale`: the diagonal of D > 0, a pytree like the input of A. Default: ones.
    - `options`: passed on to the solver.
    - `state`: `solver.init(operator, options)`, of the undamped operator. It is good
        for any damping and scale, and the returned `Solution.state` is one, too.
    - `throw`: whether to raise an error if the solve fails, or to say so in
        `Solution.result`.

    **Returns:**

    An `lineax.Solution`.

    **Raises:**

    `ValueError` if the solver has no damped interface, for a vector that does not fit
    the operator, a damping that is not a real scalar, a scale of the wrong structure, a
    state of another solver or of an operator of another structure, and, as far as the
    values are known at trace time, a negative or non-finite damping and a non-positive
    scale. Values that are only known at run time raise an
    `equinox.EquinoxRuntimeError` if `throw=True`, and make the result
    `RESULTS.singular` otherwise.
    """
    check_operator(operator, "damped_solve")
    if not isinstance(solver, AbstractDampedSolver):
        raise ValueError(
            "`damped_solve(solver=...)` needs a solver that can damp, as "
            f"`lineax_ext.DampedQR()`; found {called(solver)}. Any other "
            "solver can be given the `lineax_ext.DampedLinearOperator` itself."
        )
    if getattr(solver, "damping", None) is not None:
        raise ValueError(
            "`damped_solve` was given a damping twice: use `solver=DampedQR()`."
        )
    check_vector(vector, operator, "damped_solve")
    # `lx.linear_solve` takes no float32 for a float64.
    cast = lambda x, s: jnp.asarray(x).astype(s.dtype)
    vector = jtu.tree_map(cast, vector, operator.out_structure())
    damped = DampedLinearOperator(operator, damping, scale)  # raises what it can see
    unchecked = throw and any(
        isinstance(x, Tracer) for x in jtu.tree_leaves((damped.damping, damped.scale))
    )
    if unchecked:
        damped = _raise_at_run_time(damped)
    options = {} if options is None else options
    if state is not None:
        _check_state(state, operator)
    return _damped_solve(damped, vector, solver, options, state, throw)


def _check_state(state, operator):
    orientation = getattr(state, "orientation", None)
    if not isinstance(orientation, Orientation):
        return
    if orientation != orient(operator, orientation.rows):
        raise ValueError(
            "`damped_solve(state=...)` is not `solver.init(operator, options)`, but of "
            "an operator of another structure, of a transpose or of a conjugate."
        )


# As `lx.linear_solve`: eager calls compile once, not once an operation.
@eqx.filter_jit
def _damped_solve(damped, vector, solver, options, state, throw):
    if state is None:
        state = solver.init(damped.operator, options)
    in_structure = damped.in_structure()
    zeros = jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), in_structure)
    solution = lx.linear_solve(
        damped,
        (vector, zeros),
        solver,
        options=options,
        state=solver.damp(state, damped.damping, damped.scale),
        throw=throw,
    )
    return dataclasses.replace(solution, state=state)


def _raise_at_run_time(damped: DampedLinearOperator) -> DampedLinearOperator:
    """The checks of `DampedLinearOperator` for values that are traced."""
    damping, scale = damped.damping, damped.scale
    damping = eqx.error_if(
        damping,
        ~((damping >= 0) & (damping < jnp.inf)),
        "`damped_solve`: `damping` must be non-negative and finite.",
    )
    if scale is not None:
        valid = [jnp.all((x > 0) & (x < jnp.inf)) for x in jtu.tree_leaves(scale)]
        scale = eqx.error_if(
            scale,
            ~jnp.all(jnp.stack(valid)),
            "`damped_solve`: `scale` must be positive and finite everywhere.",
        )
    return DampedLinearOperator(damped.operator, damping, scale)
