import equinox as eqx
import jax
import lineax as lx
import numpy as np
from helpers import (
    assert_close,
    damped_stack,
    flatten,
    in_turn,
    jacobian_operator,
    matrix_operator,
    normal,
    over_operators,
    over_solvers,
    over_solvers_in_turn,
    over_square_solvers,
    pinv,
    pytree_jacobian_operator,
    pytree_operator,
    SHAPES,
    solve,
    turned,
    unflatten,
    well_conditioned,
)

import lineax_ext as lxe


@eqx.filter_jit
def solve_turned(solver, operator, vectors, turn=turned):
    """With Aᵀ, Ā and Aᴴ, and the states that `turn` makes of A's: between vectors."""
    conj = lx.conj(operator)
    operators = operator.T, conj, conj.T
    return [
        flatten(solver.compute(state, unflatten(x, op.out_structure()), {})[0])
        for state, op, x in zip(turn(solver, operator), operators, vectors)
    ]


def check_turned(solver, operator, inverse, **kwargs):
    n, m = inverse.shape
    b, c = normal((m,), inverse.dtype), normal((n,), inverse.dtype)
    found = solve_turned(solver, operator, (c, b, c), **kwargs)
    inverses = inverse.T, inverse.conj(), inverse.conj().T
    for out, inverse, x in zip(found, inverses, (c, b, c)):
        assert_close(out, inverse @ x, 1e-12)


@over_solvers_in_turn(
    0,
    "make_operator, dtype",
    ((matrix_operator, np.float64), (pytree_operator, np.complex128)),
)
def test_turned_states(solver, tags, shape, make_operator, dtype):
    matrix = well_conditioned(shape, dtype)
    check_turned(solver, make_operator(matrix, tags), pinv(matrix))


@in_turn(
    "solver, shape, scaled",
    (lxe.DampedQR(), lxe.DampedSVD()),
    [(shape,) for shape in SHAPES[::2]],
    (False, True),
)
def test_turned_damped_states(solver, shape, scaled):
    matrix = well_conditioned(shape, np.complex128)
    operator = pytree_operator(matrix)
    scale = np.geomspace(0.5, 2, shape[1]) if scaled else None
    diagonal = unflatten(scale, operator.in_structure()) if scaled else None
    damped = lxe.DampedLinearOperator(operator, 0.3, diagonal)
    check_turned(solver, damped, np.linalg.pinv(damped_stack(matrix, 0.3, scale)))


def states_anew(solver, operator):
    conj = lx.conj(operator)
    return [solver.init(op, {}) for op in (operator.T, conj, conj.T)]


@over_solvers_in_turn(1)
def test_states_of_turned_operators(solver, tags, shape):
    """`init` of Aᵀ, Ā and Aᴴ themselves."""
    matrix = well_conditioned(shape, np.complex128)
    operator = pytree_jacobian_operator(matrix, tags)
    check_turned(solver, operator, pinv(matrix), turn=states_anew)


@over_solvers
def test_linear_solve(solver, tags):
    matrix, vector = well_conditioned((5, 3)), normal((3,))
    operator = jacobian_operator(matrix, tags)
    state, options = solver.transpose(solver.init(operator, {}), {})
    out = solve(operator.T, vector, solver, state=state, options=options)
    assert_close(out, pinv(matrix).T @ vector, 1e-12)


state_of = eqx.filter_jit(lambda solver, operator: solver.init(operator, {}))


@over_solvers
def test_involution(solver, tags):
    state = state_of(solver, pytree_operator(well_conditioned((5, 3)), tags))
    for turn in (solver.transpose, solver.conj):
        again, _ = turn(turn(state, {})[0], {})
        assert eqx.tree_equal(again, state)


@over_solvers
@over_operators
def test_static_parts_compare_by_value(solver, tags, make_operator):
    # diffrax compares the states of different traces.
    def structure(seed):
        make = lambda a: solver.init(make_operator(a, tags), {})
        state = eqx.filter_eval_shape(make, well_conditioned((4, 4), seed=seed))
        states = state, solver.transpose(state, {})[0], solver.conj(state, {})[0]
        return jax.tree.structure(states)

    assert structure(0) == structure(1)
    assert hash(structure(0)) == hash(structure(1))


@over_square_solvers
def test_square(solver, make_operator):
    matrix = well_conditioned((4, 4), np.complex128)
    operator = make_operator(matrix)
    check_turned(solver, operator, pinv(matrix))
    state = state_of(solver, operator)
    for turn in (solver.transpose, solver.conj):
        again, _ = turn(turn(state, {})[0], {})
        assert eqx.tree_equal(again, state)
    other = jax.eval_shape(lambda: solver.init(make_operator(2 * matrix), {}))
    assert jax.tree.structure(other) == jax.tree.structure(state)
