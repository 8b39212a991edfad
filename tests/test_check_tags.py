import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import lineax as lx
import numpy as np
import pytest
from helpers import (
    assert_close,
    bwd_jacobian_operator,
    flatten,
    function_operator,
    in_turn,
    jacobian_operator,
    matrix_operator,
    normal,
    pytree_function_operator,
    pytree_jacobian_operator,
    pytree_operator,
    slow,
    tolerance,
    unflatten,
)
from operators import applications, banded, scale

import lineax_ext as lxe


N = 5
KEY = jr.key(0)
LOWER, UPPER = lx.lower_triangular_tag, lx.upper_triangular_tag
DIAGONAL, TRIDIAGONAL = lx.diagonal_tag, lx.tridiagonal_tag
SYMMETRIC, UNIT = lx.symmetric_tag, lx.unit_diagonal_tag


def _symmetric(shape, dtype=np.float64):
    matrix = normal(shape, dtype)
    return matrix + matrix.T


def _unit(matrix):
    matrix = matrix.copy()
    np.fill_diagonal(matrix, 1)
    return matrix


def _banded(lower, upper):
    return lambda shape, dtype=np.float64: banded(shape, lower, upper, dtype)


def _outside(lower, upper):
    return lambda i, j: not -lower <= j - i <= upper


# tags, a matrix of which they are true, where an entry makes them a lie, the message
CASES = {
    "diagonal": ((DIAGONAL,), _banded(0, 0), _outside(0, 0), "diagonal"),
    "both triangular": ((LOWER, UPPER), _banded(0, 0), _outside(0, 0), "diagonal"),
    "tridiagonal": ((TRIDIAGONAL,), _banded(1, 1), _outside(1, 1), "tridiagonal"),
    "lower bidiagonal": (
        (TRIDIAGONAL, LOWER),
        _banded(1, 0),
        _outside(1, 0),
        "bidiagonal",
    ),
    "upper bidiagonal": (
        (TRIDIAGONAL, UPPER),
        _banded(0, 1),
        _outside(0, 1),
        "bidiagonal",
    ),
    "lower": ((LOWER,), _banded(N, 0), _outside(N, 0), "lower triangular"),
    "upper": ((UPPER,), _banded(0, N), _outside(0, N), "upper triangular"),
    "symmetric": ((SYMMETRIC,), _symmetric, lambda i, j: i != j, "symmetric"),
    "symmetric tridiagonal": (
        (SYMMETRIC, TRIDIAGONAL),
        lambda shape, dtype=np.float64: np.tril(
            np.triu(_symmetric(shape, dtype), -1), 1
        ),
        lambda i, j: i != j,
        "(symmetric|tridiagonal)",
    ),
    "unit diagonal": (
        (UNIT,),
        lambda *args: _unit(normal(*args)),
        lambda i, j: i == j,
        "as of unit diagonal",
    ),
    "unit tridiagonal": (
        (UNIT, TRIDIAGONAL),
        lambda *args: _unit(banded(args[0], 1, 1, *args[1:])),
        lambda i, j: i == j or abs(i - j) > 1,
        "(as of unit diagonal|tridiagonal)",
    ),
}


def _over(*names):
    return pytest.mark.parametrize(
        "tags, make_matrix, is_lie, message",
        [pytest.param(*CASES[name], id=name) for name in names],
    )


def _tagged(make):
    return lambda matrix, tags: lx.TaggedLinearOperator(make(matrix), tags)


def _sum(matrix, tags):
    other = normal(matrix.shape)
    operator = function_operator(other) + jacobian_operator(matrix - other)
    return lx.TaggedLinearOperator(operator, tags)


MIXED_OPERATORS = {
    "function": function_operator,
    "reverse jacobian": ft.partial(jacobian_operator, jac="bwd"),
    "tagged matrix": _tagged(matrix_operator),
    "tagged jacobian": _tagged(jacobian_operator),
    "tagged sum": _sum,
    "sum of tagged": lambda matrix, tags: (
        jacobian_operator(matrix / 2, tags) + matrix_operator(matrix / 2, tags)
    ),
    "scaled": lambda matrix, tags: -(2.0 * jacobian_operator(-matrix / 2, tags)),
    "tagged product": lambda matrix, tags: lx.TaggedLinearOperator(
        function_operator(matrix) @ jacobian_operator(np.eye(len(matrix))), tags
    ),
}
PYTREE_OPERATORS = {
    "pytree": pytree_operator,
    "pytree function": pytree_function_operator,
    "pytree jacobian": pytree_jacobian_operator,
    "reverse pytree jacobian": ft.partial(pytree_jacobian_operator, jac="bwd"),
}


def _checked(make, tags):
    """The flat `mv` of a checked operator with the given matrix."""

    def mv(matrix, vector):
        operator = lxe.check_tags(make(matrix, tags), key=KEY)
        return flatten(operator.mv(unflatten(vector, operator.in_structure())))

    return mv


@eqx.filter_jit
def _use(operator, key=KEY):
    structure = operator.in_structure()
    ones = jtu.tree_map(lambda x: jnp.ones(x.shape, x.dtype), structure)
    return lxe.check_tags(operator, key=key).mv(ones)


def _lies(matrix, is_lie):
    for index in np.ndindex(matrix.shape):
        if is_lie(*index):
            lie = matrix.copy()
            # A thousandth of the other entries, or half in single precision.
            lie[index] += 1e-3 if matrix.dtype.itemsize > 4 else 0.5
            yield lie


def _raises(message):
    # `eqx.error_if`'s own, or what `jax.jit` makes of it.
    errors = RuntimeError, ValueError
    return pytest.raises(errors, match=f"`check_tags`: .* tagged {message}")


#
# The truth, and every lie
#


def _test_truth_and_lies(make, tags, make_matrix, is_lie, message, dtype=np.float64):
    matrix, vector = make_matrix((N, N), dtype), normal((N,), dtype)
    fn = eqx.filter_jit(_checked(make, tags))
    assert_close(fn(matrix, vector), matrix @ vector, tolerance(dtype))
    lies = list(_lies(matrix, is_lie))
    assert len(lies) >= N - 1
    for lie in lies:
        with _raises(message):
            jax.block_until_ready(fn(lie, vector))


@_over(*CASES)
@pytest.mark.parametrize("make", (slow(matrix_operator), jacobian_operator))
def test_every_lie(make, tags, make_matrix, is_lie, message):
    _test_truth_and_lies(make, tags, make_matrix, is_lie, message)


@_over("both triangular", "tridiagonal", "symmetric")
@pytest.mark.parametrize(
    "make",
    [
        slow(make) if name in ("tagged sum", "scaled", "tagged product") else make
        for name, make in MIXED_OPERATORS.items()
    ],
    ids=MIXED_OPERATORS.keys(),
)
def test_operators(make, tags, make_matrix, is_lie, message):
    _test_truth_and_lies(make, tags, make_matrix, is_lie, message)


# Inputs and outputs of different structures: never symmetric.
@_over("both triangular", "tridiagonal", "unit diagonal")
@pytest.mark.parametrize("make", PYTREE_OPERATORS.values(), ids=PYTREE_OPERATORS.keys())
def test_pytrees(make, tags, make_matrix, is_lie, message):
    _test_truth_and_lies(make, tags, make_matrix, is_lie, message)


@pytest.mark.parametrize("dtype", (np.float32, np.complex128))
@_over("tridiagonal", "lower", "symmetric", "unit diagonal")
def test_dtypes(tags, make_matrix, is_lie, message, dtype):
    make = jacobian_operator
    _test_truth_and_lies(make, tags, make_matrix, is_lie, message, dtype)


@_over("tridiagonal", "lower", "symmetric", "unit diagonal")
def test_eager(tags, make_matrix, is_lie, message):
    matrix, vector = make_matrix((N, N)), normal((N,))
    fn = _checked(bwd_jacobian_operator, tags)
    assert_close(fn(matrix, vector), matrix @ vector, 1e-13)
    with _raises(message):
        fn(next(_lies(matrix, is_lie)), vector)


@pytest.mark.parametrize("make", (matrix_operator, jacobian_operator))
@_over("tridiagonal", "upper", "symmetric")
def test_plain_jit_and_vmap(tags, make_matrix, is_lie, message, make):
    matrix, vector = make_matrix((N, N)), normal((N,))
    lie = next(_lies(matrix, is_lie))
    batched = jax.jit(jax.vmap(_checked(make, tags), (0, None)))
    truths = np.stack([matrix, 2 * matrix])
    assert_close(batched(truths, vector), truths @ vector, 1e-13)
    for batch in ((matrix, lie), (lie, matrix)):
        with _raises(message):
            jax.block_until_ready(batched(np.stack(batch), vector))


@pytest.mark.parametrize("jit", (jax.jit, eqx.filter_jit))
@pytest.mark.parametrize("jac", (None, "bwd"))
def test_affine_under_jit(jac, jit):
    # Its derivative depends on no array that an error could hang on.
    def solve(x):
        roll = lambda x, args: jnp.roll(x, 1)
        operator = lx.JacobianLinearOperator(roll, x, None, DIAGONAL, jac=jac)
        return lx.linear_solve(lxe.check_tags(operator, key=KEY), x).value

    with _raises("diagonal"):
        jax.block_until_ready(jit(solve)(normal((N,))))


@pytest.mark.parametrize("tags, lie", ((DIAGONAL, 1), (TRIDIAGONAL, 2), (LOWER, -1)))
@pytest.mark.parametrize("transform", (lambda fn: fn, eqx.filter_jit, jax.jit))
def test_function_without_arrays(transform, tags, lie):
    vector = normal((N,))
    struct = jax.ShapeDtypeStruct((N,), np.float64)

    def solve(vector, shift):
        fn = lambda x: 2.0 * x + 0.5 * jnp.roll(x, shift)
        operator = lx.FunctionLinearOperator(
            fn if shift else lambda x: 2.0 * x, struct, tags
        )
        assert len(jtu.tree_leaves(eqx.filter(operator, eqx.is_array))) == 0
        operator = lxe.check_tags(operator, key=KEY)
        return lx.linear_solve(operator, operator.mv(vector)).value

    assert_close(transform(ft.partial(solve, shift=0))(vector), vector, 1e-14)
    with _raises(""):
        jax.block_until_ready(transform(ft.partial(solve, shift=lie))(vector))


def test_hermitian_is_not_symmetric():
    matrix = normal((N, N), np.complex128)
    matrix = matrix @ matrix.conj().T
    psd = lxe.check_tags(matrix_operator(matrix, lx.positive_semidefinite_tag), key=KEY)
    assert_close(psd.as_matrix(), matrix, 0)
    with _raises("symmetric"):
        lxe.check_tags(matrix_operator(matrix, SYMMETRIC), key=KEY)
    with _raises("symmetric"):
        tags = lx.positive_semidefinite_tag
        lxe.check_tags(matrix_operator(normal((N, N)), tags), key=KEY)


@pytest.mark.parametrize("shape", ((3, 6), (6, 3)))
@pytest.mark.parametrize("jac", ("fwd", "bwd"))
@_over("tridiagonal", "lower")
def test_not_square(tags, make_matrix, is_lie, message, jac, shape):
    matrix, vector = make_matrix(shape), normal(shape[1:])
    fn = eqx.filter_jit(_checked(ft.partial(jacobian_operator, jac=jac), tags))
    assert_close(fn(matrix, vector), matrix @ vector, 1e-13)
    for lie in _lies(matrix, is_lie):
        with _raises(message):
            jax.block_until_ready(fn(lie, vector))


#
# Nothing to find
#


def _from_real(matrix, tags, kind):
    """From ℝⁿ to ℂⁿ, or between pairs of a real and a complex leaf."""
    matrix = jnp.asarray(matrix)
    real = jax.ShapeDtypeStruct((N,), np.float64)
    fn = lambda x, args=None: matrix @ x.astype(matrix.dtype)
    if kind == "function":
        return lx.FunctionLinearOperator(fn, real, tags)
    return lx.JacobianLinearOperator(fn, jnp.ones(N), None, tags, jac=kind)


@in_turn(
    "kind, tags, width",
    ("function", "fwd", "bwd"),
    (((LOWER, UPPER), 0), ((TRIDIAGONAL,), 1), ((LOWER,), None)),
)
def test_real_to_complex(tags, width, kind):
    lower, upper = (N, 0) if width is None else (width, width)
    matrix = banded((N, N), lower, upper, np.complex128)
    _use(_from_real(matrix, tags, kind))
    for lie in (1.0, 1j):
        matrix[1, 4] = lie
        with pytest.raises(eqx.EquinoxRuntimeError, match="but it is not"):
            _use(_from_real(matrix, tags, kind))


@pytest.mark.parametrize("kind", ("function", "fwd", "bwd"))
def test_real_and_complex_leaves(kind):
    structure = (
        jax.ShapeDtypeStruct((2,), np.float64),
        jax.ShapeDtypeStruct((3,), np.complex128),
    )
    tags = (LOWER, UPPER)

    def make(lie):
        def fn(x, args=None):
            real, imag = x
            first = real[0].astype(imag.dtype)
            return 2 * real, (1 + 3j) * imag + lie * first

        if kind == "function":
            return lx.FunctionLinearOperator(fn, structure, tags)
        at = jnp.ones(2), jnp.ones(3, np.complex128)
        return lx.JacobianLinearOperator(fn, at, None, tags, jac=kind)

    _use(make(0.0))
    for lie in (1.0, 1j):
        with pytest.raises(eqx.EquinoxRuntimeError, match="but it is not"):
            _use(make(lie))


@pytest.mark.parametrize("n", (10, 1000))
def test_symmetric_tolerance_does_not_grow(n):
    """A hundred √eps of the Frobenius norm are seen, a hundredth of one is not."""
    matrix = normal((n, n))
    matrix = matrix + matrix.T
    lie = np.triu(normal((n, n), seed=1), 1)
    lie *= np.linalg.norm(matrix) / np.linalg.norm(lie)
    root = np.sqrt(np.finfo(np.float64).eps)
    found = []
    for key in jr.split(KEY, 10):
        _use(matrix_operator(matrix + 0.01 * root * lie, (SYMMETRIC,)), key)
        try:
            _use(matrix_operator(matrix + 100 * root * lie, (SYMMETRIC,)), key)
        except eqx.EquinoxRuntimeError:
            found.append(True)
    assert len(found) >= 9


@pytest.mark.parametrize(
    "tag, message", ((DIAGONAL, "diagonal"), (TRIDIAGONAL, "tridiagonal"))
)
def test_a_lie_inside_of_a_tagged_sum(tag, message):
    inner = matrix_operator(normal((N, N)), tag) + matrix_operator(np.eye(N), tag)
    operator = lx.TaggedLinearOperator(inner, tag)
    with _raises(message):
        lxe.check_tags(operator, key=KEY).mv(jnp.ones(N))


def test_native_operators():
    diagonal, off = jnp.asarray(normal((N,))), jnp.asarray(normal((N - 1,)))
    struct = jax.ShapeDtypeStruct((N,), np.float64)
    for operator in (
        lx.DiagonalLinearOperator(diagonal),
        lx.TridiagonalLinearOperator(diagonal, off, 2 * off),
        lx.IdentityLinearOperator(struct),
    ):
        checked = lxe.check_tags(operator, key=KEY)
        assert_close(checked.as_matrix(), operator.as_matrix(), 0)
        lied = lx.TaggedLinearOperator(2.0 * operator, UNIT)
        with _raises("as of unit diagonal"):
            lxe.check_tags(lied, key=KEY)


@pytest.mark.parametrize("n", (0, 1))
@pytest.mark.parametrize("make", (function_operator, jacobian_operator))
def test_small(make, n):
    for tags, *_ in CASES.values():
        operator = lxe.check_tags(make(np.ones((n, n)), tags), key=KEY)
        assert_close(operator.mv(jnp.full(n, 3.0)), np.full(n, 3.0), 0)
    if n == 1:
        with _raises("as of unit diagonal"):
            lxe.check_tags(make(np.full((1, 1), 2.0), UNIT), key=KEY)


@_over(*CASES)
def test_no_false_alarm(tags, make_matrix, is_lie, message):
    # Rounding in single precision, and entries over many orders of magnitude.
    n = 300
    matrix, vector = make_matrix((n, n)), normal((n,), np.float32)
    if message in ("lower triangular", "upper triangular"):
        matrix = np.tril(matrix) if message == "lower triangular" else np.triu(matrix)
    if UNIT not in tags:
        scales = np.geomspace(1e-4, 1e4, n)
        matrix = scales[:, None] * matrix * scales
    matrix = matrix.astype(np.float32)
    found = eqx.filter_jit(_checked(function_operator, tags))(matrix, vector)
    assert_close(found, matrix.astype(np.float64) @ vector, 1e-5)


@_over(*CASES)
def test_rounding_passes(tags, make_matrix, is_lie, message):
    matrix = make_matrix((N, N)) + 1e-10 * normal((N, N), seed=1)
    operator = lxe.check_tags(matrix_operator(matrix, tags), key=KEY)
    assert_close(operator.matrix, matrix, 0)


@pytest.mark.parametrize("value", (np.nan, np.inf))
def test_non_finite_is_left_to_the_solver(value):
    matrix = banded((N, N), 1, 1)
    matrix[1, 1] = value
    operator = lxe.check_tags(matrix_operator(matrix, TRIDIAGONAL), key=KEY)
    np.testing.assert_array_equal(operator.matrix, matrix)
    solution = lx.linear_solve(operator, jnp.ones(N), throw=False)
    assert solution.result != lx.RESULTS.successful


#
# Derivatives and cost
#


@pytest.mark.parametrize(
    "make",
    (
        matrix_operator,
        function_operator,
        jacobian_operator,
        ft.partial(jacobian_operator, jac="bwd"),
    ),
)
def test_gradient(make):
    matrix, vector = banded((N, N), 1, 1), normal((N,))

    def fn(matrix, vector):
        operator = lxe.check_tags(make(matrix, TRIDIAGONAL), key=KEY)
        return jnp.sum(lx.linear_solve(operator, vector).value)

    by_matrix, by_vector = jax.jit(jax.grad(fn, (0, 1)))(matrix, vector)
    inverse = np.linalg.inv(matrix)
    by_sum = inverse.T @ np.ones(N)
    assert_close(by_vector, by_sum, 1e-12)
    expected = -np.outer(by_sum, inverse @ vector)
    on_band = np.abs(np.subtract.outer(range(N), range(N))) <= 1
    expected, found = (np.where(on_band, x, 0) for x in (expected, by_matrix))
    assert_close(found, expected, 1e-11)


@pytest.mark.parametrize(
    "tags, expected",
    (
        ((), 0),
        ((DIAGONAL,), 1 + 1),
        ((LOWER, UPPER), 1 + 1),
        ((TRIDIAGONAL, LOWER), 2 + 1),
        ((TRIDIAGONAL,), 3 + 1),
        ((SYMMETRIC,), 2),
        ((TRIDIAGONAL, SYMMETRIC), 3 + 1 + 2),
        ((TRIDIAGONAL, UNIT), 3 + 1),
        ((DIAGONAL, UNIT), 1 + 1),
        ((LOWER,), N),
        ((UPPER, UNIT), 2 * N),
        ((UNIT,), N),
    ),
)
def test_applications(tags, expected):
    def check(matrix):
        struct = jax.ShapeDtypeStruct((N,), np.float64)
        fn = lambda v: scale(matrix, v)
        operator = lx.FunctionLinearOperator(fn, struct, tags)
        return eqx.filter(lxe.check_tags(operator, key=KEY), eqx.is_array)

    assert applications(check, jnp.ones(N)) == expected


def test_memory():
    n = 200_000

    def check(x):
        fn = lambda x, args: x**3 + jnp.pad(x[1:], (0, 1)) + jnp.pad(x[:-1], (1, 0))
        operator = lx.JacobianLinearOperator(fn, x, None, (TRIDIAGONAL, SYMMETRIC))
        return lxe.check_tags(operator, key=KEY).mv(x)

    compiled = jax.jit(check).lower(jnp.ones(n)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 40 * n * 8
    expected = 3 + np.pad(np.ones(n - 1), (0, 1)) + np.pad(np.ones(n - 1), (1, 0))
    assert_close(compiled(jnp.ones(n)), expected, 0)
