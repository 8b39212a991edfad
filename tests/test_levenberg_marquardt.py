"""Levenberg–Marquardt against optimistix's, SciPy and closed forms."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
import scipy.optimize
from helpers import (
    assert_close,
    damped_stack,
    directional,
    duplicated,
    equations,
    flatten,
    in_turn,
    matrix_operator,
    normal,
    over_double_dtypes,
    pytree_function_operator,
    slow,
    unflatten,
    well_conditioned,
)

import lineax_ext as lxe


#
# Problems
#


TIMES = np.linspace(0.0, 3.0, 20)
NOISE = 0.1 * normal((20,))


def exponential(y, theta):
    """Over pytrees, with a residual that does not vanish."""
    model = y["amplitude"] * jnp.exp(-y["rates"][0] * TIMES)
    model = model + jnp.sin(y["rates"][1] * TIMES)
    out = model - 2 * jnp.exp(-theta * TIMES) - jnp.sin(1.5 * TIMES) - NOISE
    return out[:10], {"rest": out[10:].reshape(2, 5)}


def rosenbrock(y, theta):
    return jnp.concatenate([10 * (y[1:] - y[:-1] ** 2), theta - y[:-1]])


def network(y, theta):
    a, b, c = y.reshape(3, 1, -1)
    x = jnp.linspace(-2, 2, 60)[:, None]
    target = jnp.tanh(3 * theta * x) - 0.5 * jnp.tanh(2 * x - 2)
    return jnp.sum(c * jnp.tanh(a * x + b), axis=1) - target[:, 0]


def valley(y, theta):
    return jnp.stack([100 * (y[1] - y[0] ** 3), theta - y[0]])


def underdetermined(y, theta):
    return jnp.stack([jnp.sum(y**2) - 4 * theta, y[0] * y[1] - y[2]])


def one_parameter(y, theta):
    return jnp.exp(y) * jnp.arange(1.0, 4.0) - theta


PROBLEMS = {
    "pytree": (exponential, {"amplitude": 1.0, "rates": np.array([0.5, 1.2])}),
    "square": (rosenbrock, np.array([-1.2, 1.0])),
    "tall": (rosenbrock, np.array([-1.2, 1.0, 0.5, 2.0])),
    "valley": (valley, np.array([-1.2, 1.0])),
    "network": (network, np.array([1.0, 0.5, 0.1, 0.2, 1.0, -1.0])),
    "wide": (underdetermined, np.array([1.0, 0.5, 2.0, -1.0])),
    "one": (one_parameter, np.array([3.0])),
}
PROBLEMS = {k: (fn, jax.tree.map(jnp.asarray, y)) for k, (fn, y) in PROBLEMS.items()}
over_linear_solvers = pytest.mark.parametrize(
    "linear_solver", (lxe.DampedQR(), lxe.DampedSVD()), ids=("DampedQR", "DampedSVD")
)
over_jac = pytest.mark.parametrize("jac", ("fwd", "bwd"))
TOLERANCES = dict(rtol=1e-6, atol=1e-6)
OURS = {
    "direct": lxe.LevenbergMarquardt(**TOLERANCES),
    "direct-SVD": lxe.LevenbergMarquardt(**TOLERANCES, linear_solver=lxe.DampedSVD()),
    "jacobian": lxe.LevenbergMarquardt(**TOLERANCES, scale="jacobian"),
    "indirect": lxe.IndirectLevenbergMarquardt(**TOLERANCES),
}
# The steps of the SVD are also compared with those of QR, one by one.
over_ours = pytest.mark.parametrize(
    "solver",
    [slow(x) if name == "direct-SVD" else x for name, x in OURS.items()],
    ids=OURS.keys(),
)


def fit(fn, solver, y0, theta=1.0, **kwargs):
    kwargs = {"max_steps": 300, "throw": False, **kwargs}
    return optx.least_squares(fn, solver, y0, theta, **kwargs)


def scipy_fit(fn, y0):
    """The solution as a function of theta."""
    flat, unravel = jax.flatten_util.ravel_pytree(y0)
    residual = jax.jit(lambda y, theta: flatten(fn(unravel(y), theta)))
    jacobian = jax.jit(jax.jacfwd(residual))

    def solve(theta=1.0):
        out = scipy.optimize.least_squares(
            lambda y: np.asarray(residual(y, theta)),
            flat,
            lambda y: np.asarray(jacobian(y, theta)),
            xtol=1e-15,
            ftol=1e-15,
            gtol=1e-15,
        )
        return out.x

    return solve


def assert_solves(value, fn, y0):
    if fn is underdetermined:
        assert np.sum(np.asarray(fn(value, 1.0)) ** 2) < 1e-10
    else:
        assert_close(flatten(value), scipy_fit(fn, y0)(), 1e-5)


#
# The steps of optimistix
#


def trace(make, fn, y0, **kwargs):
    """Every point that is tried, and whether the last one was accepted."""
    steps = []

    def record(y, accepted, loss):
        steps.append((np.asarray(flatten(y)), int(accepted), float(loss)))

    def verbose(**figures):
        names = "y", "accepted_steps", "loss_this_step"
        args = [figures[name][1] for name in names]
        jax.debug.callback(record, *args, ordered=True)

    sol = fit(fn, make(verbose=verbose), y0, **kwargs)
    jax.effects_barrier()
    return steps, sol


@ft.cache
def steps_of_theirs(name):
    """Backwards the same but for rounding."""
    return trace(ft.partial(optx.LevenbergMarquardt, **TOLERANCES), *PROBLEMS[name])


KINDS = {
    "DampedQR-fwd": (lxe.DampedQR(), "fwd"),
    "DampedQR-bwd": (lxe.DampedQR(), "bwd"),
    "DampedSVD-fwd": (lxe.DampedSVD(), "fwd"),
}


@in_turn("name, kind", PROBLEMS, KINDS)
def test_steps_of_optimistix(name, kind):
    linear_solver, jac = KINDS[kind]
    make = ft.partial(lxe.LevenbergMarquardt, **TOLERANCES, linear_solver=linear_solver)
    ours, sol = trace(make, *PROBLEMS[name], options=dict(jac=jac))
    theirs, expected = steps_of_theirs(name)
    assert len(ours) == len(theirs) > 3
    assert sol.result == expected.result == optx.RESULTS.successful
    assert sol.stats["num_steps"] == expected.stats["num_steps"]
    for (y, accepted, loss), (y_, accepted_, loss_) in zip(ours, theirs):
        # Rounding grows along a path; it is 1e-13 at first.
        assert_close(y, y_, 1e-8)
        assert accepted == accepted_
        np.testing.assert_allclose(loss, loss_, rtol=1e-6, atol=1e-12)
    assert_solves(sol.value, *PROBLEMS[name])


def test_steps_are_rejected():
    """The above would say little about descents that are always right."""
    steps, _ = steps_of_theirs("valley")
    assert steps[-1][1] < len(steps) - 1


def fit_with_aux(solver, jac):
    fn, y0 = PROBLEMS["pytree"]
    with_aux = lambda y, theta: (fn(y, theta), {"sum": y["amplitude"] + theta})
    return fit(with_aux, solver, y0, has_aux=True, options=dict(jac=jac))


@ft.cache
def fit_with_aux_of_theirs():
    return fit_with_aux(optx.LevenbergMarquardt(**TOLERANCES), "fwd")


@over_jac
def test_has_aux(jac):
    ours = fit_with_aux(lxe.LevenbergMarquardt(**TOLERANCES), jac)
    theirs = fit_with_aux_of_theirs()
    assert ours.stats["num_steps"] == theirs.stats["num_steps"]
    assert_close(ours.aux["sum"], theirs.aux["sum"], 1e-10)


def test_verbose(capfd):
    for make in (optx.LevenbergMarquardt, lxe.LevenbergMarquardt):
        solver = make(**TOLERANCES, verbose=True)
        jax.block_until_ready(fit(*PROBLEMS["square"][:1], solver, np.ones(2) / 2))
        jax.effects_barrier()
    lines = [x for x in capfd.readouterr().out.splitlines() if x.startswith("Step: ")]
    half = len(lines) // 2
    strip = lambda line: [x.split(":")[0] for x in line.split(", ")]
    assert half > 3 and [*map(strip, lines[:half])] == [*map(strip, lines[half:])]
    with pytest.raises(ValueError, match="verbose"):
        lxe.LevenbergMarquardt(**TOLERANCES, verbose=frozenset())  # pyright: ignore


#
# Solutions
#


@in_turn("name, kind", PROBLEMS, ("jacobian", "indirect"))
def test_solution(name, kind):
    """Those of the others are compared where their steps are."""
    sol = fit(PROBLEMS[name][0], OURS[kind], PROBLEMS[name][1], throw=True)
    assert_solves(sol.value, *PROBLEMS[name])


@over_ours
def test_jit_and_vmap(solver):
    fn, y0 = PROBLEMS["tall"]
    starts = y0[None] + 0.3 * normal((3, 4))
    thetas = np.array([0.9, 1.1])
    run = lambda y, theta: (lambda s: (s.value, s.stats["num_steps"]))(
        fit(fn, solver, y, theta)
    )
    nested = jax.jit(jax.vmap(jax.vmap(run, (0, None)), (None, 0)))
    values, steps = nested(starts, thetas)
    single = jax.jit(run)
    for i, theta in enumerate(thetas):
        for j, start in enumerate(starts):
            value, count = single(start, theta)
            assert_close(values[i, j], value, 1e-8)
            assert steps[i, j] == count


@ft.cache
def derivative_of_the_solution():
    return directional(lambda t, solve=scipy_fit(*PROBLEMS["pytree"]): solve(1.0 + t))


@in_turn("kind, transform", OURS, (jax.jacfwd, jax.jacrev))
def test_implicit_derivative(kind, transform):
    fn, y0 = PROBLEMS["pytree"]
    solve = lambda theta: flatten(fit(fn, OURS[kind], y0, theta).value)
    # The implicit function theorem, with the Hessian whole or of Gauss and Newton.
    out = jax.jit(transform(solve))(1.0)
    assert_close(out, derivative_of_the_solution(), 1e-4)


@over_ours
def test_derivative_of_the_steps_is_refused(solver):
    fn, y0 = PROBLEMS["square"]
    adjoint = optx.RecursiveCheckpointAdjoint()
    solve = lambda theta: jnp.sum(fit(fn, solver, y0, theta, adjoint=adjoint).value)
    for transform in (jax.grad, jax.jacfwd):
        with pytest.raises(NotImplementedError, match="ImplicitAdjoint"):
            transform(solve)(1.0)


def test_the_steps_without_a_derivative():
    fn, y0 = PROBLEMS["square"]
    adjoint = optx.RecursiveCheckpointAdjoint()
    sol = fit(fn, OURS["direct"], y0, adjoint=adjoint)
    assert_close(sol.value, np.ones(2), 1e-6)


#
# Dtypes
#


def single_precision(solver):
    fn = lambda y, theta: rosenbrock(y, theta.astype(y.dtype))
    y0 = jnp.asarray([-1.2, 1.0, 0.5], jnp.float32)
    solver = eqx.tree_at(lambda s: (s.rtol, s.atol), solver, (1e-3, 1e-3))
    sol = fit(fn, solver, y0, jnp.asarray(1.0, jnp.float32), throw=True)
    assert sol.value.dtype == jnp.float32
    assert_close(sol.value, np.ones(3), 1e-3)


def mixed_precision(solver):
    def fn(y, theta):
        a, b = y
        return 10 * (b - a.astype(b.dtype) ** 2), 1 - a

    solver = eqx.tree_at(lambda s: (s.rtol, s.atol), solver, (1e-3, 1e-3))
    with jax.numpy_dtype_promotion("standard"):
        sol = fit(fn, solver, (jnp.asarray([-1.2], jnp.float32), jnp.ones(1)))
    a, b = sol.value
    assert a.dtype == jnp.float32 and b.dtype == jnp.float64
    assert_close(np.array([a[0], b[0]]), np.ones(2), 1e-3)


ROOT = np.array([1 + 2j, -0.5 + 1j])


def complex_parameters(solver):
    """Of holomorphic residuals."""
    mixture = normal((4, 2), np.complex128)
    fn = lambda y, theta: mixture @ (y**3 - ROOT**3)
    sol = fit(fn, solver, jnp.asarray(ROOT + 0.3 - 0.2j), throw=True)
    assert_close(sol.value, ROOT, 1e-6)


def complex_residuals_of_real_parameters(solver):
    def fn(y, theta):
        rate, amplitude = y.astype(np.complex128)
        times, noise = TIMES.astype(np.complex128), NOISE.astype(np.complex128)
        return jnp.exp((1j - rate) * times) * amplitude + noise * (1 + 1j)

    sol = fit(fn, solver, jnp.array([0.3, 2.0]), throw=True)
    stacked = lambda y, theta: (lambda r: jnp.concatenate([r.real, r.imag]))(fn(y, 0))
    assert_close(sol.value, scipy_fit(stacked, np.array([0.3, 2.0]))(), 1e-5)


@in_turn(
    "kind, check",
    ("indirect", "direct", "jacobian", "direct-SVD"),
    (
        single_precision,
        mixed_precision,
        complex_parameters,
        complex_residuals_of_real_parameters,
    ),
)
def test_dtypes(kind, check):
    check(OURS[kind])


def test_real_residuals_of_complex_parameters():
    fn = lambda y, theta: jnp.abs(y) ** 2
    with pytest.raises(ValueError, match="Complex parameters need complex residuals"):
        fit(fn, lxe.LevenbergMarquardt(**TOLERANCES), jnp.ones(2, jnp.complex128))


#
# Hard points
#


@in_turn("kind, shape", OURS, [((8, 4),), ((3, 6),)])
def test_rank_deficient_jacobian(kind, shape):
    """Everywhere of rank below n; the least residual is reached all the same."""
    matrix, target = duplicated(shape), normal(shape[:1])
    fn = lambda y, theta: matrix @ (y + 0.1 * y**3) - target
    # Equal where the columns are: then y + y³/10 can be anything in the range.
    sol = fit(fn, OURS[kind], jnp.zeros(shape[1]), throw=True)
    found = np.sum(np.asarray(fn(sol.value, 0)) ** 2)
    projected = target - matrix @ np.linalg.lstsq(matrix, target, rcond=None)[0]
    assert found <= np.sum(projected**2) * (1 + 1e-6) + 1e-12


@over_ours
def test_column_of_zeros(solver):
    fn = lambda y, theta: rosenbrock(y[:2], theta)
    sol = fit(fn, solver, jnp.array([-1.2, 1.0, 7.0]), throw=True)
    assert_close(sol.value, np.array([1.0, 1.0, 7.0]), 1e-6)


@over_ours
@pytest.mark.parametrize("value", (np.nan, slow(np.inf)))
def test_non_finite_trial_point(solver, value):
    """Steps into where the residual does not exist are rejected."""
    tried = []

    def fn(y, theta):
        jax.debug.callback(lambda y: tried.append(float(y[0])), y)
        bad = y[0] > 3.001
        return jnp.where(bad, value, jnp.stack([jnp.arctan(y[0] - 3), y[1] - y[0]]))

    # The Newton step from here leads to 21.
    sol = fit(fn, solver, jnp.array([-1.0, 0.0]), throw=True)
    jax.effects_barrier()
    assert max(tried) > 3.001
    assert_close(sol.value, np.array([3.0, 3.0]), 1e-6)


def not_finite(solver, **kwargs):
    """The result of a fit from where a residual is `value`."""
    fn = lambda y, value: jnp.stack([y[0] * value, y[1]])
    return eqx.filter_jit(lambda value: fit(fn, solver, jnp.ones(2), value, **kwargs))


@ft.cache
def not_finite_of_theirs():
    return not_finite(optx.LevenbergMarquardt(**TOLERANCES))


@over_ours
def test_non_finite_start(solver):
    ours = not_finite(solver)
    for value in (np.nan, np.inf):
        result = ours(jnp.array(value)).result
        expected = not_finite_of_theirs()(jnp.array(value)).result
        assert result == expected != optx.RESULTS.successful


def test_non_finite_start_throws():
    with pytest.raises(RuntimeError):
        not_finite(OURS["direct"], throw=True)(jnp.array(np.nan))


def test_units_do_not_matter():
    """With D, a change of units changes nothing but the units."""
    units = np.array([1e-6, 1.0, 1e5, 1e-2])
    make = ft.partial(lxe.LevenbergMarquardt, **TOLERANCES, scale="jacobian")
    fn, y0 = PROBLEMS["tall"]
    plain, _ = trace(make, fn, y0)
    scaled, _ = trace(make, lambda y, theta: fn(y / units, theta), y0 * units)
    assert len(plain) > 5
    for (y, *_), (z, *_) in zip(plain[:-2], scaled[:-2]):
        assert_close(z / units, y, 1e-8)


#
# What a rejected step costs
#


def descents():
    yield lxe.DampedNewtonDescent()
    yield lxe.DampedNewtonDescent(lxe.DampedSVD())
    yield lxe.ScaledTrustRegionDescent()
    yield lxe.IndirectDampedNewtonDescent()
    yield lxe.IndirectDampedNewtonDescent(linear_solver=lxe.DampedQR())


over_descents = pytest.mark.parametrize("descent", list(descents()), ids=range(5))


def function_info(matrix, residual):
    return optx.FunctionInfo.ResidualJac(jnp.asarray(residual), matrix_operator(matrix))


@eqx.filter_jit
def query(descent, y, f_info, state=None):
    if state is None:
        state = descent.init(y, jax.eval_shape(lambda: f_info))
    return descent.query(y, f_info, state)


def queried(descent, matrix, residual):
    y = jnp.zeros(matrix.shape[1])
    return query(descent, y, function_info(matrix, residual))


@over_descents
def test_a_step_touches_nothing_of_size_m(descent):
    m, n = 1000, 5
    state = queried(descent, normal((m, n)), normal((m,)))
    assert all(x.size < m for x in jax.tree.leaves(state))
    dynamic, static = eqx.partition(state, eqx.is_array)
    step = lambda dynamic: descent.step(jnp.array(0.1), eqx.combine(dynamic, static))[0]
    eqns = list(equations(jax.make_jaxpr(step)(dynamic).jaxpr))
    assert len(eqns) > 10
    for eqn in eqns:
        for x in (*eqn.invars, *eqn.outvars):
            assert x.aval.size < m


def test_columns_are_made_on_acceptance_only():
    n, columns = 2, []

    @jax.custom_jvp
    def fn(y):
        return valley(y, 1.0)

    @fn.defjvp
    def _(primals, tangents):
        out, t_out = jax.jvp(lambda y: valley(y, 1.0), primals, tangents)
        jax.debug.callback(lambda x: columns.append(1), t_out)
        return out, t_out

    accepted = []

    def verbose(**figures):
        jax.debug.callback(
            lambda x: accepted.append(int(x)), figures["accepted_steps"][1]
        )

    solver = lxe.LevenbergMarquardt(**TOLERANCES, verbose=verbose)
    sol = fit(lambda y, _: fn(y), solver, PROBLEMS["valley"][1])
    jax.effects_barrier()
    steps = int(sol.stats["num_steps"])
    assert max(accepted) + 1 < steps
    # One product for the search of each attempt, n for each point that is accepted.
    assert len(columns) <= steps + n * (max(accepted) + 2)


#
# The descents
#


over_descent_shapes = pytest.mark.parametrize("shape", ((9, 4), slow((4, 4)), (3, 6)))


def steps(descent, matrix, residual, step_sizes):
    state = queried(descent, matrix, residual)
    step = eqx.filter_jit(descent.step)
    for step_size in step_sizes:
        out, result = step(jnp.array(step_size), state)
        assert result == optx.RESULTS.successful
        yield step_size, np.asarray(out)


@over_descent_shapes
@over_linear_solvers
def test_direct_step(shape, linear_solver):
    matrix, residual = normal(shape), normal(shape[:1])
    sizes = 1e-30, 1e-3, 1.0, 1e6
    ours = steps(lxe.DampedNewtonDescent(linear_solver), matrix, residual, sizes)
    theirs = steps(optx.DampedNewtonDescent(), matrix, residual, sizes)
    for (step_size, step), (_, expected) in zip(ours, theirs):
        assert_close(step, expected, 1e-9)
        if step_size > 1e-20:
            stack = np.concatenate([matrix, np.eye(shape[1]) / np.sqrt(step_size)])
            rhs = np.concatenate([residual, np.zeros(shape[1])])
            assert_close(step, -np.linalg.lstsq(stack, rhs, rcond=None)[0], 1e-6)


@over_descent_shapes
@over_linear_solvers
def test_indirect_step(shape, linear_solver):
    """The step has its length, and is the damped step of some λ."""
    matrix, residual = normal(shape), normal(shape[:1])
    descent = lxe.IndirectDampedNewtonDescent(
        linear_solver=linear_solver, lambda_0=123.0
    )
    newton = -np.linalg.pinv(matrix) @ residual
    sizes = 1e-12, 1e-3, 0.3, 0.97, 1.0, 5.0
    for step_size, step in steps(descent, matrix, residual, sizes):
        length = min(step_size, 1) * np.linalg.norm(newton)
        np.testing.assert_allclose(np.linalg.norm(step), length, rtol=1.01e-2)
        if step_size >= 1:
            assert_close(step, newton, 1e-8)
            continue
        # Jᵀ (J p + r) = −λ p, for one λ ≥ 0.
        gradient = matrix.T @ (matrix @ step + residual)
        damping = -(gradient @ step) / (step @ step)
        assert damping >= 0
        norm = np.linalg.norm(matrix, 2)
        assert_close(gradient, -damping * step, 1e-8 * max(1, norm**2 / damping))


def test_indirect_step_with_a_root_finder():
    matrix, residual = normal((9, 4)), normal((9,))
    steps = []
    for root_finder in (None, optx.Newton(rtol=1e-10, atol=1e-10)):
        descent = lxe.IndirectDampedNewtonDescent(root_finder=root_finder)
        state = queried(descent, matrix, residual)
        steps.append(eqx.filter_jit(descent.step)(jnp.array(0.5), state)[0])
    newton = np.linalg.norm(np.linalg.pinv(matrix) @ residual)
    np.testing.assert_allclose(np.linalg.norm(steps[1]), 0.5 * newton, rtol=1e-8)
    assert_close(steps[0], steps[1], 2e-2)


@pytest.mark.parametrize("shape", ((9, 4), slow((4, 4)), (3, 6), (100, 80)))
@over_double_dtypes
@over_linear_solvers
def test_path(linear_solver, shape, dtype):
    """Every point of it is a damped solution, for pytrees as well."""
    matrix, vector = well_conditioned(shape, dtype), normal(shape[:1], dtype)

    @jax.jit
    def solution(damping):
        operator = pytree_function_operator(matrix)
        rhs = unflatten(jnp.asarray(vector), operator.out_structure())
        return flatten(linear_solver.path(operator, rhs)(damping))

    u, sigma, vh = np.linalg.svd(matrix, full_matrices=False)
    for damping in (0.0, 1e-16, 1.0, 1e16, 1e300):
        found = solution(damping)
        weights = 1 / (sigma + damping / sigma)
        assert_close(found, vh.conj().T @ (weights * (u.conj().T @ vector)), 1e-10)


def test_default_path():
    class Solver(lxe.DampedQR):
        path = lxe.AbstractDampedSolver.path

    matrix, vector = normal((9, 4)), normal((9,))
    solution = eqx.filter_jit(Solver().path(matrix_operator(matrix), vector))
    for damping in (0.1, 10.0):
        rhs = np.concatenate([vector, np.zeros(4)])
        expected = np.linalg.lstsq(damped_stack(matrix, damping), rhs, rcond=None)[0]
        assert_close(solution(damping), expected, 1e-12)


def scaled(matrix, residual, y, state=None):
    descent = lxe.ScaledTrustRegionDescent()
    return descent, query(descent, y, function_info(matrix, residual), state)


def test_scale_is_the_running_maximum():
    columns = np.array([[3.0, 0.0, 1.0], [1.0, 0.0, 2.0], [0.5, 0.1, 0.0]])
    # As MINPACK: a zero norm counts as 1 at first, and is kept.
    expected = np.array([[3.0, 1.0, 1.0], [3.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    state = None
    for norms, scale in zip(columns, expected):
        _, state = scaled(np.diag(norms), np.ones(3), jnp.zeros(3), state)
        np.testing.assert_array_equal(state.problem.scale, scale)


@pytest.mark.parametrize("magnitude", (1e-200, 1e200))
def test_scale_neither_under_nor_overflows(magnitude):
    _, state = scaled(magnitude * normal((5, 3)), normal((5,)), jnp.ones(3))
    expected = magnitude * np.linalg.norm(normal((5, 3)), axis=0)
    np.testing.assert_allclose(state.problem.scale, expected, rtol=1e-14)


@over_descent_shapes
def test_scaled_trust_region(shape):
    """Its radius at the first point, and at the second; its step in either."""
    matrix = normal(shape) * np.geomspace(1e-3, 1e3, shape[1])
    residual = 1e3 * normal(shape[:1])
    scale = np.linalg.norm(matrix, axis=0)
    points = np.stack([normal(shape[1:], seed=1), normal(shape[1:], seed=2)]) / scale
    radii = [
        np.linalg.norm(scale * points[0]),
        np.linalg.norm(scale * (points[1] - points[0])),
    ]
    state, step_of = None, eqx.filter_jit(lxe.ScaledTrustRegionDescent().step)
    for y, radius in zip(points, radii):
        _, state = scaled(matrix, residual, jnp.asarray(y), state)
        for factor in (1.0, 0.1):
            step, result = step_of(jnp.array(factor), state)
            assert result == optx.RESULTS.successful
            z = scale * np.asarray(step)
            np.testing.assert_allclose(np.linalg.norm(z), factor * radius, rtol=1.01e-2)
            # A damped step: (J D⁻¹)ᵀ (J p + r) = −λ D p.
            gradient = (matrix / scale).T @ (matrix @ np.asarray(step) + residual)
            damping = -(gradient @ z) / (z @ z)
            assert damping > 0
            assert_close(gradient, -damping * z, 1e-8)
    # Far inside of the region, the Newton step.
    _, state = scaled(matrix, 1e-6 * residual, jnp.asarray(points[0]), None)
    step, _ = step_of(jnp.array(1.0), state)
    newton = -np.linalg.pinv(matrix / scale, rcond=1e-14) @ (1e-6 * residual) / scale
    assert_close(step, newton, 1e-8)
    # The next region is no wider than five Newton steps.
    _, state = scaled(matrix, 1e-6 * residual, jnp.asarray(points[1]), state)
    np.testing.assert_allclose(
        state.problem.unit, 5 * np.linalg.norm(scale * newton), rtol=1e-8
    )


def search_step(reduction, predicted, first=False, step_size=0.5):
    """Of r = 2 with J = −1, and a step for which the model predicts `predicted`."""
    search = lxe.GainRatioTrustRegion()
    # ½ (4 − (2 − p)²) = `predicted`, and ½ (4 − r₁²) = `reduction`.
    p = 2 - np.sqrt(4 - 2 * predicted)
    r_eval = np.sqrt(np.asarray(4 - 2 * reduction))
    info, info_eval = (
        optx.FunctionInfo.ResidualJac(jnp.array([r]), matrix_operator(-np.ones((1, 1))))
        for r in (2.0, r_eval)
    )
    state = search.init(jnp.zeros(1), info)
    state = eqx.tree_at(lambda s: s.step_size, state, jnp.array(step_size))
    size, accept, result, _ = search.step(
        jnp.array(first), jnp.zeros(1), jnp.array([p]), info, info_eval, state
    )
    assert result == optx.RESULTS.successful
    return float(size), bool(accept)


@pytest.mark.parametrize(
    "ratio, size, accept",
    (
        (1.0, 2.0, True),
        (0.8, 2.0, True),
        (0.7, 1.0, True),
        (0.3, 1.0, True),
        (0.2, 0.5, True),
        (1e-3, 0.5, True),
        (1e-5, 0.25, False),
        (np.nan, 0.05, False),
        (-np.inf, 0.05, False),
        (-1e3, 0.05, False),
    ),
)
def test_gain_ratio(ratio, size, accept):
    found = search_step(ratio * 0.1, 0.1)
    np.testing.assert_allclose(found[0], size)
    assert found[1] == accept
    assert search_step(ratio * 0.1, 0.1, first=True)[1]


def test_gain_ratio_parabola():
    """The minimum of the parabola through φ(0), φ'(0) and φ(1), φ(t) = ½ r(t p)²."""
    reduction, predicted = -0.05, 0.1
    p = 2 - np.sqrt(4 - 2 * predicted)
    slope = -2 * p
    # φ(t) = φ(0) + slope t + (−reduction − slope) t²
    minimum = -slope / (2 * (-reduction - slope))
    found, accept = search_step(reduction, predicted, step_size=1.0)
    assert not accept
    np.testing.assert_allclose(found, np.clip(minimum, 0.1, 0.5))


#
# Errors
#


MAKERS = (
    lxe.DampedNewtonDescent,
    lxe.IndirectDampedNewtonDescent,
    lxe.ScaledTrustRegionDescent,
    ft.partial(lxe.LevenbergMarquardt, 1e-6, 1e-6),
    ft.partial(lxe.IndirectLevenbergMarquardt, 1e-6, 1e-6),
)
over_makers = pytest.mark.parametrize("make", MAKERS)


@over_makers
def test_wrong_arguments(make):
    with pytest.raises(ValueError, match="needs a solver that can damp.*QRMultiply"):
        make(linear_solver=lxe.QRMultiply())
    with pytest.raises(ValueError, match="chooses the damping"):
        make(linear_solver=lxe.DampedQR(damping=1.0))


@pytest.mark.parametrize("make", MAKERS[-2:])
def test_wrong_scale(make):
    with pytest.raises(ValueError, match="`scale` must be `None` or 'jacobian'"):
        make(scale="columns")


@over_descents
def test_not_for_minimisers(descent):
    operator = matrix_operator(np.eye(2))
    f_info = optx.FunctionInfo.EvalGradHessian(jnp.array(0.0), jnp.ones(2), operator)
    with pytest.raises(ValueError, match="are for least squares"):
        descent.init(jnp.ones(2), jax.eval_shape(lambda: f_info))


def test_a_solver_without_a_spectrum():
    class Solver(lxe.DampedQR):
        spectrum = lxe.AbstractDampedSolver.spectrum

    solver = lxe.IndirectLevenbergMarquardt(1e-6, 1e-6, linear_solver=Solver())
    with pytest.raises(NotImplementedError, match="`Solver` has no `spectrum`"):
        fit(rosenbrock, solver, jnp.ones(2))
