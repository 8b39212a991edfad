"""`TaggedLinearSolver`: tags for operators that someone else makes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from helpers import (
    assert_close,
    directional,
    flatten,
    function_operator,
    jacobian_operator,
    matrix_operator,
    normal,
    pytree_function_operator,
    pytree_jacobian_operator,
    turned,
    unflatten,
)
from operators import banded, dense_path_fails

import lineax_ext as lxe


N = 20
SOLVER = lxe.TaggedLinearSolver(lx.Tridiagonal(), lx.tridiagonal_tag)


def tridiagonal(dtype=np.float64):
    return banded((N, N), 1, 1, dtype) + 4 * np.eye(N, dtype=dtype)


@pytest.mark.parametrize(
    "make_operator",
    (
        matrix_operator,
        function_operator,
        jacobian_operator,
        lambda a: jacobian_operator(a, jac="bwd"),
        pytree_function_operator,
        pytree_jacobian_operator,
        lambda a: lx.TaggedLinearOperator(jacobian_operator(a), lx.symmetric_tag),
        lambda a: (
            jacobian_operator(a)
            @ lx.IdentityLinearOperator(jax.ShapeDtypeStruct((N,), np.float64))
        ),
    ),
)
def test_solve(make_operator):
    # `jacobian_operator` is of A (x + (x - at)²) at `at`: its matrix is A.
    operator, b = make_operator(tridiagonal()), normal((N,))
    vector = unflatten(b, operator.out_structure())
    with dense_path_fails():
        x = lx.linear_solve(operator, vector, SOLVER).value
    assert_close(flatten(x), np.linalg.solve(tridiagonal(), b), 1e-12)


def test_states():
    a, b = tridiagonal(np.complex128), normal((N,), np.complex128)
    states = turned(SOLVER, function_operator(a))
    for state, matrix in zip(states, (a.T, a.conj(), a.conj().T), strict=True):
        x, result, _ = SOLVER.compute(state, jnp.asarray(b), {})
        assert result == lx.RESULTS.successful
        assert_close(x, np.linalg.solve(matrix, b), 1e-12)


def test_derivatives_and_vmap():
    a, bs = tridiagonal(), normal((3, N))

    def solve(t, b, matrix=lambda t: jnp.asarray(a) * (1 + t), solver=SOLVER):
        operator = lx.FunctionLinearOperator(
            lambda x: matrix(t) @ x, jax.ShapeDtypeStruct((N,), np.float64)
        )
        return jnp.sum(lx.linear_solve(operator, b, solver).value ** 2)

    found = jax.jit(jax.vmap(jax.grad(solve), in_axes=(None, 0)))(0.1, bs)
    for value, b in zip(found, bs, strict=True):
        referee = lambda t, b=b: np.sum(np.linalg.solve((1.1 + t) * a, b) ** 2)
        assert_close(value, directional(referee), 1e-9)


def test_several_tags():
    tags = [lx.tridiagonal_tag, lx.upper_triangular_tag]
    solver = lxe.TaggedLinearSolver(lx.AutoLinearSolver(None), tags)
    assert solver.tags == frozenset(tags)
    a, b = np.triu(tridiagonal()), normal((N,))
    with dense_path_fails():
        x = lx.linear_solve(function_operator(a), b, solver).value
    assert_close(x, np.linalg.solve(a, b), 1e-12)


def test_rank_is_that_of_the_solver():
    for inner in (lxe.QRMultiply(), lxe.QRMultiply(pivoting=True)):
        solver = lxe.TaggedLinearSolver(inner, ())
        assert solver.assume_full_rank() == inner.assume_full_rank()
    assert eqx.tree_equal(SOLVER, lxe.TaggedLinearSolver(lx.Tridiagonal(), SOLVER.tags))
