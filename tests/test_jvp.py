import jax
import numpy as np
import pytest
from helpers import (
    assert_close,
    directional,
    matrix_operator,
    normal,
    over_oblong_shapes,
    over_solvers,
    over_solvers_in_turn,
    over_square_solvers_derived,
    pinv,
    pytree_function_operator,
    pytree_jacobian_operator,
    slow,
    solve,
    well_conditioned,
)


def problem(shape, dtype):
    """Primals and tangents, each a matrix and a vector."""
    m, _ = shape
    primals = well_conditioned(shape, dtype), normal((m,), dtype)
    return primals, (normal(shape, dtype, seed=1), normal((m,), dtype, seed=1))


def expected_jvp(primals, tangents):
    (a, b), (t_a, t_b) = primals, tangents
    return directional(lambda t: pinv(a + t * t_a) @ (b + t * t_b))


@over_solvers
@over_oblong_shapes
def test_jvp(solver, tags, shape):
    """In both, and in the vector alone."""
    (a, b), (t_a, t_b) = problem(shape, np.complex128)

    @jax.jit
    def jvp(a, b, t_a, t_b):
        fn = lambda a, b: solve(matrix_operator(a, tags), b, solver)
        of_vector = jax.jvp(lambda b: fn(a, b), (b,), (t_b,))
        return jax.jvp(fn, (a, b), (t_a, t_b)), of_vector

    for (out, t_out), t_a_in in zip(jvp(a, b, t_a, t_b), (t_a, 0 * t_a)):
        assert_close(out, pinv(a) @ b, 1e-12)
        assert_close(t_out, expected_jvp((a, b), (t_a_in, t_b)), 1e-8)


@over_solvers_in_turn(1)
@pytest.mark.parametrize(
    "make_operator", (slow(pytree_function_operator), pytree_jacobian_operator)
)
def test_operators(solver, tags, shape, make_operator):
    primals, tangents = problem(shape, np.complex128)
    fn = lambda a, b: solve(make_operator(a, tags), b, solver)
    _, t_out = jax.jit(lambda p, t: jax.jvp(fn, p, t))(primals, tangents)
    assert_close(t_out, expected_jvp(primals, tangents), 1e-8)


@over_solvers_in_turn(0)
def test_state(solver, tags, shape):
    # The state is that of the operator, and carries no tangent of its own.
    primals, tangents = problem(shape, np.float64)
    state = solver.init(matrix_operator(primals[0], tags), {})
    fn = lambda a, b: solve(matrix_operator(a, tags), b, solver, state=state)
    _, t_out = jax.jit(lambda p, t: jax.jvp(fn, p, t))(primals, tangents)
    assert_close(t_out, expected_jvp(primals, tangents), 1e-8)


@over_solvers_in_turn(1)
def test_second_order(solver, tags, shape):
    primals, tangents = problem(shape, np.float64)
    _, others = problem(shape[::-1], np.float64)
    others = others[0].T, np.roll(tangents[1], 1)
    fn = lambda a, b: solve(matrix_operator(a, tags), b, solver)

    @jax.jit
    def jvp_of_jvp(*primals):
        jvp = lambda *primals: jax.jvp(fn, primals, tangents)[1]
        return jax.jvp(jvp, primals, others)

    moved = lambda t: tuple(x + t * dx for x, dx in zip(primals, others))
    t_out, tt_out = jvp_of_jvp(*primals)
    assert_close(t_out, expected_jvp(primals, tangents), 1e-8)
    expected = directional(lambda t: expected_jvp(moved(t), tangents))
    assert_close(tt_out, expected, 1e-6)


@over_square_solvers_derived
def test_square(solver, make_operator):
    primals, tangents = problem((4, 4), np.complex128)
    fn = lambda a, b: solve(make_operator(a), b, solver)
    _, t_out = jax.jit(lambda p, t: jax.jvp(fn, p, t))(primals, tangents)
    assert_close(t_out, expected_jvp(primals, tangents), 1e-8)
