import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    assert_close,
    directional,
    gradient,
    matrix_operator,
    normal,
    over_oblong_shapes,
    over_solvers,
    over_solvers_in_turn,
    over_square_solvers_derived,
    pinv,
    pytree_function_operator,
    pytree_jacobian_operator,
    SHAPES,
    slow,
    solve,
    SOLVERS,
    well_conditioned,
)


def loss(x):
    """Real, and neither linear nor symmetric in the entries of x."""
    xp = np if isinstance(x, np.ndarray) else jnp
    weights = xp.arange(1, x.size + 1, dtype=x.real.dtype)
    return xp.sum(weights * xp.abs(x) ** 2) + xp.sum(xp.sin(x.real) * weights[::-1])


def expected_loss(a, b):
    return loss(pinv(a) @ b)


def expected_grads(a, b):
    return (
        gradient(lambda a: expected_loss(a, b), a),
        gradient(lambda b: expected_loss(a, b), b),
    )


def problem(shape, dtype):
    return well_conditioned(shape, dtype), normal(shape[:1], dtype)


@over_solvers
@over_oblong_shapes
def test_vjp(solver, tags, shape):
    a, b = problem(shape, np.complex128)
    fn = lambda a, b: loss(solve(matrix_operator(a, tags), b, solver))
    grads = jax.jit(jax.grad(fn, (0, 1)))(a, b)
    for grad, expected in zip(grads, expected_grads(a, b)):
        assert_close(grad, expected, 1e-8)


@over_solvers_in_turn(0)
@pytest.mark.parametrize(
    "make_operator", (slow(pytree_function_operator), pytree_jacobian_operator)
)
def test_operators(solver, tags, shape, make_operator):
    a, b = problem(shape, np.complex128)
    fn = lambda a, b: loss(solve(make_operator(a, tags), b, solver))
    grads = jax.jit(jax.grad(fn, (0, 1)))(a, b)
    for grad, expected in zip(grads, expected_grads(a, b)):
        assert_close(grad, expected, 1e-8)


@over_solvers_in_turn(1)
def test_state(solver, tags, shape):
    a, b = problem(shape, np.float64)
    state = solver.init(matrix_operator(a, tags), {})
    fn = lambda a, b: loss(solve(matrix_operator(a, tags), b, solver, state=state))
    grads = jax.jit(jax.grad(fn, (0, 1)))(a, b)
    for grad, expected in zip(grads, expected_grads(a, b)):
        assert_close(grad, expected, 1e-8)


ORDERS = "jvp of vjp", "vjp of jvp", "vjp of vjp"


@pytest.mark.parametrize(
    "solver, tags, shape, order",
    [
        (slow if k > 0 else pytest.param)(
            solver, tags, SHAPES[2 * ((i + k) % 2)], order
        )
        for i, (_, solver, tags, _) in enumerate(SOLVERS)
        for k, order in enumerate(ORDERS)
    ],
)
def test_second_order(solver, tags, shape, order):
    """The gradient, and the product of the Hessian with a direction, in three ways."""
    primals = problem(shape, np.float64)
    direction = normal(shape, seed=1), normal(shape[:1], seed=1)
    fn = lambda a, b: loss(solve(matrix_operator(a, tags), b, solver))
    grad = jax.grad(fn, (0, 1))
    dot = lambda xs, ys: sum(jnp.sum(x * y) for x, y in zip(xs, ys))

    @jax.jit
    def hvp(*primals):
        if order == "jvp of vjp":
            return jax.jvp(grad, primals, direction)
        if order == "vjp of jvp":
            jvp = lambda *p: jax.jvp(fn, p, direction)[1]
            return None, jax.grad(jvp, (0, 1))(*primals)
        both = lambda *p: (dot(grad(*p), direction), grad(*p))
        hvp, grads = jax.grad(both, (0, 1), has_aux=True)(*primals)
        return grads, hvp

    check_second_order(hvp(*primals), primals, direction)


def check_second_order(found, primals, direction):
    grads, hvps = found
    moved = lambda t: tuple(x + t * dx for x, dx in zip(primals, direction))
    for grad, expected in zip(grads or (), expected_grads(*primals)):
        assert_close(grad, expected, 1e-8)
    for i, out in enumerate(hvps):
        expected = directional(lambda t, i=i: expected_grads(*moved(t))[i])
        assert_close(out, expected, 1e-6)


@over_square_solvers_derived
def test_square(solver, make_operator):
    """With a state; without one, below."""
    a, b = problem((4, 4), np.complex128)
    state = solver.init(make_operator(a), {})
    fn = lambda a, b: loss(solve(make_operator(a), b, solver, state=state))
    grads = jax.jit(jax.grad(fn, (0, 1)))(a, b)
    for grad, expected in zip(grads, expected_grads(a, b)):
        assert_close(grad, expected, 1e-8)


@over_square_solvers_derived
def test_square_second_order(solver, make_operator):
    primals = problem((4, 4), np.float64)
    direction = normal((4, 4), seed=1), normal((4,), seed=1)
    fn = lambda a, b: loss(solve(make_operator(a), b, solver))
    hvp = jax.jit(lambda *p: jax.jvp(jax.grad(fn, (0, 1)), p, direction))
    check_second_order(hvp(*primals), primals, direction)
