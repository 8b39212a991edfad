import equinox as eqx
import jax
import lineax as lx
import numpy as np
import pytest
from helpers import (
    assert_close,
    damped_stack,
    flatten,
    jacobian_operator,
    matrix_operator,
    normal,
    over_oblong_shapes,
    over_operators,
    over_shapes,
    over_solvers,
    over_square_solvers,
    pinv,
    pytree_jacobian_operator,
    pytree_operator,
    solve,
    turned,
    unflatten,
    well_conditioned,
)

import lineax_ext as lxe


def solve_all(solver, operators, states, vectors):
    """By `compute`, between flat vectors."""
    return jax.jit(
        lambda: [
            flatten(solver.compute(state, unflatten(x, op.out_structure()), {})[0])
            for op, state, x in zip(operators, states, vectors)
        ]
    )()


def check_turned(solver, operator, inverse):
    """Aᵀ, Ā and Aᴴ by turning the state of A, against NumPy."""
    n, m = inverse.shape
    b, c = normal((m,), inverse.dtype), normal((n,), inverse.dtype)
    conj = lx.conj(operator)
    operators = operator.T, conj, conj.T
    states = turned(solver, operator)
    found = solve_all(solver, operators, states, (c, b, c))
    inverses = inverse.T, inverse.conj(), inverse.conj().T
    for out, inverse, x in zip(found, inverses, (c, b, c)):
        assert_close(out, inverse @ x, 1e-12)


@over_solvers
@over_shapes
@pytest.mark.parametrize(
    "make_operator, dtype",
    ((matrix_operator, np.float64), (pytree_operator, np.complex128)),
)
def test_turned_states(solver, tags, shape, make_operator, dtype):
    matrix = well_conditioned(shape, dtype)
    check_turned(solver, make_operator(matrix, tags), pinv(matrix))


@pytest.mark.parametrize("solver", (lxe.DampedQR(), lxe.DampedSVD()), ids=repr)
@over_shapes
@pytest.mark.parametrize("scaled", (False, True), ids=("", "scaled"))
def test_turned_damped_states(solver, shape, scaled):
    matrix = well_conditioned(shape, np.complex128)
    operator = pytree_operator(matrix)
    scale = np.geomspace(0.5, 2, shape[1]) if scaled else None
    diagonal = unflatten(scale, operator.in_structure()) if scaled else None
    damped = lxe.DampedLinearOperator(operator, 0.3, diagonal)
    check_turned(solver, damped, np.linalg.pinv(damped_stack(matrix, 0.3, scale)))


@over_solvers
@over_oblong_shapes
def test_states_of_turned_operators(solver, tags, shape):
    """`init` of Aᵀ, Ā and Aᴴ themselves."""
    matrix = well_conditioned(shape, np.complex128)
    operator = pytree_jacobian_operator(matrix, tags)
    b, c = normal(shape[:1], np.complex128), normal(shape[1:], np.complex128)
    conj = lx.conj(operator)
    operators = operator.T, conj, conj.T
    states = [solver.init(op, {}) for op in operators]
    transpose, conj, adjoint = solve_all(solver, operators, states, (c, b, c))
    assert_close(transpose, pinv(matrix).T @ c, 1e-12)
    assert_close(conj, pinv(matrix).conj() @ b, 1e-12)
    assert_close(adjoint, pinv(matrix).conj().T @ c, 1e-12)


@over_solvers
def test_linear_solve(solver, tags):
    matrix, vector = well_conditioned((5, 3)), normal((3,))
    operator = jacobian_operator(matrix, tags)
    state, options = solver.transpose(solver.init(operator, {}), {})
    out = solve(operator.T, vector, solver, state=state, options=options)
    assert_close(out, pinv(matrix).T @ vector, 1e-12)


@over_solvers
def test_involution(solver, tags):
    state = solver.init(pytree_operator(well_conditioned((5, 3)), tags), {})
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
@pytest.mark.parametrize("dtype", (np.float64, np.complex128))
def test_square(solver, make_operator, dtype):
    matrix = well_conditioned((4, 4), dtype)
    operator = make_operator(matrix)
    check_turned(solver, operator, pinv(matrix))
    state = solver.init(operator, {})
    for turn in (solver.transpose, solver.conj):
        again, _ = turn(turn(state, {})[0], {})
        assert eqx.tree_equal(again, state)
    other = jax.eval_shape(lambda: solver.init(make_operator(2 * matrix), {}))
    assert jax.tree.structure(other) == jax.tree.structure(state)
