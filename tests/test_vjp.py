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
    over_double_dtypes,
    over_oblong_shapes,
    over_solvers,
    over_solvers_in_turn,
    over_square_solvers,
    over_square_solvers_derived,
    pinv,
    pytree_function_operator,
    pytree_jacobian_operator,
    slow,
    solve,
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
@over_double_dtypes
def test_vjp(solver, tags, shape, dtype):
    a, b = problem(shape, dtype)
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


@over_solvers_in_turn(0)
@pytest.mark.parametrize(
    "order", ("jvp of vjp", slow("vjp of jvp"), slow("vjp of vjp"))
)
def test_second_order(solver, tags, shape, order):
    """The product of the Hessian with a direction, in the three ways there are."""
    primals = problem(shape, np.float64)
    direction = normal(shape, seed=1), normal(shape[:1], seed=1)
    fn = lambda a, b: loss(solve(matrix_operator(a, tags), b, solver))
    grad = jax.grad(fn, (0, 1))
    dot = lambda xs, ys: sum(jnp.sum(x * y) for x, y in zip(xs, ys))
    hvp = {
        "jvp of vjp": lambda *p: jax.jvp(grad, p, direction)[1],
        "vjp of jvp": jax.grad(lambda *p: jax.jvp(fn, p, direction)[1], (0, 1)),
        "vjp of vjp": jax.grad(lambda *p: dot(grad(*p), direction), (0, 1)),
    }[order]
    moved = lambda t: tuple(x + t * dx for x, dx in zip(primals, direction))
    for i, out in enumerate(jax.jit(hvp)(*primals)):
        expected = directional(lambda t, i=i: expected_grads(*moved(t))[i])
        assert_close(out, expected, 1e-6)


@over_square_solvers
@over_double_dtypes
@pytest.mark.parametrize("given_state", (False, True), ids=("", "state"))
def test_square(solver, make_operator, dtype, given_state):
    a, b = problem((4, 4), dtype)
    kwargs = {"state": solver.init(make_operator(a), {})} if given_state else {}
    fn = lambda a, b: loss(solve(make_operator(a), b, solver, **kwargs))
    grads = jax.jit(jax.grad(fn, (0, 1)))(a, b)
    for grad, expected in zip(grads, expected_grads(a, b)):
        assert_close(grad, expected, 1e-8)


@over_square_solvers_derived
def test_square_second_order(solver, make_operator):
    primals = problem((4, 4), np.float64)
    direction = normal((4, 4), seed=1), normal((4,), seed=1)
    fn = lambda a, b: loss(solve(make_operator(a), b, solver))
    hvp = lambda *p: jax.jvp(jax.grad(fn, (0, 1)), p, direction)[1]
    moved = lambda t: tuple(x + t * dx for x, dx in zip(primals, direction))
    for i, out in enumerate(jax.jit(hvp)(*primals)):
        expected = directional(lambda t, i=i: expected_grads(*moved(t))[i])
        assert_close(out, expected, 1e-6)
