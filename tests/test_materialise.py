"""The dense matrix of an operator, in chunks."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from helpers import (
    assert_close,
    function_operator,
    jacobian_operator,
    normal,
    OPERATORS,
    over_dtypes,
    pytree_jacobian_operator,
    slow,
    tolerance,
)
from operators import (
    applications,
    cubic,
    cubic_jacobian,
    reverse_sine,
    scale,
    sequential_sine,
    sine,
    sine_jacobian,
)

import lineax_ext._structure.extract
from lineax_ext._materialise import as_matrix


over_jac = pytest.mark.parametrize("jac", (None, "fwd", "bwd"))


def _operator(x, matrix, jac=None):
    return lx.JacobianLinearOperator(sine, x, matrix, jac=jac)


@pytest.fixture(params=(1, slow(2), 3, slow(4), slow(6), slow(7), slow(8), None))
def chunk(request, monkeypatch):
    if request.param is not None:
        fixed = lambda fn, x, count, devices=1: min(request.param, count)
        monkeypatch.setattr(lineax_ext._structure.extract, "chunk_size", fixed)


#
# Values
#


@over_jac
@pytest.mark.parametrize("shape", ((7, 7), (4, 7), (7, 4)))
def test_chunks(shape, jac, chunk):
    x, matrix = normal(shape[1:]), normal(shape)
    found = jax.jit(lambda *args: as_matrix(_operator(*args, jac)))(x, matrix)
    assert_close(found, sine_jacobian(x, matrix), 1e-14)


@pytest.mark.parametrize(
    "shape, jac",
    (
        ((64, 64), None),
        ((65_536, 64), None),  # the largest to be read in one piece
        ((65_537, 64), None),  # in chunks of 13, the last one padded
        ((65_537, 64), "fwd"),
        ((64, 65_537), None),  # by rows
        ((64, 65_537), "bwd"),
        ((100, 150), None),
        ((100, 151), None),  # by rows
        ((2**22 + 1, 1), None),
        ((1, 2**22 + 1), None),
        ((0, 5), None),
        ((5, 0), None),
        ((0, 0), "bwd"),
    ),
)
def test_sizes(shape, jac):
    x, matrix = normal(shape[1:]), normal(shape) / max(shape) ** 0.5
    expected = sine_jacobian(x, matrix)
    assert_close(as_matrix(_operator(x, matrix, jac)), expected, 1e-13)


@over_dtypes
@pytest.mark.parametrize("make", OPERATORS)
@pytest.mark.parametrize("chunk", (3,), indirect=True)
def test_operators(make, dtype, chunk):
    matrix = normal((7, 4), dtype)
    found = as_matrix(lx.TaggedLinearOperator(make(matrix), ()))
    assert found.dtype == dtype
    assert_close(found, matrix, tolerance(dtype))


@pytest.mark.parametrize("shape", ((7, 5), (5, 7), (65_537, 64)))
def test_function(shape):
    matrix = normal(shape)
    assert_close(as_matrix(function_operator(matrix)), matrix, 0)


def test_expression():
    a, b, c = (normal(shape) for shape in ((4, 4), (4, 7), (4, 7)))
    operator = 2.0 * (jacobian_operator(a) @ function_operator(b)) - jacobian_operator(
        c
    )
    assert_close(as_matrix(operator), 2 * a @ b - c, 1e-13)


@over_jac
@pytest.mark.parametrize("shape", ((7, 4), (4, 7), (3, 101)))
def test_real_to_complex(shape, jac):
    x, matrix = normal(shape[1:]), normal(shape, np.complex128)
    fn = lambda x, matrix: jnp.sin(matrix @ x.astype(matrix.dtype))
    operator = lx.JacobianLinearOperator(fn, x, matrix, jac=jac)
    assert_close(as_matrix(operator), sine_jacobian(x, matrix), 1e-13)


def test_wide_pytree():
    # Read by rows, from cotangents of several leaves to gradients of several leaves.
    matrix = normal((5, 120), np.complex128)
    for jac in (None, "fwd", "bwd"):
        assert_close(
            as_matrix(pytree_jacobian_operator(matrix, (), jac)), matrix, 1e-14
        )


#
# Functions that JAX can do little with
#


@pytest.mark.parametrize(
    "shape, jac, expected",
    (
        ((7, 4), None, 4),
        ((7, 4), "bwd", 7),
        ((3, 101), None, 3),
        ((3, 101), "fwd", 101),
        ((700, 101), None, 101),
    ),
)
def test_without_batching_rule(shape, jac, expected):
    x, matrix = normal(shape[1:]), normal(shape)
    read = lambda *args: as_matrix(lx.JacobianLinearOperator(cubic, *args, jac=jac))
    assert_close(read(x, matrix), cubic_jacobian(x, matrix), 1e-13)
    assert applications(read, x, matrix) == expected
    struct = jax.ShapeDtypeStruct(x.shape, x.dtype)
    function = lambda c: lx.FunctionLinearOperator(lambda v: scale(c, v), struct)
    assert_close(as_matrix(function(x)), np.diag(x), 0)
    assert applications(lambda c: as_matrix(function(c)), x) == x.size


@pytest.mark.parametrize(
    "function, jac", ((sequential_sine, None), (reverse_sine, "bwd"))
)
def test_callbacks(function, jac):
    x, matrix = normal((7,)), normal((7, 7))
    fn, calls = function(matrix)
    found = as_matrix(lx.JacobianLinearOperator(fn, x, jac=jac))
    assert_close(found, sine_jacobian(x, matrix), 1e-14)
    assert len(calls) == 7


#
# Derivatives and vmap
#


@over_jac
@pytest.mark.parametrize("shape", ((7, 4), (4, 7)))
@pytest.mark.parametrize("chunk", (3, None), indirect=True)
def test_gradient(shape, jac, chunk):
    x, matrix, weights = normal(shape[1:]), normal(shape), normal(shape, seed=1)
    inner = np.sum(weights * matrix, axis=1) * np.sin(matrix @ x)
    by_x = -matrix.T @ inner
    by_matrix = weights * np.cos(matrix @ x)[:, None] - np.outer(inner, x)

    def fn(x, matrix):
        return jnp.sum(weights * as_matrix(_operator(x, matrix, jac)))

    found = jax.jit(jax.grad(fn, (0, 1)))(x, matrix)
    assert_close(found[0], by_x, 1e-13)
    assert_close(found[1], by_matrix, 1e-13)
    tangents = normal(x.shape, seed=2), normal(shape, seed=2)
    _, found = jax.jvp(fn, (x, matrix), tangents)
    expected = by_x @ tangents[0] + np.sum(by_matrix * tangents[1])
    assert_close(found, expected, 1e-13)


@over_jac
@pytest.mark.parametrize("chunk", (3,), indirect=True)
def test_vmap(jac, chunk):
    xs, matrices = normal((3, 4)), normal((2, 7, 4))
    fn = lambda x, matrix: as_matrix(_operator(x, matrix, jac))
    found = jax.vmap(jax.vmap(fn, (0, None)), (None, 0))(xs, matrices)
    expected = [[sine_jacobian(x, matrix) for x in xs] for matrix in matrices]
    assert_close(found, np.asarray(expected), 1e-14)


#
# Memory
#


@pytest.mark.parametrize("m, n", ((500, 400), (300, 500)))
def test_memory(m, n):
    # One `vmap` over all the basis vectors holds a hidden layer for each of them.
    hidden = 50_000
    struct = lambda *shape: jax.ShapeDtypeStruct(shape, np.float64)

    def network(x, weights):
        for weight in weights:
            x = jnp.tanh(weight @ x)
        return x

    def temporary(fn):
        args = struct(n), (struct(hidden, n), struct(m, hidden))
        return jax.jit(fn).lower(*args).compile().memory_analysis().temp_size_in_bytes

    chunked = temporary(
        lambda *args: as_matrix(lx.JacobianLinearOperator(network, *args))
    )
    whole = min(temporary(jax.jacfwd(network)), temporary(jax.jacrev(network)))
    assert chunked < whole / 5
