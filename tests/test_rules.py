"""`lx.diagonal` and `lx.tridiagonal` of operators that can only be applied."""

import functools as ft

import jax
import jax.experimental
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
import pytest
from helpers import (
    assert_close,
    bwd_jacobian_operator,
    function_operator,
    in_turn,
    jacobian_operator,
    normal,
    over_dtypes,
    pytree_function_operator,
    pytree_jacobian_operator,
    slow,
    tolerance,
)
from operators import (
    applications,
    banded,
    cubic,
    cubic_jacobian,
    dense_path_fails,
    diagonals,
    reverse_sine,
    scale,
    sequential_sine,
    sine,
    sine_jacobian,
)

from lineax_ext._materialise import as_matrix


N = 7
DIAGONAL, TRIDIAGONAL = lx.diagonal_tag, lx.tridiagonal_tag
LOWER, UPPER = lx.lower_triangular_tag, lx.upper_triangular_tag

BANDS = (
    # tags, bandwidth, applications for the diagonal and for the tridiagonal
    ((DIAGONAL,), (0, 0), 1, 1),
    ((LOWER, UPPER), (0, 0), 1, 1),
    ((TRIDIAGONAL, LOWER), (1, 0), 2, 2),
    ((TRIDIAGONAL, UPPER), (0, 1), 2, 2),
    ((TRIDIAGONAL,), (1, 1), 3, 3),
    ((LOWER,), (N, 0), N, N),
    ((), (N, N), N, N),
)


def _id(tags):
    return "+".join(str(tag).removesuffix("_tag") for tag in tags) or "untagged"


def _over_bands(rows):
    return pytest.mark.parametrize(
        "tags, band", [pytest.param(tags, b, id=_id(tags)) for tags, b, *_ in rows]
    )


over_bands = _over_bands(BANDS)
TAGS = [row[:2] for row in BANDS]
# lineax takes `diagonal_tag` only with one structure on both sides.
ASYMMETRIC_TAGS = TAGS[1:]
FEW_TAGS = [TAGS[i] for i in (1, 2, 4, 6)]
over_jac = pytest.mark.parametrize("jac", (None, "fwd", "bwd"))

LAZY_OPERATORS = (
    function_operator,
    jacobian_operator,
    ft.partial(jacobian_operator, jac="bwd"),
    bwd_jacobian_operator,
    pytree_function_operator,
    pytree_jacobian_operator,
    ft.partial(pytree_jacobian_operator, jac="bwd"),
)

WRAPPERS = {
    "tagged": lambda make, matrix, tags: lx.TaggedLinearOperator(make(matrix), tags),
    "inner": lambda make, matrix, tags: lx.TaggedLinearOperator(make(matrix, tags), ()),
    "split": lambda make, matrix, tags: lx.TaggedLinearOperator(
        lx.TaggedLinearOperator(make(matrix), tags[:1]), tags[1:]
    ),
}
over_wrappers = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())


def _check(operator, matrix, rtol):
    expected = diagonals(matrix)
    found = lx.tridiagonal(operator)
    assert len(found) == 3
    for x, y in zip((lx.diagonal(operator), *found), (expected[0], *expected)):
        assert x.dtype == matrix.dtype
        assert_close(x, y, rtol)


#
# Values
#


@in_turn("make, tags, band", LAZY_OPERATORS, ASYMMETRIC_TAGS)
def test_values(make, tags, band):
    matrix = banded((N, N), *band)
    _check(make(matrix, tags), matrix, 1e-13)


@over_wrappers
@over_bands
@pytest.mark.parametrize("make", (slow(function_operator), jacobian_operator))
def test_tagged(make, tags, band, wrap):
    matrix = banded((N, N), *band)
    _check(wrap(make, matrix, tags), matrix, 1e-13)


@in_turn("make, tags, band", LAZY_OPERATORS, FEW_TAGS, first=1)
@pytest.mark.parametrize("dtype", (slow(np.float32), np.complex128))
def test_dtypes(make, tags, band, dtype):
    matrix = banded((N, N), *band, dtype)
    _check(make(matrix, tags), matrix, tolerance(dtype))


@in_turn("n, tags, band", (1, 2), TAGS)
@pytest.mark.parametrize("jac", (None, slow("bwd")))
def test_small(jac, tags, band, n):
    matrix = banded((n, n), *band)
    _check(jacobian_operator(matrix, tags, jac), matrix, 1e-13)
    _check(function_operator(matrix, tags), matrix, 1e-13)


@in_turn(
    "shape, tags, band",
    [(shape,) for shape in ((5, 8), (8, 5), (1, 4), (4, 1))],
    FEW_TAGS,
)
@pytest.mark.parametrize("jac", (None, slow("bwd")))
def test_not_square(jac, tags, band, shape):
    matrix = banded(shape, *band)
    _check(jacobian_operator(matrix, tags, jac), matrix, 1e-13)
    _check(function_operator(matrix, tags), matrix, 1e-13)


@pytest.mark.parametrize("shape", ((0, 0), (0, 3), (3, 0)))
@over_jac
def test_empty(jac, shape):
    matrix = normal(shape)
    for tags in ((LOWER, UPPER), (TRIDIAGONAL,), (LOWER,), ()):
        _check(jacobian_operator(matrix, tags, jac), matrix, 0)
        _check(function_operator(matrix, tags), matrix, 0)


def test_no_leaves():
    operator = lx.JacobianLinearOperator(lambda x, args: (), {})
    _check(operator, np.zeros((0, 0)), 0)


def test_unit_diagonal():
    matrix = banded((N, N), 1, 1)
    np.fill_diagonal(matrix, 1)
    tags = (TRIDIAGONAL, lx.unit_diagonal_tag)
    for operator in (
        function_operator(matrix, tags),
        jacobian_operator(matrix, tags),
        lx.TaggedLinearOperator(function_operator(matrix), tags),
    ):
        _check(operator, matrix, 1e-13)
        assert np.all(lx.diagonal(operator) == 1)


#
# Cost
#


def _cubic_operator(x, matrix, tags=(), jac=None):
    return lx.JacobianLinearOperator(cubic, x, matrix, tags, jac=jac)


def _scale_operator(x, matrix, tags=()):
    struct = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return lx.FunctionLinearOperator(
        lambda v: matrix @ scale(3 * x**2, v), struct, tags
    )


@in_turn(
    "make, tags, band, diagonal_cost, tridiagonal_cost",
    (_cubic_operator, ft.partial(_cubic_operator, jac="bwd"), _scale_operator),
    BANDS,
)
@pytest.mark.parametrize("where", (slow("own"), "tagged"))
def test_applications_without_batching_rule(
    make, where, tags, band, diagonal_cost, tridiagonal_cost
):
    def operator(x, matrix):
        if where == "own":
            return make(x, matrix, tags)
        return lx.TaggedLinearOperator(make(x, matrix), tags)

    x, matrix = normal((N,)), banded((N, N), *band)
    args = jnp.asarray(x), jnp.asarray(matrix)
    _check(operator(*args), cubic_jacobian(x, matrix), 1e-13)
    cost = lambda fn: applications(lambda *args: fn(operator(*args)), *args)
    assert cost(lx.diagonal) == diagonal_cost
    assert cost(lx.tridiagonal) == tridiagonal_cost


@pytest.mark.parametrize("make", (_cubic_operator, _scale_operator))
def test_unit_diagonal_applies_nothing(make):
    args, unit = (jnp.ones(N), jnp.eye(N)), lx.unit_diagonal_tag
    cost = lambda fn, make: applications(lambda *args: fn(make(*args)), *args)
    tagged = lambda *args: lx.TaggedLinearOperator(make(*args), unit)
    both = lambda *args: make(*args, (TRIDIAGONAL, unit))
    assert cost(lx.diagonal, tagged) == cost(lx.diagonal, both) == 0
    assert cost(lx.tridiagonal, both) == 3


@in_turn(
    "function, jac, tags, band, diagonal_cost, tridiagonal_cost",
    ((sequential_sine, None), (reverse_sine, "bwd")),
    BANDS,
)
@pytest.mark.parametrize("where", (slow("own"), "tagged"))
def test_callbacks(where, function, jac, tags, band, diagonal_cost, tridiagonal_cost):
    x, matrix = normal((N,)), banded((N, N), *band)
    fn, calls = function(matrix)
    own, outer = (tags, ()) if where == "own" else ((), tags)
    operator = lx.JacobianLinearOperator(fn, x, None, own, jac=jac)
    operator = lx.TaggedLinearOperator(operator, outer)
    jax.block_until_ready(lx.diagonal(operator))
    assert len(calls) == diagonal_cost
    jax.block_until_ready(lx.tridiagonal(operator))
    assert len(calls) == diagonal_cost + tridiagonal_cost
    _check(operator, sine_jacobian(x, matrix), 1e-13)


def _with_debug_callback(matrix, ordered):
    def fn(v):
        jax.debug.callback(lambda: None, ordered=ordered)
        return matrix @ v

    return fn


def _io_callback(matrix, ordered):
    out = jax.ShapeDtypeStruct((N,), np.float64)
    host = lambda v: matrix @ np.asarray(v)
    return lambda v: jax.experimental.io_callback(host, out, v, ordered=ordered)


def _check_effects(make):
    for tags, band in (
        ((LOWER, UPPER), (0, 0)),
        ((TRIDIAGONAL,), (1, 1)),
        ((), (N, N)),
    ):
        matrix = banded((N, N), *band)
        struct = jax.ShapeDtypeStruct((N,), np.float64)
        operator = lx.FunctionLinearOperator(make(matrix), struct, tags)
        _check(operator, matrix, 1e-14)
        assert_close(as_matrix(operator), matrix, 1e-14)


@pytest.mark.parametrize("ordered", (False, True))
def test_debug_callback(ordered):
    _check_effects(ft.partial(_with_debug_callback, ordered=ordered))


def test_io_callback():
    _check_effects(ft.partial(_io_callback, ordered=False))


def test_ordered_io_callback():
    _check_effects(ft.partial(_io_callback, ordered=True))


#
# Tags on the outside
#


def _tridiagonal_composites():
    a, b = banded((N, N), 1, 1, seed=1), banded((N, N), 1, 1, seed=2)
    lower, upper = banded((N, N), 1, 0, seed=3), banded((N, N), 0, 1, seed=4)
    diagonal = banded((N, N), 0, 0, seed=5)
    f, j = function_operator, jacobian_operator
    yield "sum", f(a) + j(b), a + b
    yield "difference", f(a) - j(b), a - b
    yield "cancelling", f(normal((N, N))) - j(normal((N, N)) - a), a
    yield "product", f(lower) @ j(upper), lower @ upper
    yield "diagonal product", j(diagonal) @ f(a), diagonal @ a
    yield "scaled", 3.0 * j(a), 3 * a
    yield "divided", j(a) / 3.0, a / 3
    yield "negative", -j(a), -a
    yield "nested", -(f(a) + 2.0 * (j(lower) @ f(upper))), -(a + 2 * lower @ upper)
    yield "transposed", j(a).T + f(b).T, a.T + b.T


@pytest.mark.parametrize(
    "operator, matrix",
    [pytest.param(*case, id=name) for name, *case in _tridiagonal_composites()],
)
def test_tagged_composites(operator, matrix):
    _check(lx.TaggedLinearOperator(operator, ()), matrix, 1e-13)
    tagged = lx.TaggedLinearOperator(operator, TRIDIAGONAL)
    twice = lx.TaggedLinearOperator(
        lx.TaggedLinearOperator(operator, TRIDIAGONAL), lx.symmetric_tag
    )
    with dense_path_fails():
        _check(tagged, matrix, 1e-13)
        _check(twice, matrix, 1e-13)
        _check(tagged.T, matrix.T, 1e-13)


def test_composites_of_tagged():
    # These rules are lineax's own; they reach the ones under test from within.
    a, b = banded((N, N), 1, 1, seed=1), banded((N, N), 1, 1, seed=2)
    diagonal = banded((N, N), 0, 0, seed=3)
    tag = lambda operator: lx.TaggedLinearOperator(operator, TRIDIAGONAL)
    left, right = tag(function_operator(a)), jacobian_operator(b, TRIDIAGONAL)
    scaling = lx.TaggedLinearOperator(jacobian_operator(diagonal), DIAGONAL)
    with dense_path_fails():
        _check(lx.TaggedLinearOperator(left + right, lx.symmetric_tag), a + b, 1e-13)
        _check(left - 2.0 * right, a - 2 * b, 1e-13)
        for found, expected in (
            (scaling @ left, diagonal @ a),
            (right @ scaling, b @ diagonal),
        ):
            for x, y in zip(lx.tridiagonal(found), diagonals(expected)):
                assert_close(x, y, 1e-13)


@over_jac
@pytest.mark.parametrize(
    "tags, band", (((DIAGONAL,), (0, 0)), ((TRIDIAGONAL,), (1, 1)))
)
def test_tag_is_not_dropped(tags, band, jac):
    matrix = banded((N, N), *band)
    operator = jacobian_operator(matrix, jac=jac)
    with dense_path_fails():
        for fn in (lx.diagonal, lx.tridiagonal, lx.materialise):
            with pytest.raises(AssertionError, match="dense path"):
                fn(operator)
        tagged = lx.TaggedLinearOperator(operator, tags)
        _check(tagged, matrix, 1e-13)
        solution = lx.linear_solve(tagged, jnp.ones(N), lx.AutoLinearSolver(True))
    assert_close(solution.value, np.linalg.solve(matrix, np.ones(N)), 1e-12)


@pytest.mark.parametrize("tags", ((), (TRIDIAGONAL,), (DIAGONAL,)))
def test_tagged_matrix(tags):
    matrix = banded((N, N), 0, 0)
    operator = lx.TaggedLinearOperator(
        lx.MatrixLinearOperator(jnp.asarray(matrix)), tags
    )
    _check(operator, matrix, 0)
    _check(operator * 2.0, 2 * matrix, 0)


#
# Pytrees of several dtypes
#


def _struct(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype)


def _is_single(tree):
    """Which entries of the flattened tree are of single precision."""
    leaves = jtu.tree_leaves(tree)
    return np.concatenate(
        [np.full(x.size, np.finfo(x.dtype).bits == 32) for x in leaves]
    )


def _flatten(tree, dtype):
    leaves = [jnp.asarray(x, dtype).reshape(-1) for x in jtu.tree_leaves(tree)]
    return jnp.concatenate(leaves)


def _unflatten(vector, structure):
    leaves, treedef = jtu.tree_flatten(structure)
    stops = np.cumsum([leaf.size for leaf in leaves])[:-1]

    def cast(x, leaf):
        is_complex = jnp.issubdtype(leaf.dtype, jnp.complexfloating)
        x = x if is_complex or not jnp.iscomplexobj(x) else x.real
        return x.astype(leaf.dtype).reshape(leaf.shape)

    return treedef.unflatten(map(cast, jnp.split(vector, stops), leaves))


F32, F64, C64, C128 = np.float32, np.float64, np.complex64, np.complex128
# Dictionaries in, tuples out, with scalars and leaves of two axes; seven entries each.
STRUCTURES = {
    "mixed in": ((F32, F64, F32), (F64, F64, F64)),
    "mixed out": ((F64, F64, F64), (F32, F64, F32)),
    "mixed": ((F32, F64, F64), (F64, F32, F64)),
    "real to complex": ((F64, F64, F64), (C128, C128, C128)),
    "real to real and complex": ((F64, F64, F64), (F64, C128, F64)),
    "mixed to complex": ((F64, C128, F64), (C128, C128, C128)),
    "single to double complex": ((F32, F64, F32), (C64, C128, C128)),
}


def _structures(name):
    ins, outs = STRUCTURES[name]
    in_shapes, out_shapes = ((), (2, 2), (2,)), ((3,), (), (1, 3))
    in_struct = dict(zip("abc", map(_struct, in_shapes, ins)))
    return in_struct, tuple(map(_struct, out_shapes, outs))


@pytest.mark.filterwarnings("error")
@in_turn(
    "make, tags, band, name",
    [(make, *TAGS[i]) for i in (4, 6) for make in ("function", None, "bwd")],
    STRUCTURES,
)
def test_mixed_pytrees(make, tags, band, name):
    in_struct, out_struct = _structures(name)
    dtype = np.result_type(*[x.dtype for x in out_struct])
    work = np.promote_types(dtype, np.float64)
    matrix = banded((N, N), *band, work)
    # An output that is real takes the real part.
    is_real = np.concatenate([np.full(x.size, x.dtype.kind == "f") for x in out_struct])
    matrix = np.where(is_real[:, None], matrix.real, matrix).astype(work)
    single = _is_single(out_struct)[:, None] | _is_single(in_struct)[None, :]
    if make == "function":
        x, jacobian = None, matrix
        operator = lx.FunctionLinearOperator(
            lambda x: _unflatten(matrix @ _flatten(x, work), out_struct),
            in_struct,
            tags,
        )
    else:
        x = _unflatten(jnp.asarray(normal((N,), work)), in_struct)
        jacobian = sine_jacobian(np.asarray(_flatten(x, work)), matrix)
        operator = lx.JacobianLinearOperator(
            lambda x, args: _unflatten(sine(_flatten(x, work), matrix), out_struct),
            x,
            None,
            tags,
            jac=make,
        )
    found = lx.tridiagonal(operator)
    np.testing.assert_array_equal(found[0], lx.diagonal(operator))
    for x, y, is_single in zip(found, diagonals(jacobian), diagonals(single)):
        assert x.dtype == dtype
        bound = np.where(is_single, 1e-6, 1e-14) * np.max(np.abs(jacobian))
        assert np.all(np.abs(x - y) <= bound)


#
# Memory
#


def _stencil(x, coefficients):
    lower, main, upper = coefficients
    y = main * x**3
    y = y.at[1:].add(lower * x[:-1] ** 2)
    return y.at[:-1].add(upper * x[1:] ** 2)


def _stencil_operator(x, coefficients, tags=(), jac=None):
    # Split unevenly in, differently out: no leaf is a vector of n.
    def fn(tree, args):
        y = _stencil(jnp.concatenate([tree["a"], tree["b"].reshape(-1)]), args)
        return y[:1].reshape(()), y[1:].reshape(1, -1)

    tree = {"a": x[:3], "b": x[3:].reshape(-1, 1)}
    return lx.JacobianLinearOperator(fn, tree, coefficients, tags, jac=jac)


def _stencil_problem(n):
    x, lower, main, upper = (normal((n,), seed=i) for i in range(4))
    lower, upper = lower[1:], upper[1:]
    expected = 3 * main * x**2, 2 * lower * x[:-1], 2 * upper * x[1:]
    return (jnp.asarray(x), tuple(map(jnp.asarray, (lower, main, upper)))), expected


def _bytes(compiled):
    memory = compiled.memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes


@pytest.mark.parametrize("tagged", (False, True))
@over_jac
def test_memory_tagged(jac, tagged):
    n = 200_000
    args, expected = _stencil_problem(n)

    def extract(x, coefficients):
        operator = _stencil_operator(
            x, coefficients, () if tagged else TRIDIAGONAL, jac
        )
        operator = lx.TaggedLinearOperator(operator, TRIDIAGONAL if tagged else ())
        return lx.diagonal(operator), lx.tridiagonal(operator)

    traced = jax.jit(extract).trace(*args)
    assert sum(np.size(x) for x in traced.jaxpr.consts) < 100
    compiled = traced.lower().compile()
    assert _bytes(compiled) < 40 * n * 8
    assert compiled.memory_analysis().generated_code_size_in_bytes < n
    diagonal, found = compiled(*args)
    for x, y in zip((diagonal, *found), (expected[0], *expected)):
        assert_close(x, y, 1e-13)


@over_jac
def test_memory_untagged(jac):
    n = 8000
    args, expected = _stencil_problem(n)

    def extract(x, coefficients):
        return lx.tridiagonal(_stencil_operator(x, coefficients, jac=jac))

    compiled = jax.jit(extract).lower(*args).compile()
    assert _bytes(compiled) < n * n * 8 / 20
    for x, y in zip(compiled(*args), expected):
        assert_close(x, y, 1e-13)


@pytest.mark.parametrize("jac", (slow(None), "bwd"))
def test_memory_untagged_gradient(jac):
    # Without `jax.checkpoint` the backward pass keeps what every chunk computed.
    n = 8000
    args, (diagonal, _, _) = _stencil_problem(n)

    def fn(x, coefficients):
        return x @ lx.diagonal(_stencil_operator(x, coefficients, jac=jac))

    compiled = jax.jit(jax.grad(fn)).lower(*args).compile()
    assert _bytes(compiled) < n * n * 8 / 4
    if jac is None:  # two seconds
        assert_close(compiled(*args), 3 * diagonal, 1e-13)


#
# Derivatives
#


WEIGHTS = tuple(normal((N - abs(d),), seed=10 + d) for d in (0, -1, 1))


def _weigh(found):
    return sum(jnp.sum(w * d) for w, d in zip(WEIGHTS, found))


def _numpy_weigh(x, matrix):
    """The same by NumPy, of `sine`; analytic, so good for a complex step."""
    return sum(
        np.sum(w * d) for w, d in zip(WEIGHTS, diagonals(sine_jacobian(x, matrix)))
    )


def _complex_step(fn, x):
    """The gradient of an analytic `fn`, to machine precision."""
    out = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        step = np.zeros(x.shape, complex)
        step[index] = 1e-100j
        out[index] = fn(x + step).imag / 1e-100
    return out


def _sine_operator(x, matrix, tags, jac, how):
    if how == "closure":
        return lx.JacobianLinearOperator(
            lambda x, _: sine(x, matrix), x, None, tags, jac=jac
        )
    operator = lx.JacobianLinearOperator(sine, x, matrix, jac=jac)
    return lx.TaggedLinearOperator(operator, tags)


over_gradients = pytest.mark.parametrize(
    "jac, how, tags",
    [
        (None, "closure", (TRIDIAGONAL,)),
        ("fwd", "args", (TRIDIAGONAL,)),
        ("bwd", "closure", (TRIDIAGONAL,)),
        ("bwd", "args", (TRIDIAGONAL,)),
        (None, "args", ()),
        ("bwd", "closure", ()),
    ],
)


@over_gradients
def test_gradients(jac, how, tags):
    x, matrix = normal((N,)), banded((N, N), 1, 1)
    tangents = normal((N,), seed=1), banded((N, N), 1, 1, seed=1)
    by_x = _complex_step(lambda x: _numpy_weigh(x, matrix), x)
    by_matrix = _complex_step(lambda matrix: _numpy_weigh(x, matrix), matrix)
    # Entries off the band are not the tag's to differentiate.
    band = banded((N, N), 1, 1) != 0
    by_matrix = np.where(band, by_matrix, 0)

    def fn(x, matrix):
        return _weigh(lx.tridiagonal(_sine_operator(x, matrix, tags, jac, how)))

    @jax.jit
    def derivatives(*args):
        _, tangent = jax.jvp(fn, args, tangents)
        return jax.grad(fn, (0, 1))(*args), jax.jacfwd(fn, (0, 1))(*args), tangent

    *gradients, tangent = derivatives(x, matrix)
    for found in gradients:
        assert_close(found[0], by_x, 1e-12)
        assert_close(np.where(band, found[1], 0), by_matrix, 1e-12)
    expected = np.sum(by_x * tangents[0]) + np.sum(by_matrix * tangents[1])
    assert_close(tangent, expected, 1e-12)


@pytest.mark.parametrize("make", (_cubic_operator, _scale_operator))
@pytest.mark.parametrize("tags", ((), (TRIDIAGONAL,)))
def test_gradients_without_batching_rule(make, tags):
    x, matrix = normal((N,)), banded((N, N), 1, 1)
    fn = lambda x: _weigh(lx.tridiagonal(make(x, jnp.asarray(matrix), tags)))
    expected = _complex_step(
        lambda x: sum(
            np.sum(w * d) for w, d in zip(WEIGHTS, diagonals(cubic_jacobian(x, matrix)))
        ),
        x,
    )
    assert_close(jax.jit(jax.grad(fn))(x), expected, 1e-13)
    _, tangent = jax.jit(lambda x: jax.jvp(fn, (x,), (jnp.ones(N),)))(x)
    assert_close(tangent, np.sum(expected), 1e-12)


#
# vmap
#


@over_gradients
def test_vmap(jac, how, tags):
    xs, matrices = (
        normal((3, N)),
        np.stack([banded((N, N), 1, 1, seed=i) for i in (1, 2)]),
    )

    def fn(x, matrix):
        operator = _sine_operator(x, matrix, tags, jac, how)
        return lx.diagonal(operator), lx.tridiagonal(operator)

    over_x, over_matrix = jax.vmap(fn, (0, None)), jax.vmap(fn, (None, 0))
    nested = jax.vmap(over_x, (None, 0))
    gradient = jax.vmap(jax.grad(lambda x, matrix: _weigh(fn(x, matrix)[1])), (0, None))

    @jax.jit
    def run(xs, matrices):
        values = over_x(xs, matrices[0]), over_matrix(xs[1], matrices)
        return *values, nested(xs, matrices), gradient(xs, matrices[0])

    *values, gradients = run(xs, matrices)
    jacobians = [[sine_jacobian(x, matrix) for x in xs] for matrix in matrices]
    expected = diagonals(np.asarray(jacobians).transpose(2, 3, 0, 1))
    parts = np.s_[0, :], np.s_[:, 1], np.s_[:, :]
    for (diagonal, found), index in zip(values, parts):
        for x, y in zip((diagonal, *found), (expected[0], *expected)):
            assert_close(x, y[index], 1e-13)
    expected = [_complex_step(lambda x: _numpy_weigh(x, matrices[0]), x) for x in xs]
    assert_close(gradients, np.stack(expected), 1e-12)


def test_vmap_of_callbacks():
    xs, matrix = normal((3, N)), banded((N, N), 1, 1)
    fn, _ = sequential_sine(matrix)
    make = lambda x: lx.JacobianLinearOperator(fn, x, None, TRIDIAGONAL)
    found = jax.vmap(lambda x: lx.tridiagonal(make(x)))(jnp.asarray(xs))
    expected = [diagonals(sine_jacobian(x, matrix)) for x in xs]
    for x, y in zip(found, zip(*expected)):
        assert_close(x, np.stack(y), 1e-13)


#
# jit
#


@over_dtypes
@over_jac
@pytest.mark.parametrize("tags", ((), (TRIDIAGONAL,)))
def test_jit(tags, jac, dtype):
    x, matrix = normal((N,), dtype), banded((N, N), 1, 1, dtype)

    @jax.jit
    def fn(x, matrix):
        operator = lx.JacobianLinearOperator(sine, x, matrix, jac=jac)
        return lx.tridiagonal(lx.TaggedLinearOperator(operator, tags))

    for found, expected in zip(fn(x, matrix), diagonals(sine_jacobian(x, matrix))):
        assert found.dtype == dtype
        assert_close(found, expected, tolerance(dtype))
