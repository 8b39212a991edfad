import functools as ft
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    assert_close,
    directional,
    equations,
    gradient,
    matrix_operator,
    normal,
    over_oblong_shapes,
    over_solvers,
    over_solvers_in_turn,
    over_square_solvers_derived,
    pinv,
    pytree_jacobian_operator,
    slow,
    solve,
    turned,
    well_conditioned,
)


OPS, VECS = 3, 2


def stacks(shape, dtype):
    ops = [well_conditioned(shape, dtype, seed) for seed in range(OPS)]
    return np.stack(ops), normal((OPS, VECS, shape[0]), dtype)


def compute(solver, state, vector):
    return solver.compute(state, vector, {})[0]


def loop(fn, in_axes):
    """`jax.vmap`, in NumPy."""

    def looped(*args):
        args = [
            [x] if axis is None else np.moveaxis(x, axis, 0)
            for x, axis in zip(args, in_axes, strict=True)
        ]
        length = max(len(x) for x in args)
        return np.stack([fn(*(x[i % len(x)] for x in args)) for i in range(length)])

    return looped


VECTORS, OPERATORS, BOTH = (None, 0), (0, None), (0, 0)

# `f` of an operator out of `a` and of a vector out of `b`.
nestings = {
    "columns": lambda vmap, f, a, b: vmap(f, (None, 1))(a[0], b[0].T),
    "operators": lambda vmap, f, a, b: vmap(f, OPERATORS)(a, b[0, 0]),
    "vo": lambda vmap, f, a, b: vmap(vmap(f, VECTORS), OPERATORS)(a, b[0]),
    "ov": lambda vmap, f, a, b: vmap(vmap(f, OPERATORS), VECTORS)(a, b[0]),
    "vb": lambda vmap, f, a, b: vmap(vmap(f, VECTORS), BOTH)(a, b),
}
# Each axis batched, alone and within the other; and what these are put together from.
over_nestings = pytest.mark.parametrize(
    "nesting",
    [
        fn if name in ("columns", "operators", "vb") else slow(fn)
        for name, fn in nestings.items()
    ],
    ids=nestings,
)


@over_solvers_in_turn(0)
@over_nestings
def test_vmap(solver, tags, shape, nesting):
    a, b = stacks(shape, np.complex128)
    fn = lambda a, b: solve(matrix_operator(a, tags), b, solver)
    out = jax.jit(lambda a, b: nesting(jax.vmap, fn, a, b))(a, b)
    expected = nesting(loop, lambda a, b: pinv(a) @ b, a, b)
    assert_close(out, expected, 1e-12)


@over_solvers
def test_vmap_of_state(solver, tags):
    """`init` under one `vmap`, `compute` under another."""
    a, (b, *_) = stacks((4, 3), np.float64)
    make = lambda a: pytree_jacobian_operator(a, tags)
    init = lambda a: solver.init(make(a), {})
    states = eqx.filter_jit(eqx.filter_vmap(init))(a)
    fn = lambda a, state: jax.vmap(lambda b: solve(make(a), b, solver, state=state))(b)
    out = eqx.filter_jit(eqx.filter_vmap(fn))(jnp.asarray(a), states)
    assert_close(out, np.stack([b @ pinv(a).T for a in a]), 1e-12)


def tangents(shape):
    return normal(shape, seed=1), normal((VECS, shape[0]), seed=1)


@over_solvers_in_turn(1)
@pytest.mark.parametrize("order", ("vmap of jvp", slow("jvp of vmap")))
def test_jvp(solver, tags, shape, order):
    (a, *_), (b, *_) = stacks(shape, np.float64)
    t_a, t_b = tangents(shape)
    fn = lambda a, b: solve(matrix_operator(a, tags), b, solver)
    if order == "vmap of jvp":
        jvp = jax.vmap(lambda b, t_b: jax.jvp(fn, (a, b), (t_a, t_b))[1])
    else:
        vmapped = jax.vmap(fn, (None, 0))
        jvp = lambda b, t_b: jax.jvp(vmapped, (a, b), (t_a, t_b))[1]
    expected = directional(lambda t: (b + t * t_b) @ pinv(a + t * t_a).T)
    assert_close(jax.jit(jvp)(b, t_b), expected, 1e-8)


@over_solvers_in_turn(0)
@pytest.mark.parametrize("order", ("vmap of vjp", slow("vjp of vmap")))
def test_vjp(solver, tags, shape, order):
    (a, *_), (b, *_) = stacks(shape, np.float64)
    cotangent = normal(shape[1:], seed=1)
    fn = lambda a, b: solve(matrix_operator(a, tags), b, solver) @ cotangent
    loss = lambda a, b: cotangent @ pinv(a) @ b
    if order == "vmap of vjp":
        grads = jax.vmap(jax.grad(fn, (0, 1)), (None, 0))
        expected_a = np.stack([gradient(ft.partial(loss, b=b), a) for b in b])
    else:
        total = lambda a, b: jnp.sum(jax.vmap(fn, (None, 0))(a, b))
        grads = jax.grad(total, (0, 1))
        expected_a = gradient(lambda a: loss(a, sum(b)), a)
    grad_a, grad_b = jax.jit(grads)(a, b)
    assert_close(grad_a, expected_a, 1e-8)
    assert_close(grad_b, np.tile(cotangent @ pinv(a), (VECS, 1)), 1e-12)


@over_solvers_in_turn(1)
def test_turned_states(solver, tags, shape):
    m, n = shape
    a = well_conditioned(shape, np.complex128)
    b, c = normal((VECS, m), np.complex128), normal((VECS, n), np.complex128)
    operator = matrix_operator(a, tags)

    @jax.jit
    def run(b, c):
        states = turned(solver, operator)
        return [
            jax.vmap(ft.partial(compute, solver, state))(vectors)
            for state, vectors in zip(states, (c, b, c))
        ]

    transpose, conj, adjoint = run(b, c)
    assert_close(transpose, c @ pinv(a), 1e-12)
    assert_close(conj, b @ pinv(a).conj().T, 1e-12)
    assert_close(adjoint, c @ pinv(a).conj(), 1e-12)


#
# Right-hand sides become columns; the factors are not copied.
#


@over_solvers
@over_oblong_shapes
@pytest.mark.parametrize("nested", (False, True), ids=("one vmap", "nested vmap"))
def test_factor_is_not_copied(solver, tags, shape, nested):
    k, m, n = min(shape), max(shape), shape[1]
    operator = matrix_operator(well_conditioned(shape, np.complex128), tags)
    init = lambda op: (solver.init(op, {}), *turned(solver, op))
    states = eqx.filter_jit(init)(operator)
    for state, size in zip(states, (shape[0], n, shape[0], n)):
        fn = jax.vmap(ft.partial(compute, solver, state))
        fn = jax.vmap(fn) if nested else fn
        lead = (VECS, OPS) if nested else (VECS,)
        vectors = jnp.zeros((*lead, size), np.complex128)
        shapes = {"ormqr": [], "triangular_solve": []}
        for eqn in equations(jax.make_jaxpr(fn)(vectors).jaxpr):
            if eqn.primitive.name in shapes:
                shapes[eqn.primitive.name].append([x.aval.shape for x in eqn.invars])
        columns = int(np.prod(lead))
        assert shapes["ormqr"] == [[(m, k), (k,), (m, columns)]]
        solves = [] if "sigma" in vars(state) else [[(k, k), (k, columns)]]
        assert shapes["triangular_solve"] == solves


@over_solvers
@pytest.mark.parametrize(
    "transform, count",
    [
        (lambda f: f, 1),
        (lambda f: lambda b: jax.jvp(f, (b,), (b,)), 2),
        (lambda f: lambda b: jax.vjp(f, b)[1](f(b)), 2),
    ],
    ids=("primal", "jvp", "vjp"),
)
def test_factor_is_not_copied_by_linear_solve(solver, tags, transform, count):
    # The whole way through `lx.linear_solve`, down to what XLA is handed.
    operator = matrix_operator(well_conditioned((5, 3)), tags)
    state = solver.init(operator, {})
    fn = transform(lambda b: solve(operator, b, solver, state=state, throw=False))
    text = jax.jit(jax.vmap(fn)).lower(jnp.zeros((7, 5))).as_text()
    found = re.findall(r"custom_call @\w*ormqr\w*\(.*\} : \((.*?)\) ->", text)
    assert found == ["tensor<5x3xf64>, tensor<3xf64>, tensor<5x7xf64>"] * count


#
# Square operators of one class
#


@over_square_solvers_derived
@pytest.mark.parametrize(
    "nesting",
    (nestings["columns"], slow(nestings["operators"]), nestings["vb"]),
    ids=("columns", "operators", "vb"),
)
def test_square(solver, make_operator, nesting):
    a, b = stacks((4, 4), np.complex128)
    fn = lambda a, b: solve(make_operator(a), b, solver)
    out = jax.jit(lambda a, b: nesting(jax.vmap, fn, a, b))(a, b)
    expected = nesting(loop, lambda a, b: pinv(a) @ b, a, b)
    assert_close(out, expected, 1e-12)


@over_square_solvers_derived
def test_square_gradient(solver, make_operator):
    (a, *_), (b, *_) = stacks((4, 4), np.float64)
    cotangent = normal((4,), seed=1)
    fn = lambda a, b: solve(make_operator(a), b, solver) @ cotangent
    grads = jax.jit(jax.vmap(jax.grad(fn), (None, 0)))(a, b)
    loss = lambda a, b: cotangent @ pinv(a) @ b
    expected = np.stack([gradient(ft.partial(loss, b=b), a) for b in b])
    assert_close(grads, expected, 1e-8)
