"""`DampedQR`, `DampedSVD`, `DampedLinearOperator` and `damped_solve`."""

import functools as ft
import itertools

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.linalg
from helpers import (
    assert_close,
    damped_stack,
    double,
    duplicated,
    equations,
    flatten,
    gradient,
    in_turn,
    matrix_operator,
    normal,
    over_double_dtypes,
    over_oblong_shapes,
    over_shapes,
    pinv,
    pytree_function_operator,
    pytree_jacobian_operator,
    pytree_operator,
    rank_deficient,
    SHAPES,
    slow,
    solve,
    tolerance,
    unflatten,
    well_conditioned,
)

import lineax_ext as lxe
from lineax_ext._factor.looped_qr import add_triangle
from lineax_ext._factor.panels import TriangularStackQR
from lineax_ext._factor.triangular_stack import (
    _stack_qr,
    condense,
    solve_condensed,
    triangular_stack_qr,
)


DENSE, SPARSE = (lxe.DampedQR(), lxe.DampedSVD()), lxe.DampedSparse()
SOLVERS = *DENSE, SPARSE
OBLONG = ((5, 3),), ((3, 5),)
_name = lambda x: type(x).__name__
# What the sparse one does alone is in `test_damped_sparse.py`.
over_solvers = pytest.mark.parametrize("solver", (*DENSE, slow(SPARSE)), ids=_name)
# Those of one dense factorisation.
over_dense_solvers = pytest.mark.parametrize("solver", DENSE, ids=_name)
# The sparse one factorises AᴴA of either shape.
over_solvers_and_shapes_in_turn = in_turn(
    "solver, shape", DENSE, OBLONG, more=[slow(SPARSE, (5, 3))]
)

damping = 0.3


def scale_of(shape, scaled, orders=1):
    """D over some orders of magnitude, in no order."""
    values = np.geomspace(10 ** (-orders / 2), 10 ** (orders / 2), shape[1])
    return np.random.default_rng(0).permutation(values) if scaled else None


def lstsq(matrix, b, damping, scale=None, c=None):
    stack = damped_stack(matrix, damping, scale)
    c = np.zeros(matrix.shape[1]) if c is None else c
    return scipy.linalg.lstsq(stack, np.concatenate([double(b), c]))[0]


def damped(matrix, b, damping, solver, **kwargs):
    return lxe.damped_solve(matrix_operator(matrix), b, damping, solver, **kwargs)


@eqx.filter_jit
def _value(matrix, b, damping, solver, scale):
    return damped(matrix, b, damping, solver, scale=scale).value


def value(matrix, b, damping, solver, scale=None):
    """One compiled program for all that have these shapes and dtypes."""
    damping = jnp.asarray(damping, b.real.dtype)
    scale = None if scale is None else jnp.asarray(scale)
    return _value(jnp.asarray(matrix), jnp.asarray(b), damping, solver, scale)


#
# Values
#


@in_turn(
    "solver, shape, dtype, scaled",
    DENSE,
    OBLONG,
    (np.float32, np.complex128),
    (False, True),
    more=[
        (SPARSE, (5, 3), np.float32, True),
        slow(SPARSE, (3, 5), np.complex128, False),
    ],
)
def test_path(solver, shape, dtype, scaled):
    """Many dampings of one factorisation."""
    matrix, b = well_conditioned(shape, dtype), normal(shape[:1], dtype)
    real = np.finfo(dtype).dtype
    scale = scale_of(shape, scaled, orders=4)
    scale = None if scale is None else scale.astype(real)
    least = 1e-10
    if isinstance(solver, lxe.DampedSparse) and shape[0] < shape[1]:
        # Beside AᴴA, which is singular, λ D² counts from its rounding error on.
        weight = 1 if scale is None else np.min(scale) ** 2
        least = max(least, 1e5 * np.finfo(dtype).eps / weight)
    dampings = np.geomspace(least, 1e8, 19).astype(real)

    @jax.jit
    def path(dampings):
        state = solver.init(matrix_operator(matrix), {})
        fn = lambda x: damped(matrix, b, x, solver, scale=scale, state=state).value
        return lax.map(fn, dampings)

    rtol = 1e-6 if real == np.float64 else 1e-5
    for out, x in zip(np.asarray(path(dampings)), dampings):
        assert out.dtype == dtype
        expected = lstsq(matrix, b, x, scale)
        assert_close(out, expected, rtol)
        if scaled:
            assert_close(scale * out, scale * expected, rtol)


@over_solvers
@over_shapes
def test_zero_damping(solver, shape):
    matrix, b = well_conditioned(shape, np.complex128), normal(shape[:1], np.complex128)
    if solver == SPARSE and shape[0] < shape[1]:  # AᴴA is singular
        found = damped(matrix, b, 0.0, solver, throw=False)
        assert found.result == lx.RESULTS.singular
        return
    assert_close(value(matrix, b, 0.0, solver), pinv(matrix) @ b, 1e-12)


@pytest.mark.parametrize(
    "solver, shape",
    [*itertools.product(DENSE, SHAPES[::2]), (SPARSE, (5, 3))],
)
def test_zero_damping_scaled(solver, shape):
    # The limit λ → 0: when wide, of all solutions that of the least ‖D x‖.
    matrix, b = well_conditioned(shape), normal(shape[:1])
    scale = scale_of(shape, True)
    out = value(matrix, b, 0.0, solver, scale)
    assert_close(out, pinv(matrix / scale) @ b / scale, 1e-12)


@over_oblong_shapes
def test_zero_damping_rank_deficient(shape):
    matrix, b = rank_deficient(shape), normal(shape[:1])
    solution = damped(matrix, b, 0.0, lxe.DampedSVD())
    assert solution.stats["rank"] == 2
    assert_close(solution.value, pinv(matrix) @ b, 1e-12)


@over_oblong_shapes
@pytest.mark.parametrize("rcond, rank", ((1e-4, 2), (None, 3)))
def test_rcond(shape, rcond, rank):
    u, _, vh = np.linalg.svd(normal(shape), full_matrices=False)
    values, b = np.array([1, 1e-2, 1e-6]), normal(shape[:1])
    solver = lxe.DampedSVD(rcond)
    for x in (0.0, 1e-3):
        solution = damped(u * values @ vh, b, x, solver)
        filters = (values / (values**2 + x))[:rank]
        assert solution.stats["rank"] == rank
        assert_close(solution.value, (vh.T[:, :rank] * filters) @ u.T[:rank] @ b, 1e-9)


@over_oblong_shapes
def test_zero_damping_singular(shape):
    matrix, b = duplicated(shape), normal(shape[:1])
    solution = damped(matrix, b, 0.0, lxe.DampedQR(), throw=False)
    assert solution.result == lx.RESULTS.singular
    with pytest.raises(eqx.EquinoxRuntimeError, match="singular"):
        damped(matrix, b, 0.0, lxe.DampedQR())


@in_turn(
    "solver, shape, dtype",
    DENSE,
    OBLONG,
    (np.float32, np.float64, np.complex128),
    more=[(SPARSE, (5, 3), np.float32), slow(SPARSE, (3, 5), np.float64)],
)
def test_huge_damping(solver, shape, dtype):
    damping = 1e38 if dtype == np.float32 else 1e300
    matrix = well_conditioned(shape, dtype)
    b = 1e6 * normal(shape[:1], dtype)  # keeps float32 solutions out of the denormals
    out = value(matrix, b, damping, solver)
    expected = double(matrix).conj().T @ double(b) / damping
    assert_close(out, expected, tolerance(dtype))


@over_solvers_and_shapes_in_turn
def test_rank_deficient(solver, shape):
    matrix, b = rank_deficient(shape), normal(shape[:1])
    matrix[:, 1] = 0
    out = value(matrix, b, damping, solver)
    assert_close(out, lstsq(matrix, b, damping), 1e-12)
    assert abs(out[1]) < 1e-15


@in_turn(
    "solver, shape",
    SOLVERS,
    [(shape,) for shape in ((0, 0), (2, 0), (0, 2), (1, 1), (1, 3), (3, 1))],
)
def test_sizes_0_and_1(solver, shape):
    matrix, b, scale = normal(shape), normal(shape[:1]), scale_of(shape, True)
    out = value(matrix, b, damping, solver, scale)
    assert_close(out, lstsq(matrix, b, damping, scale), 1e-14)


@in_turn(
    "solver, shape, make_operator",
    DENSE,
    OBLONG,
    (pytree_operator, pytree_function_operator, pytree_jacobian_operator),
    more=[(SPARSE, (3, 5), pytree_jacobian_operator)],
)
def test_pytrees(solver, shape, make_operator):
    matrix, b = well_conditioned(shape, np.complex128), normal(shape[:1], np.complex128)
    scale = scale_of(shape, True)

    @jax.jit
    def run(b, scale):
        operator = make_operator(matrix)
        structure = operator.in_structure()
        b, scale = unflatten(b, operator.out_structure()), unflatten(scale, structure)
        out = lxe.damped_solve(operator, b, damping, solver, scale=scale).value
        assert jax.eval_shape(lambda: out) == structure
        return flatten(out)

    out = run(b, scale)
    assert_close(out, lstsq(matrix, b, damping, scale), 1e-12)


#
# States
#


@in_turn(
    "solver, shape, damping, scaled",
    DENSE,
    OBLONG,
    ((damping, True), (0.0, False)),
    more=[slow(SPARSE, (3, 5), damping, True)],
)
def test_right_hand_sides(solver, shape, scaled, damping):
    """`B⁺ (b, c)` and `B⁺ b`, from every state that stands for B."""
    matrix, b = well_conditioned(shape, np.complex128), normal(shape[:1], np.complex128)
    c, scale = normal(shape[1:], np.complex128), scale_of(shape, scaled)
    operator = matrix_operator(matrix)
    other = 3.0, np.full(shape[1:], 2.0)

    @jax.jit
    def run(scale):
        stack = lxe.DampedLinearOperator(operator, damping, scale)
        state = solver.init(operator, {})
        states = (
            solver.damp(state, damping, scale),
            solver.damp(solver.damp(state, *other), damping, scale),
            solver.init(stack, {}),
            solver.init(lx.TaggedLinearOperator(stack, frozenset()), {}),
        )
        compute = lambda state, x: solver.compute(state, x, {})[0]
        return [(compute(state, (b, c)), compute(state, b)) for state in states]

    for both, alone in run(scale):
        assert_close(both, lstsq(matrix, b, damping, scale, c), 1e-12)
        assert_close(alone, lstsq(matrix, b, damping, scale), 1e-12)


@in_turn(
    "solver, shape",
    (*DENSE, lxe.QRMultiply(), lx.QR(), lx.SVD()),
    OBLONG,
    more=[slow(SPARSE, (5, 3))],
)
def test_linear_solve_of_the_operator(solver, shape):
    matrix, scale = well_conditioned(shape, np.complex128), scale_of(shape, True)
    b, c = normal(shape[:1], np.complex128), normal(shape[1:], np.complex128)
    operator = lxe.DampedLinearOperator(matrix_operator(matrix), damping, scale)
    out = lx.linear_solve(operator, (b, c), solver).value
    assert_close(out, lstsq(matrix, b, damping, scale, c), 1e-12)


@over_solvers_and_shapes_in_turn
def test_solution_state(solver, shape):
    matrix, scale = well_conditioned(shape), scale_of(shape, True)
    state = damped(matrix, normal(shape[:1]), 7.0, solver, scale=scale).state
    b = normal(shape[:1], seed=1)
    out = damped(matrix, b, damping, solver, state=state).value
    assert_close(out, lstsq(matrix, b, damping), 1e-12)


@over_dense_solvers
def test_known_scale_under_jit(solver):
    matrix, b, scale = well_conditioned((5, 3)), normal((5,)), jnp.arange(1.0, 4.0)
    fn = jax.jit(lambda b: damped(matrix, b, damping, solver, scale=scale).value)
    assert_close(fn(b), lstsq(matrix, b, damping, scale), 1e-12)


@in_turn(
    "solver, shape, scaled", DENSE, OBLONG, (False, True), more=[(SPARSE, (5, 3), True)]
)
def test_vmap(solver, shape, scaled):
    matrix, bs = well_conditioned(shape), normal((3, shape[0]))
    state = solver.init(matrix_operator(matrix), {})
    dampings = np.array([1e-3, 1.0, 1e3])
    scale = scale_of(shape, scaled)
    scales = None if scale is None else np.stack([scale, scale**2, scale[::-1]])

    def fn(b, damping, scale):
        return damped(matrix, b, damping, solver, scale=scale, state=state).value

    out = jax.jit(jax.vmap(fn))(bs, dampings, scales)
    for i in range(3):
        scale = None if scales is None else scales[i]
        assert_close(out[i], lstsq(matrix, bs[i], dampings[i], scale), 1e-12)


@over_dense_solvers  # a sparse one corrects with A
@pytest.mark.parametrize(
    "shape, scaled", (((4000, 10), False), ((4000, 10), True), ((10, 4000), False))
)
def test_damp_does_not_grow_with_m(solver, shape, scaled):
    scale = scale_of(shape, scaled)
    operator = matrix_operator(jnp.zeros(shape))
    state = eqx.filter_eval_shape(solver.init, operator, {})
    damp = lambda state: jax.tree.leaves(solver.damp(state, damping, scale))
    for eqn in equations(jax.make_jaxpr(damp)(state).jaxpr):
        assert all(4000 not in x.aval.shape for x in eqn.outvars), eqn


#
# Derivatives, against those of the closed form
#


def closed_form(a, b, damping, scale):
    """x = (AᴴA + λD²)⁻¹ Aᴴ b."""
    ah = jnp.conj(a.T)
    gram = ah @ a + jnp.diag(damping * scale**2).astype(a.dtype)
    return jnp.linalg.solve(gram, ah @ b)


def problem(shape, dtype):
    """Matrix, vector, damping and scale; and a tangent of each."""
    rng = np.random.default_rng(1)
    primals = (
        well_conditioned(shape, dtype),
        normal(shape[:1], dtype),
        np.array(damping),
        scale_of(shape, True),
    )
    normals = lambda x: rng.standard_normal(x.shape).astype(x.dtype)
    turn = 1 + 1j if dtype == np.complex128 else 1
    return primals, tuple(normals(x) * (turn if x.ndim == 2 else 1) for x in primals)


def loss(x):
    weights = jnp.arange(1, x.size + 1, dtype=x.real.dtype)
    return jnp.sum(weights * jnp.abs(x) ** 2) + jnp.sum(jnp.sin(x.real))


wrt_all = (0, 1, 2, 3)


def grad_and_hvp(fn, primals, tangents):
    """Reverse mode, and forward over reverse."""
    grad = jax.grad(lambda *p: loss(fn(*p)), wrt_all)
    return jax.jvp(grad, primals, tangents)


def jvp_and_grad(fn, primals, tangents):
    """Forward mode, and reverse over forward."""

    def jvp(*primals):
        _, t_out = jax.jvp(fn, primals, tangents)
        return loss(t_out), t_out

    return jax.value_and_grad(jvp, wrt_all, has_aux=True)(*primals)


def differentiate(fn, transform, shape, dtype):
    return jax.jit(ft.partial(transform, fn))(*problem(shape, dtype))


expected_derivatives = ft.cache(ft.partial(differentiate, closed_form))


@in_turn(
    "solver, shape, transform",
    DENSE,
    tuple(shape + (way,) for shape, way in zip(OBLONG, (grad_and_hvp, jvp_and_grad))),
    more=[slow(SPARSE, (3, 5), jvp_and_grad)],  # compiles for ten seconds
)
def test_derivatives(solver, shape, transform):
    fn = lambda a, b, damping, scale: damped(a, b, damping, solver, scale=scale).value
    out = differentiate(fn, transform, shape, np.complex128)
    expected = expected_derivatives(transform, shape, np.complex128)
    jax.tree.map(ft.partial(assert_close, rtol=1e-9), out, expected)


@in_turn("solver, shape", DENSE, OBLONG, first=1, more=[(SPARSE, (3, 5))])
def test_derivatives_by_finite_differences(solver, shape):
    (a, b, _, scale), _ = problem(shape, np.float64)
    cotangent = normal(shape[1:], seed=2)

    def fn(a, b, damping, scale):
        operator = pytree_jacobian_operator(a)
        scale = unflatten(scale, operator.in_structure())
        b = unflatten(b, operator.out_structure())
        x = lxe.damped_solve(operator, b, damping, solver, scale=scale).value
        return flatten(x) @ cotangent

    args = a, b, np.array(damping), scale
    grads = jax.jit(jax.grad(fn, wrt_all))(*args)
    for i, grad in enumerate(grads):
        expected = lambda x, i=i: cotangent @ lstsq(*args[:i], x, *args[i + 1 :])
        assert_close(grad, gradient(expected, args[i]), 1e-8)


@over_solvers_and_shapes_in_turn
def test_derivatives_of_a_path(solver, shape):
    """dx/dλ = −(AᵀA + λ)⁻¹ x, of one state and without a scale."""
    matrix, b = well_conditioned(shape), normal(shape[:1])
    state = solver.init(matrix_operator(matrix), {})
    fn = lambda damping: damped(matrix, b, damping, solver, state=state).value
    dampings = np.array([1e-2, 1.0, 1e2])
    out = jax.jit(lambda x: lax.map(jax.jacfwd(fn), x))(dampings)
    for dx, x in zip(out, dampings):
        gram = matrix.T @ matrix + x * np.eye(shape[1])
        expected = -np.linalg.solve(gram, lstsq(matrix, b, x))
        assert_close(dx, expected, 1e-10)


#
# `DampedQR(damping=λ)`, of a plain operator
#


PLAIN = lxe.DampedQR(damping=damping)


@over_oblong_shapes
def test_plain_vector(shape):
    dtype = np.complex128
    matrix, b = well_conditioned(shape, dtype), normal(shape[:1], dtype)
    t_b, cotangent = normal(shape[:1], dtype, seed=1), normal(shape[1:], dtype, seed=2)
    fn = lambda b: solve(pytree_operator(matrix), b, PLAIN)

    @jax.jit
    def run(b):
        out, vjp = jax.vjp(fn, b)
        return out, jax.jvp(fn, (b,), (t_b,))[1], vjp(cotangent)[0]

    inverse = np.linalg.pinv(damped_stack(matrix, damping))[:, : shape[0]]
    out, t_out, grad = run(b)
    assert_close(out, lstsq(matrix, b, damping), 1e-12)
    assert_close(t_out, inverse @ t_b, 1e-12)
    assert_close(grad, cotangent @ inverse, 1e-12)


@pytest.mark.parametrize("transform", (jax.jacfwd, jax.jacrev))
@pytest.mark.parametrize("jit", (False, True), ids=("eager", "jit"))
def test_plain_operator_is_an_error(transform, jit):
    shape = 5, 3
    b = normal(shape[:1])
    fn = transform(lambda a: solve(matrix_operator(a), b, PLAIN))
    with pytest.raises(ValueError, match="`lineax_ext.damped_solve"):
        (jax.jit(fn) if jit else fn)(well_conditioned(shape))


@over_oblong_shapes
def test_plain_traced_damping(shape):
    matrix, b = rank_deficient(shape), normal(shape[:1])
    fn = lambda x: solve(matrix_operator(matrix), b, lxe.DampedQR(damping=x))
    dampings = np.array([1e-3, 1.0])
    for out, x in zip(jax.jit(jax.vmap(fn))(dampings), dampings):
        assert_close(out, lstsq(matrix, b, x), 1e-9)


#
# Errors
#


operator = matrix_operator(well_conditioned((4, 2)))
vector = jnp.ones(4)

invalid_dampings = pytest.mark.parametrize("damping", (-1.0, np.inf, np.nan))
invalid_scales = pytest.mark.parametrize("scale", (0.0, -1.0, np.inf, np.nan))


@invalid_dampings
def test_invalid_damping(damping):
    match = r"`damping` must be non-negative and finite"
    for solver in (lxe.DampedQR(), lxe.DampedSVD()):
        with pytest.raises(ValueError, match=match):
            lxe.damped_solve(operator, vector, damping, solver)
        with pytest.raises(ValueError, match=match):
            solver.damp(solver.init(operator, {}), damping)
    with pytest.raises(ValueError, match=match):
        lxe.DampedLinearOperator(operator, damping)
    with pytest.raises(ValueError, match=match):
        lxe.DampedQR(damping=damping)


@invalid_scales
def test_invalid_scale(scale):
    scale = jnp.array([1.0, scale])
    match = r"`scale` must be positive and finite"
    for solver in (lxe.DampedQR(), lxe.DampedSVD()):
        with pytest.raises(ValueError, match=match):
            lxe.damped_solve(operator, vector, 1.0, solver, scale=scale)
        with pytest.raises(ValueError, match=match):
            solver.damp(solver.init(operator, {}), 1.0, scale)
    with pytest.raises(ValueError, match=match):
        lxe.DampedLinearOperator(operator, 1.0, scale)


@over_solvers_and_shapes_in_turn
def test_invalid_at_run_time(solver, shape):
    matrix, b = well_conditioned(shape), normal(shape[:1])

    @eqx.filter_jit
    def fn(damping, scale, throw):
        return damped(matrix, b, damping, solver, scale=scale, throw=throw)

    for damping, last, name in (
        (-1.0, 1.0, "damping"),
        (np.inf, 1.0, "damping"),
        (np.nan, 1.0, "damping"),
        (1.0, 0.0, "scale"),
        (1.0, -1.0, "scale"),
        (1.0, np.inf, "scale"),
        (1.0, np.nan, "scale"),
    ):
        args = jnp.asarray(damping), jnp.ones(shape[1:]).at[-1].set(last)
        assert fn(*args, throw=False).result == lx.RESULTS.singular
        with pytest.raises(eqx.EquinoxRuntimeError, match=f"`{name}` must be"):
            fn(*args, throw=True)


@pytest.mark.parametrize(
    "damping, message", ((jnp.ones(1), "must be a scalar"), (1j, "must be real"))
)
def test_wrong_damping(damping, message):
    with pytest.raises(ValueError, match=f"`damping` {message}"):
        lxe.damped_solve(operator, vector, damping)


@pytest.mark.parametrize(
    "scale", (1.0, jnp.ones(3), jnp.ones((2, 1)), [jnp.ones(2)], {"a": jnp.ones(2)})
)
def test_wrong_scale(scale):
    for make in (
        lambda: lxe.damped_solve(operator, vector, 1.0, scale=scale),
        lambda: lxe.DampedLinearOperator(operator, 1.0, scale),
    ):
        with pytest.raises(ValueError, match="`scale` must have the structure"):
            make()


def test_wrong_vector():
    with pytest.raises(ValueError, match="structure of the operator"):
        lxe.damped_solve(operator, jnp.ones(3), 1.0)
    solver = lxe.DampedQR()
    state = solver.damp(solver.init(operator, {}), 1.0)
    with pytest.raises(ValueError, match="was given a vector of structure"):
        solver.compute(state, (vector, jnp.ones(3)), {})


def test_wrong_solver():
    with pytest.raises(ValueError, match="needs a solver that can damp.*`QR`"):
        lxe.damped_solve(operator, vector, 1.0, lx.QR())


def test_damping_given_twice():
    with pytest.raises(ValueError, match="given a damping twice"):
        lxe.damped_solve(operator, vector, 1.0, lxe.DampedQR(damping=1.0))
    stack = lxe.DampedLinearOperator(operator, 1.0)
    with pytest.raises(ValueError, match="a damping of its own"):
        lx.linear_solve(stack, (vector, jnp.ones(2)), lxe.DampedQR(damping=1.0))


@over_solvers
def test_wrong_state(solver):
    other = lxe.DampedSVD() if isinstance(solver, lxe.DampedQR) else lxe.DampedQR()
    state = other.init(operator, {})
    with pytest.raises(ValueError, match="`state` is not one of"):
        lxe.damped_solve(operator, vector, 1.0, solver, state=state)
    for make in (
        lambda: solver.init(matrix_operator(well_conditioned((5, 2))), {}),
        lambda: solver.transpose(solver.init(operator, {}), {})[0],
    ):
        with pytest.raises(ValueError, match=r"`damped_solve\(state=...\)` is not"):
            lxe.damped_solve(operator, vector, 1.0, solver, state=make())


@ft.cache
def least_squares_derivatives(shape):
    """Of A⁺ b, in A and b (Golub and Pereyra 1973, doi:10.1137/0710036)."""
    matrix, b = well_conditioned(shape), normal(shape[:1])
    p, (m, n) = pinv(matrix), shape
    column, row = np.eye(m) - matrix @ p, np.eye(n) - p @ matrix
    out = -np.einsum("ki,j->kij", p, p @ b)
    out += np.einsum("kj,i->kij", p @ p.T, column @ b)
    out += np.einsum("kj,i->kij", row, p.T @ (p @ b))
    return out, p


@in_turn(
    "solver, shape, transform",
    DENSE,
    OBLONG,
    (jax.jacfwd, jax.jacrev),
    more=[slow(SPARSE, (5, 3), jax.jacrev)],
)
def test_derivative_at_zero_damping(solver, shape, transform):
    """That of least squares."""
    fn = lambda a, b: damped(a, b, 0.0, solver).value
    out = jax.jit(transform(fn, (0, 1)))(well_conditioned(shape), normal(shape[:1]))
    for found, expected in zip(out, least_squares_derivatives(shape)):
        assert_close(found, expected, 1e-10)


@in_turn(
    "solver, transform",
    DENSE,
    (jax.jacfwd, jax.jacrev),
    more=[slow(SPARSE, jax.jacfwd)],
)
def test_derivative_in_zero_damping_is_an_error(solver, transform):
    matrix, b = well_conditioned((5, 3)), normal((5,))
    fn = eqx.filter_jit(transform(lambda x: damped(matrix, b, x, solver).value))
    with pytest.raises(eqx.EquinoxRuntimeError, match="derivative of √λ is infinite"):
        fn(jnp.array(0.0))


@in_turn(
    "solver, shape",
    DENSE,
    [((200, 100),), ((100, 200),)],
    more=[slow(SPARSE, (200, 100))],
)
def test_small_damping_of_a_rank_deficient_operator(solver, shape):
    """√λ is 1e-5 of a column here: a hundred rounding errors of float32."""
    matrix, b = np.full(shape, 10, np.float32), normal(shape[:1], np.float32)
    damping = np.float32(1e-6)
    sol = damped(matrix, b, damping, solver, throw=False)
    assert sol.result == lx.RESULTS.successful

    # The solution is ill-determined; its objective is not.
    def objective(x):
        fit = double(matrix) @ double(x) - double(b)
        return fit @ fit + damping * double(x) @ double(x)

    assert objective(sol.value) < 1.01 * objective(lstsq(matrix, b, damping))


@over_solvers
def test_damp_of_a_turned_state(solver):
    for turn in (solver.transpose, solver.conj):
        state, _ = turn(solver.init(operator, {}), {})
        with pytest.raises(ValueError, match="not its transpose or conjugate"):
            solver.damp(state, 1.0)


def test_vector_of_less_precision():
    less = vector.astype(np.float32)
    out = lxe.damped_solve(operator, less, 2.0).value
    assert_close(out, lstsq(operator.matrix, less.astype(np.float64), 2.0), 1e-12)


def test_integer_damping():
    out = lxe.damped_solve(operator, vector, 2).value
    assert_close(out, lstsq(operator.matrix, vector, 2.0), 1e-12)


#
# The QR of two triangles
#


bottoms = {
    "zero": np.zeros_like,  # where all τ = 0
    "some zero": lambda x: np.diag(np.diagonal(x) * (np.arange(len(x)) % 3)),
    "diagonal": lambda x: np.diag(np.diagonal(x)),
    "triangle": np.triu,
}


@ft.partial(jax.jit, static_argnames="loops")
def factors(top, bottom, stack, loops):
    """Q̃, R̃ and Q̃ᴴ [R₁; R₂]."""
    n = len(top)
    if loops is None:
        qr = triangular_stack_qr(top, bottom)
    else:
        most, by_height = (2048, False) if loops == "chunks" else (4096, True)
        triangles = jnp.triu(top).T, jnp.triu(bottom).T
        qr = TriangularStackQR(
            *add_triangle(*triangles, n, 16, most, by_height=by_height, keep=True)
        )
    columns = lambda fn, x: jnp.concatenate(jax.vmap(fn, 1, 1)(x[:n], x[n:]))
    q = columns(qr.q_multiply, jnp.eye(2 * n, dtype=top.dtype))
    return q, qr.rt.T, columns(qr.q_adjoint_multiply, stack)


@pytest.mark.parametrize("bottom", bottoms.values(), ids=bottoms)
# Of one panel, of two, of three; in a loop of two chunks, in two loops.
@pytest.mark.parametrize(
    ("n", "loops"),
    (
        (0, None),
        (1, None),
        slow(50, None),
        (51, None),
        slow(101, None),
        slow(1, "chunks"),
        slow(16, "chunks"),
        (121, "chunks"),
        slow(1, "heights"),
        (121, "heights"),
    ),
)
@over_double_dtypes
def test_triangular_stack(n, loops, dtype, bottom):
    # Of the two, what is under the diagonal is not to be read.
    top, bottom = normal((n, n), dtype), bottom(normal((n, n), dtype, seed=1))
    stack = np.concatenate([np.triu(top), np.triu(bottom)])
    q, r, down = map(np.asarray, factors(top, bottom, stack, loops))
    rtol = 1e-14 * max(n, 1)
    assert_close(np.abs(r), np.abs(np.linalg.qr(stack, mode="r")), 100 * rtol)
    assert_close(q[:, :n] @ r, stack, rtol)
    assert_close(q.conj().T @ q, np.eye(2 * n), rtol)
    assert_close(down, np.concatenate([r, 0 * r]), rtol)


def stack_equations(n, fn=lambda *args: triangular_stack_qr(*args).rt):
    triangle = jax.ShapeDtypeStruct((n, n), np.float64)
    return list(equations(jax.make_jaxpr(fn)(triangle, triangle).jaxpr))


@pytest.mark.parametrize("n", (200, 500))
def test_triangular_stack_is_not_formed(n):
    sizes = [x.aval.size for eqn in stack_equations(n) for x in eqn.outvars]
    # (Panels fill it up with zeros.)
    assert n * n <= max(sizes) <= 1.2 * n * n


def test_triangular_stack_flops():
    n, flops = 350, 0
    written_out = lambda *args: _stack_qr(*args, 22, triangular=True)
    for eqn in stack_equations(n, written_out):
        if eqn.primitive.name == "dot_general":
            (contracting, _), _ = eqn.params["dimension_numbers"]
            (lhs, *_) = eqn.invars
            k = np.prod([lhs.aval.shape[i] for i in contracting])
            flops += 2 * k * eqn.outvars[0].aval.size
        elif eqn.primitive.name == "geqrf":
            rows, columns = eqn.invars[0].aval.shape
            flops += 2 * columns**2 * (rows - columns / 3)
    # The triangles inside of the panels are not exploited. A dense QR: 10n³/3.
    assert flops < 2 * (2 / 3) * n**3
    assert len(stack_equations(2000)) < 2 * len(stack_equations(600))


#
# A tall problem as a square one
#


# (m, n): LAPACK's, n < a panel, n = a panel and one more, chunks that are not full.
tall_shapes = (
    (5, 0),
    (60, 60),
    (9000, 1),
    (3001, 5),
    (1500, 16),
    (1001, 17),
    (400, 64),
    (2311, 100),
)


@in_turn("m, n, dtype", tall_shapes, (np.float32, np.float64, np.complex128))
def test_condense(m, n, dtype):
    a, b = normal((m, n), dtype), normal((m,), dtype, seed=1)
    a = (a * np.logspace(-6, 6, n)).astype(dtype)
    st, c = map(np.asarray, jax.jit(condense)(a, b))
    assert st.dtype == c.dtype == a.dtype
    assert np.all(np.triu(st, 1) == 0)
    # ‖A x − b‖² and ‖S x − c‖² have the same coefficients, in units of the columns.
    wide = np.complex128 if np.iscomplexobj(a) else np.float64
    norms = np.linalg.norm(a.astype(wide), axis=0)
    columns = np.c_[a / norms, b / np.linalg.norm(b)].astype(wide)
    condensed = np.c_[st.T / norms, c / np.linalg.norm(b)].astype(wide)
    gram = lambda x: (x.conj().T @ x)[:n]
    assert_close(gram(condensed), gram(columns), 100 * np.finfo(dtype).eps)


@pytest.mark.parametrize("n, root", ((64, 0.3), (130, 1e3)))
def test_damped_steps_in_loops(n, root):
    """Chunks of the lower triangle, either triangle on top."""
    a, b = normal((n, n)), normal((n,), seed=1)
    stack = np.concatenate([np.triu(a), root * np.eye(n)])
    expected = np.linalg.lstsq(stack, np.concatenate([b, np.zeros(n)]), rcond=None)[0]
    fn = jax.jit(lambda st, c: solve_condensed(st, c, jnp.asarray(root), looped=True))
    assert_close(fn(np.triu(a).T, b), expected, 1e-11)


@pytest.mark.parametrize("m, n", ((1, 1), (7, 2), (200, 4), (3001, 5)))
def test_condense_of_few_unknowns(m, n):
    """Without a triangle; of any size."""
    a, b = normal((m, n)), normal((m,), seed=1)
    stack = np.concatenate([a, 0.3 * np.eye(n)]), np.concatenate([b, np.zeros(n)])
    expected = np.linalg.lstsq(*stack, rcond=None)[0]

    @jax.jit
    def solution(size):
        st, c = condense(jnp.asarray(a) * size, jnp.asarray(b), triangle=False)
        return size * solve_condensed(st, c, 0.3 * size), st

    for size in (1e-200, 1.0, 1e200):
        found, st = solution(size)
        assert_close(found, expected, 1e-13)
        assert st.shape[1] <= max(200, 8 * n)


@in_turn("m, n, dtype", ((9, 1), (3, 3), (1000, 4)), (np.float32, np.complex128))
def test_condense_of_few_unknowns_in_a_batch(m, n, dtype):
    """Lanes of any size, with columns of zeros and such that depend on each other."""
    a, b = normal((4, m, n), dtype), normal((4, m), dtype, seed=1)
    a[1] *= np.finfo(dtype).tiny ** 0.9
    a[2] *= np.logspace(-6, 6, n, dtype=a.real.dtype)
    a[3, :, 0], a[3, :, -1] = a[3, :, -1], 0
    sts, cs = map(np.asarray, jax.jit(jax.vmap(condense))(a, b))
    assert sts.dtype == cs.dtype == dtype
    for matrix, vector, st, c in zip(a, b, sts, cs):
        assert np.all(np.triu(st, 1) == 0)
        largest = np.max(np.abs(matrix), axis=0)
        norms = np.where(largest == 0, 1, largest)
        scaled = np.c_[matrix / norms, vector].astype(np.complex128)
        condensed = np.c_[st.T / norms, c].astype(np.complex128)
        gram = lambda x: (x.conj().T @ x)[:n]
        tolerance = 30 * np.finfo(dtype).eps
        assert_close(gram(condensed), gram(scaled), tolerance)


def test_condense_of_dependent_columns():
    a, b = normal((3000, 20)), normal((3000,), seed=1)
    a[:, 7], a[:, 11] = 0, a[:, 3]
    st, _ = jax.jit(condense)(a, b)
    assert_close(st @ st.T, a.T @ a, 1e-13)
    a[2999] = np.nan
    st, _ = jax.jit(condense)(a, b)
    assert np.all(np.isnan(np.diagonal(st)))


def test_condense_with_weights():
    # Large rows first: as the weight grows, the solution is that of the rest in the
    # null space of these. (Large rows last: QR without pivoting is known to fail.)
    m, n, k = 3000, 40, 3
    a, b = normal((m, n)), normal((m,), seed=1)
    q, r = np.linalg.qr(a[:k].T, mode="complete")
    particular = q[:, :k] @ np.linalg.solve(r[:k].T, b[:k])
    null = q[:, k:]
    rest = np.linalg.lstsq(a[k:] @ null, b[k:] - a[k:] @ particular, rcond=None)[0]
    a[:k], b[:k] = 1e12 * a[:k], 1e12 * b[:k]
    st, c = jax.jit(condense)(a, b)
    x = scipy.linalg.solve_triangular(st.T, c)
    assert_close(x, particular + null @ rest, 1e-12)


@pytest.mark.parametrize(
    "m, n, dtype",
    [
        (2000, 256, np.float64),
        (2000, 256, np.complex128),
        (317, 317, np.float32),
        (146, 146, np.complex64),
    ],
)
def test_lapack_keeps_to_one_thread(m, n, dtype):
    shape = lambda *x: jax.ShapeDtypeStruct(x, dtype)
    if m > n:
        jaxpr = jax.make_jaxpr(condense)(shape(m, n), shape(m))
    else:
        root = jnp.ones((), np.finfo(dtype).dtype)
        fn = lambda *args: solve_condensed(*args, root)
        jaxpr = jax.make_jaxpr(fn)(shape(n, n), shape(n))
    panels, solves = [], []
    for eqn in equations(jaxpr.jaxpr):
        if eqn.primitive.name == "geqrf":
            panels.append(eqn.invars[0].aval.size)
        elif eqn.primitive.name == "triangular_solve":
            solves.append(eqn.invars[1].aval.shape[-1])
    # OpenBLAS calls its threads for larger ones than these.
    limit = 4096 if np.issubdtype(dtype, np.complexfloating) else 8192
    assert len(panels) >= 2 and max(panels) <= limit
    assert len(solves) >= 2 and max(solves) <= 7
