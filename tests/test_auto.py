"""`AutoStructuredLinearSolver`: for any function, the answer is the dense one."""

import functools as ft
import warnings

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse
from helpers import (
    assert_close,
    directional,
    flatten,
    normal,
    turned,
)
from jax.interpreters import ad, batching, mlir
from operators import dense_path_fails

import lineax_ext as lxe
from lineax_ext._arrangement import arrange
from lineax_ext._structure.detect import detect


N = 96
SOLVER = lxe.AutoStructuredLinearSolver()
PERMUTATION = np.random.default_rng(0).permutation(N)
SHIFTED = np.roll(np.arange(N), 1)
MATRIX = normal((N, N)) + N * np.eye(N)
BLOCKS = normal((N // 4, 4, 4)) + 4 * np.eye(4)


def initial(operator):
    return SOLVER.init(operator, {})


@eqx.filter_jit
def solve(operator, b, solver=SOLVER):
    return lx.linear_solve(operator, b, solver).value


#
# The table: any function, what is found of it, and what solves it
#


def tridiagonal(y):
    left, right = jnp.pad(y[:-1], (1, 0)), jnp.pad(y[1:], (0, 1))
    return left - 9 * y + y**2 + 2 * right


def banded(y):
    wide = jnp.pad(y, 4)
    return sum((k + 3.0) * wide[k : k + N] for k in range(9)) + 40 * y**3


def repeat(times, y):
    return lax.fori_loop(0, times, lambda i, y: y + 0.02 * tridiagonal(y), y)


def while_loop(y):
    step = lambda c: (c[0] + 0.1 * tridiagonal(c[0]), c[1] + 1)
    return lax.while_loop(lambda c: c[1] < 3, step, (y, 0))[0]


def running(y):
    return lax.scan(lambda c, x: (0.5 * c + x**2, c + 4 * x), jnp.zeros(()), y)[1]


def branches(y):
    return lax.cond(y[0] > 0, tridiagonal, banded, y) + 5 * y


def switch(y):
    two = [lambda y: 9 * y, banded, tridiagonal]
    return lax.switch(jnp.argmax(y) % 3, two, y) + 10 * y


def guarded(y):
    return eqx.error_if(tridiagonal(y), y[0] > 1e9, "too large")


def species(y):
    z = y.reshape(-1, 3)
    z = [z[:, 0] * z[:, 1] - 5 * z[:, 2], z[:, 1] - z[:, 0] ** 2, 7 * z[:, 2] + z[:, 0]]
    return jnp.stack(z, 1).reshape(-1)


def unsorted_species(y):
    return species(y[PERMUTATION])[np.argsort(PERMUTATION)]


def swapped_pairs(y):
    z = y.reshape(-1, 2)
    return jnp.stack([3 * z[:, 1] + z[:, 1] ** 2, z[:, 0]], 1).reshape(-1)


def zero_diagonal(y):
    return jnp.roll(2 * y + y**2, -1) + 0.1 * jnp.roll(y, -2)


@jax.custom_jvp
def rounded(y):
    return jnp.round(y)


rounded.defjvp(lambda primals, tangents: (rounded(*primals), tangents[0]))


# One jaxpr for two calls, the first with a constant.
@jax.jit
def product(a, b):
    return lax.cond(b[0] > 1e9, lambda: a, lambda: a * b)


def twice(y):
    return product(y, jnp.zeros(N)) + product(y[::-1], y) + 9 * y


def halves(y):
    index = lax.div(jnp.arange(N), jnp.full(N, 2)) * 2
    return 0.3 * y[index] + 5 * y


def remainders(y):
    index = lax.rem(jnp.arange(N) - 1, jnp.full(N, N))  # starts with a -1
    return 0.3 * y.at[index].get(mode="clip") + 5 * y


def clipped(y):
    return y.at[jnp.array([1, N + 5])].set(0.5 * y[:2], mode="clip") + 0.2 * y[::-1]


def slid(y):
    above = lax.dynamic_slice(y, (N - 2,), (4,))
    return jnp.concatenate([0.1 * above, y[4:]]) + 5 * y


def boundary_values(y):
    inside = jnp.zeros(N).at[1:-1].set(tridiagonal(y)[1:-1])
    return inside.at[0].set(y[0] ** 2).at[-1].add(y[-1] - y[-2])


def overwritten(y):
    return lax.dynamic_update_slice(y, 0.2 * y[:4], (N - 2,)) + 0.1 * y


WHICH = np.random.default_rng(3).integers(0, 4, (4, 4))


def half_outside(y):
    """y: the window does not fit, and is dropped as a whole."""
    dims = jax.lax.ScatterDimensionNumbers((0,), (), (0,))
    mode = jax.lax.GatherScatterMode.FILL_OR_DROP
    start = jnp.array([y.size - 2])
    return jax.lax.scatter(y, start, jnp.zeros(4), dims, mode=mode)


FUNCTIONS = {
    "diagonal": (lambda y: jnp.exp(y) + 1, lx.Diagonal),
    "gathers side by side": (
        lambda y: (
            9 * y
            + jnp.tile(
                jnp.take_along_axis(y[:16].reshape(4, 4), WHICH, 0).reshape(-1), 6
            )[: y.size]
        ),
        None,
    ),
    "window partly outside": (
        lambda y: 3 * half_outside(y) + 0.5 * y[::-1],
        None,
    ),
    "tridiagonal": (tridiagonal, lx.Tridiagonal),
    "banded": (banded, lxe.BlockTridiagonal),
    "permuted": (
        lambda y: banded(y[PERMUTATION])[np.argsort(PERMUTATION)],
        lxe.BlockTridiagonal,
    ),
    "permuted rows": (lambda y: banded(y)[PERMUTATION], lxe.BlockTridiagonal),
    "periodic": (
        lambda y: jnp.roll(y, 1) - 9 * y - 4 * y**2 + jnp.roll(y, -1),
        lxe.BlockTridiagonal,
    ),
    "lower": (lambda y: jnp.cumsum(y**2) + y, lx.Triangular),
    "upper": (lambda y: jnp.cumsum(y[::-1])[::-1] + y**3, lx.Triangular),
    "blocks": (species, None),
    "permuted blocks": (unsorted_species, None),
    "dense blocks": (
        lambda y: jnp.einsum("kij,jk->ik", BLOCKS, y.reshape(4, -1)).reshape(-1),
        None,
    ),
    "vmap": (
        lambda y: jax.vmap(lambda z: jnp.sin(z) * z.sum() + 5 * z)(
            y.reshape(-1, 4)
        ).reshape(-1),
        None,
    ),
    "swapped pairs": (swapped_pairs, lx.Tridiagonal),
    "zero diagonal": (zero_diagonal, lxe.BlockTridiagonal),
    "dense": (lambda y: MATRIX @ y + y**2, None),
    "constant matrix": (
        lambda y: np.tril(np.triu(MATRIX, -1), 1) @ y + y**2,
        lx.Tridiagonal,
    ),
    "convolution": (
        lambda y: jnp.convolve(y, np.array([1.0, -5.0, 2.0]), mode="same"),
        lx.Tridiagonal,
    ),
    "scan": (running, lx.Triangular),
    "fori_loop": (ft.partial(repeat, 3), lxe.BlockTridiagonal),
    "while_loop": (while_loop, None),
    "cond": (branches, lxe.BlockTridiagonal),
    "switch": (switch, lxe.BlockTridiagonal),
    "where": (
        lambda y: jnp.where(y > 0, y[::-1], 2 * y) + 5 * y,
        lx.Tridiagonal,
    ),
    "error_if": (guarded, lx.Tridiagonal),
    "checkpoint": (jax.checkpoint(tridiagonal), lx.Tridiagonal),
    "custom_jvp": (lambda y: rounded(y) + y**2, lx.Diagonal),
    "gather": (lambda y: y[SHIFTED] - 9 * y, lxe.BlockTridiagonal),
    "scatter": (
        lambda y: jnp.zeros(N).at[SHIFTED].add(3 * y) + 9 * y**2,
        lxe.BlockTridiagonal,
    ),
    "boundary values": (boundary_values, lx.Tridiagonal),
    "data-dependent gather": (lambda y: y[jnp.argsort(y)] + 9 * y, None),
    "one of them": (lambda y: 0.1 * y[jnp.argmax(y)] + 9 * y, None),
    "sort": (lambda y: jnp.sort(y) + 3 * y, None),
    "called twice": (twice, lx.Tridiagonal),
    "integer division": (halves, lx.Tridiagonal),
    "integer remainder": (remainders, lxe.BlockTridiagonal),
    "clipped scatter": (clipped, None),
    "dynamic slice": (slid, lx.Tridiagonal),
    "dynamic update": (overwritten, lx.Tridiagonal),
}
# What each of these is called among the arrangements.
KIND_OF = {
    lx.Diagonal: "diagonal",
    lx.Tridiagonal: "tridiagonal",
    lx.Triangular: "triangular",
    lxe.BlockTridiagonal: "band",
}
# The transposes of the others are those of `KINDS`.
transposed = (
    "permuted",
    "permuted rows",
    "permuted blocks",
    "dense blocks",
    "swapped pairs",
    "zero diagonal",
    "upper",
)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_exact(name):
    fn, expected = FUNCTIONS[name]
    y, b = np.random.default_rng(1).uniform(0.5, 1.5, N), normal((N,))
    found = {}

    @jax.jit
    def run(y, b):
        operator = lx.JacobianLinearOperator(lambda y, _: fn(y), y)
        state = initial(operator)
        found["solver"] = state.arrangement.kind
        found["patterns"] = detect(operator), detect(lx.linearise(operator))
        out = [lx.linear_solve(operator, b, SOLVER, state=state).value]
        if name in transposed:
            transpose, _ = SOLVER.transpose(state, {})
            out += [SOLVER.compute(transpose, b, {})[0]]
        return jax.jacfwd(fn)(y), out

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jacobian, out = run(y, b)
    for matrix, x in zip((jacobian, jacobian.T), out):
        assert_close(x, np.linalg.solve(matrix, b), 1e-11)
    for pattern in filter(None, found["patterns"]):  # `None`: every entry
        forbidden = np.array(jacobian)
        forbidden[pattern.rows, pattern.cols] = 0
        assert not forbidden.any()
    if expected is not None:
        assert found["solver"] == KIND_OF[expected]


def _mystery():
    """y[::-1], by a primitive that nobody knows."""
    turn, primitive = lambda x: x[..., ::-1], jex.Primitive("mystery")
    primitive.def_impl(turn)
    primitive.def_abstract_eval(lambda x: x)
    bind = lambda xs: primitive.bind(*xs)
    ad.primitive_jvps[primitive] = lambda y, t: (bind(y), bind(t))
    rows_first = lambda xs, dims: (bind([jnp.moveaxis(xs[0], dims[0], 0)]), 0)
    batching.primitive_batchers[primitive] = rows_first
    lowered = mlir.lower_fun(turn, multiple_results=False)
    mlir.register_lowering(primitive, lowered)
    return primitive


def test_unknown_primitive():
    y, b = np.ones(N), normal((N,))
    mystery = _mystery()
    fn = lambda y: mystery.bind(y) + 9 * y

    @jax.jit
    def run(y):
        operator = lx.JacobianLinearOperator(lambda y, _: fn(y), y)
        for _ in range(3):
            state = initial(operator)
        return lx.linear_solve(operator, b, SOLVER, state=state).value

    with pytest.warns(UserWarning, match="'mystery'.*dense") as record:
        x = run(y)
    assert len(record) == 1
    assert_close(x, np.linalg.solve(np.eye(N)[::-1] + 9 * np.eye(N), b), 1e-11)


#
# Dtypes, pytrees, shapes
#


def _split(y):
    return {"a": y[: N // 2].reshape(-1, 2), "b": y[N // 2 :]}


KINDS = {
    "diagonal": lambda y: (3 + 1j) * y,
    "tridiagonal": lambda y: tridiagonal(y) + 1j * y,
    "banded": lambda y: jnp.roll(banded(y), 0) + 1j * jnp.pad(y[3:], (0, 3)),
    "periodic": lambda y: jnp.roll(y, 1) - (9 + 1j) * y + 2j * jnp.roll(y, -1),
    "blocks": unsorted_species,
    "lower": lambda y: jnp.cumsum(y) + 2j * y,
    "dense": lambda y: (1 + 1j) * MATRIX @ y,
}


@pytest.mark.parametrize("name", KINDS)
def test_complex_pytrees(name):
    fn, y = KINDS[name], normal((N,), np.complex128)
    b = normal((N,), np.complex128, seed=1)
    tree_fn = lambda y, _: [_split(fn(flatten(y).astype(np.complex128)))]

    @jax.jit
    def run(y, b):
        operator = lx.JacobianLinearOperator(tree_fn, _split(y))
        state = initial(operator)
        x = lx.linear_solve(operator, [_split(b)], SOLVER, state=state).value
        transpose, conj, adjoint = turned(SOLVER, operator)
        out = [flatten(x), flatten(SOLVER.compute(conj, [_split(b)], {})[0])]
        for state in (transpose, adjoint):
            out += [flatten(SOLVER.compute(state, _split(b), {})[0])]
        return jax.jacfwd(fn, holomorphic=True)(y), out

    a, out = run(y, b)
    for matrix, x in zip((a, a.conj(), a.T, a.conj().T), out, strict=True):
        assert_close(x, np.linalg.solve(matrix, b), 1e-11)


@pytest.mark.parametrize("fn", (tridiagonal, banded, unsorted_species))
def test_single_precision_and_vmap(fn):
    fn32 = lambda y, _: fn(y).astype(np.float32)
    ys = np.random.default_rng(1).uniform(0.5, 1.5, (2, N)).astype(np.float32)
    bs = normal((2, 3, N), np.float32)

    @jax.jit
    @jax.vmap
    def run(y, b):
        operator = lx.JacobianLinearOperator(fn32, y)
        solve = lambda b: lx.linear_solve(operator, b, SOLVER, throw=False).value
        return jax.vmap(solve)(b), jax.jacfwd(fn)(y)

    xs, matrices = run(ys, bs)
    assert xs.dtype == np.float32
    for x, matrix, b in zip(xs, np.asarray(matrices, np.float64), bs, strict=True):
        assert_close(x, np.linalg.solve(matrix, b.T).T, 2e-5)


def test_rectangular():
    fn = lambda y: jnp.concatenate([jnp.diff(y) ** 2 + 3 * y[1:], y[:9], y[:1] ** 2])
    for turn in (lambda y: fn(y), lambda y: fn(y)[: N - 5]):
        y, m = np.linspace(1, 2, N), len(turn(np.ones(N)))
        b, matrix = normal((m,)), np.asarray(jax.jit(jax.jacfwd(turn))(y))
        operator = lx.JacobianLinearOperator(lambda y, _, turn=turn: turn(y), y)
        with dense_path_fails():
            x = solve(operator, b)
        assert_close(x, np.linalg.lstsq(matrix, b)[0], 1e-10)


#
# Singular, and ill-posed
#


@pytest.mark.parametrize(
    "fn",
    (
        lambda y: jnp.concatenate([jnp.zeros(1), jnp.exp(y[1:])]),
        lambda y: tridiagonal(y).at[4].set(1.0),
        lambda y: jnp.diff(jnp.pad(jnp.diff(y), 1)),  # a Laplacian between walls
        lambda y: banded(y).at[7].set(1.0),
        lambda y: jnp.roll(y, 1) - 2 * y + jnp.roll(y, -1),
        lambda y: unsorted_species(y).at[50].set(0.0),
        lambda y: jnp.cumsum(y).at[30].set(0.0),
        lambda y: (MATRIX @ y).at[3].set(0.0),
        lambda y: MATRIX[SHIFTED // 2] @ y,
        lambda y: jnp.ones(N),
    ),
)
def test_singular(fn):
    operator = lx.JacobianLinearOperator(lambda y, _: fn(y), jnp.ones(N))
    run = eqx.filter_jit(
        lambda: lx.linear_solve(operator, np.ones(N), SOLVER, throw=False)
    )
    assert run().result == lx.RESULTS.singular


def test_scaling_is_not_singularity():
    scale = np.geomspace(1e-20, 1e20, 12)
    matrix = scale[:, None] * (normal((12, 12)) + 4 * np.eye(12))
    b = matrix @ np.ones(12)
    operator = lx.MatrixLinearOperator(jnp.asarray(matrix))
    assert_close(lx.linear_solve(operator, b, SOLVER).value, np.ones(12), 1e-11)


@pytest.mark.parametrize("well_posed", (None, False))
def test_a_transpose_of_less_precision(well_posed):
    """From float32 to float64: a cotangent has less precision than the entries."""
    solver = lxe.AutoStructuredLinearSolver(well_posed)
    a = np.diag(np.arange(1.0, 5.0))
    fn = lambda y, _: a @ y.astype(np.float64)
    operator = lx.JacobianLinearOperator(fn, jnp.ones(4, np.float32))
    transpose, *_ = turned(solver, operator)
    x, *_ = solver.compute(transpose, jnp.arange(4, dtype=np.float32), {})
    assert x.dtype == np.float64
    assert_close(x, np.linalg.solve(a.T, np.arange(4.0)), 1e-12)


def test_no_unknowns():
    solver = lxe.AutoStructuredLinearSolver(well_posed=False)
    empty = lxe.SparseMatrixLinearOperator(jnp.zeros(0), lxe.Pattern([], [], (0, 0)))
    assert lx.linear_solve(empty, jnp.zeros(0), solver).value.shape == (0,)


def test_well_posed():
    singular = lambda y, _: jnp.concatenate([jnp.zeros(1), jnp.exp(y[1:])])
    dependent = lambda y, _: jnp.concatenate([tridiagonal(y)[:-1], y[:1] * 0])
    b = normal((N,))
    solver = lxe.AutoStructuredLinearSolver(well_posed=False)
    for fn in (singular, dependent):
        operator = lx.JacobianLinearOperator(fn, jnp.ones(N))
        x = solve(operator, b, solver)
        matrix = np.asarray(jax.jit(jax.jacfwd(fn))(np.ones(N), None))
        assert_close(x, np.linalg.pinv(matrix) @ b, 1e-11)

    solver = lxe.AutoStructuredLinearSolver(well_posed=True)
    wide = lx.JacobianLinearOperator(lambda y, _: y[1:], jnp.ones(4))
    with pytest.raises(ValueError, match="`AutoStructuredLinearSolver.*not square"):
        lx.linear_solve(wide, np.ones(3), solver)
    with pytest.raises(ValueError, match="`AutoStructuredLinearSolver"):
        lxe.AutoStructuredLinearSolver(well_posed="yes")  # pyright: ignore


#
# What is used of the operator
#


def _refuse(*args, **kwargs):
    raise AssertionError("A pattern was looked for.")


@pytest.mark.parametrize(
    "tag, tags",
    (
        (np.diag, lx.diagonal_tag),
        (lambda d: np.diag(d) + np.eye(N, k=1), lx.tridiagonal_tag),
        (lambda d: np.diag(d) + np.tril(np.ones((N, N)), -1), lx.lower_triangular_tag),
    ),
)
def test_tags_come_first(tag, tags, monkeypatch):
    monkeypatch.setattr("lineax_ext._solver.auto.detect", _refuse)
    matrix, b = tag(np.linspace(1, 2, N)), normal((N,))
    operator = lx.FunctionLinearOperator(
        lambda y: matrix @ y, jax.ShapeDtypeStruct((N,), np.float64)
    )
    for tagged in (
        lx.TaggedLinearOperator(operator, tags),
        lx.MatrixLinearOperator(jnp.asarray(matrix), tags),
        lx.MatrixLinearOperator(jnp.asarray(matrix)),
    ):
        x = solve(tagged, b)
        assert_close(x, np.linalg.solve(matrix, b), 1e-11)


def test_other_operators():
    b = normal((N,))
    jacobian = lx.JacobianLinearOperator(lambda y, _: tridiagonal(y), jnp.ones(N))
    a = np.asarray(jax.jit(jax.jacfwd(tridiagonal))(np.ones(N)))
    eye, structure = lx.IdentityLinearOperator(jacobian.in_structure()), np.eye(N)
    with dense_path_fails():
        for operator, matrix in (
            (eye - 0.1 * jacobian, structure - 0.1 * a),
            (jacobian @ jacobian, a @ a),
            (lx.TaggedLinearOperator(jacobian, lx.symmetric_tag), a),
        ):
            x = solve(operator, b)
            assert_close(x, np.linalg.solve(matrix, b), 1e-11)
    blocks = lxe.BlockTridiagonalLinearOperator(
        jnp.asarray(BLOCKS),
        jnp.zeros((N // 4 - 1, 4, 4)),
        jnp.zeros((N // 4 - 1, 4, 4)),
    )
    assert isinstance(initial(blocks).solver, lxe.BlockTridiagonal)
    matrix = scipy.sparse.block_diag(BLOCKS).toarray()
    x = solve(blocks, b)
    assert_close(x, np.linalg.solve(matrix, b), 1e-11)


def test_semidefinite():
    matrix = MATRIX @ MATRIX.T
    operator = lx.FunctionLinearOperator(
        lambda y: matrix @ y,
        jax.ShapeDtypeStruct((N,), np.float64),
        lx.positive_semidefinite_tag,
    )
    assert isinstance(initial(operator).solver, lx.Cholesky)
    x = solve(operator, matrix @ np.ones(N))
    assert_close(x, np.ones(N), 1e-9)


def test_rows_of_a_backward_function():
    fn = jax.custom_vjp(tridiagonal)
    vjp = lambda y, g: jax.vjp(tridiagonal, y)[1](g)
    fn.defvjp(lambda y: (tridiagonal(y), y), vjp)
    operator = lx.JacobianLinearOperator(lambda y, _: fn(y), jnp.ones(N), jac="bwd")
    with dense_path_fails():
        x = solve(operator, normal((N,)))
    matrix = jax.jit(jax.jacfwd(tridiagonal))(np.ones(N))
    assert_close(x, np.linalg.solve(matrix, normal((N,))), 1e-11)


def test_states_compare_by_value():
    # As diffrax compares the states of two traces, of functions made anew.
    def static(y):
        fn = lambda y, scale: scale * banded(y)
        operator = lx.linearise(lx.JacobianLinearOperator(fn, y, 2.0))
        found.append(eqx.partition(initial(operator), eqx.is_array)[1])
        return y

    found = []
    for _ in range(2):
        jax.jit(static).lower(np.ones(N))
        static = ft.partial(static)
    assert eqx.tree_equal(*found) is True
    first, second = (x.arrangement for x in found)
    assert hash(first) == hash(second)
    assert first is second  # from the cache


def test_large():
    n = 100_000
    fn = lambda y, _: jnp.roll(y, 1) + jnp.roll(y, -1) - (4 + y**2) * y
    b = normal((n,))

    @jax.jit
    def run(y):
        operator = lx.JacobianLinearOperator(fn, y)
        with dense_path_fails():
            return lx.linear_solve(operator, b, SOLVER).value

    found = arrange(detect(lx.JacobianLinearOperator(fn, jnp.ones(n))))
    assert (found.kind, found.half_bandwidth) == ("band", 2)
    shifts = [np.ones(n - 1), np.full(n, -7.0), np.ones(n - 1), [1.0], [1.0]]
    matrix = scipy.sparse.diags(shifts, (-1, 0, 1, n - 1, 1 - n), format="csc")
    assert_close(matrix @ np.asarray(run(np.ones(n))), b, 1e-13)


#
# Derivatives
#


@pytest.mark.parametrize(
    "name", ("tridiagonal", "periodic", "permuted blocks", "dense")
)
def test_derivatives(name):
    fn, b, v = FUNCTIONS[name][0], normal((N,)), normal((N,), seed=2)

    def solve(t, y):
        operator = lx.JacobianLinearOperator(lambda y, t: fn(y) + t * y**2, y, t)
        return v @ lx.linear_solve(operator, (1 + t) * b, SOLVER).value

    y = np.linspace(0.5, 1.5, N)
    jacobian = np.asarray(jax.jit(jax.jacfwd(fn))(y))

    def referee(t):
        matrix = jacobian + 2 * np.diag(t * y)
        return v @ np.linalg.solve(matrix, (1 + t) * b)

    expected = directional(lambda h: referee(0.1 + h))
    for transform in (jax.grad, jax.jacfwd):
        assert_close(jax.jit(transform(solve))(0.1, y), expected, 1e-8)


#
# infer_tags
#


def test_infer_tags():
    diagonal, triple = {lx.diagonal_tag}, {lx.tridiagonal_tag}
    lower, upper = {lx.lower_triangular_tag}, {lx.upper_triangular_tag}
    for fn, expected in (
        (FUNCTIONS["diagonal"][0], diagonal),
        (tridiagonal, triple),
        (FUNCTIONS["constant matrix"][0], triple),
        (FUNCTIONS["lower"][0], lower),
        (FUNCTIONS["upper"][0], upper),
        (lambda y: jnp.diff(y, prepend=0.0), triple | lower),
        (banded, set()),
        (lambda y: y[1:], set()),
    ):
        found = lxe.infer_tags(lambda y, _, fn=fn: fn(y), np.ones(N))
        assert found == frozenset(expected)

    tree_fn = lambda y, args: jax.tree.map(lambda x: args["rate"] * x**2, y)
    assert lxe.infer_tags(tree_fn, _split(np.ones(N)), {"rate": 2.0}) == diagonal
    fft = lambda y, _: jnp.fft.fft(y).real
    assert lxe.infer_tags(fft, np.ones(N)) == frozenset()


def test_tag_of_a_nearly_singular_diagonal():
    """As without the tag: no pseudoinverse."""
    diagonal, b = jnp.array([1.0, 1e-17]), jnp.ones(2)
    operator = lx.DiagonalLinearOperator(diagonal)
    x = lx.linear_solve(operator, b, SOLVER).value
    assert_close(x, np.array([1.0, 1e17]), 1e-14)


def test_random_key():
    key, y, b = jax.random.key(0), jnp.ones(N), normal((N,))
    fn = lambda y, _: y * (2 + jax.random.uniform(key, (N,)))
    operator = lx.JacobianLinearOperator(fn, y)
    expected = b / np.asarray(2 + jax.random.uniform(key, (N,)))
    assert_close(lx.linear_solve(operator, b, SOLVER).value, expected, 1e-13)


#
# A pattern that is told
#


def test_given_pattern():
    """What cannot be followed: the unknowns go through a function of the host."""
    shift = lambda y: jax.pure_callback(
        lambda y: np.roll(y, 1, -1), y, y, vmap_method="broadcast_all"
    )
    fn = lambda y: 5 * y - shift(y)
    structure = jax.ShapeDtypeStruct((N,), np.float64)
    operator = lx.FunctionLinearOperator(fn, structure)
    i = np.arange(N)
    pattern = lxe.Pattern(np.append(i, i), np.append(i, (i - 1) % N), (N, N))
    b = normal((N,))
    with dense_path_fails():
        x = solve(operator, b, lxe.AutoStructuredLinearSolver(pattern=pattern))
    assert_close(5 * x - np.roll(x, 1), b, 1e-12)


def test_given_pattern_that_does_not_fit():
    pattern = lxe.Pattern([0], [0], (2, 3))
    solver = lxe.AutoStructuredLinearSolver(pattern=pattern)
    operator = lx.JacobianLinearOperator(lambda y, _: y**2, jnp.ones(3))
    with pytest.raises(ValueError, match=r"pattern of shape \(2, 3\).*\(3, 3\)"):
        lx.linear_solve(operator, np.ones(3), solver)
    with pytest.raises(ValueError, match="`lineax_ext.Pattern`; found an array"):
        lxe.AutoStructuredLinearSolver(pattern=np.eye(3))  # pyright: ignore
