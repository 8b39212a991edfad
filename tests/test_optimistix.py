"""The solvers, and tags, inside optimistix."""

import functools as ft

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest
import scipy.linalg
import scipy.optimize
from helpers import (
    assert_close,
    directional,
    flatten,
    in_turn,
    normal,
    slow,
)
from operators import dense_path_fails

import lineax_ext as lxe


SOLVERS = {
    "QRMultiply": lxe.QRMultiply(),
    "QRMultiply-pivoting": lxe.QRMultiply(pivoting=True),
    "DampedQR": lxe.DampedQR(),
}
over_solvers = pytest.mark.parametrize(
    "linear_solver", SOLVERS.values(), ids=SOLVERS.keys()
)
THETAS = np.array([0.8, 1.0, 1.3])


#
# Least squares, with residuals that do not vanish
#


TIMES, NOISE = np.linspace(0.0, 3.0, 20), 0.1 * normal((20,))


def _residuals(y, theta, np=jnp):
    model = y["amplitude"] * np.exp(-y["rates"][0] * TIMES) + np.sin(
        y["rates"][1] * TIMES
    )
    return model - 2 * np.exp(-theta * TIMES) - np.sin(1.5 * TIMES) - NOISE


def _tree_residuals(y, theta):
    out = _residuals(y, theta)
    return out[:10], {"rest": out[10:].reshape(2, 5)}


GUESS = {"amplitude": np.array(1.0), "rates": np.array([0.5, 1.2])}


def _as_tree(y):
    return {"amplitude": y[0], "rates": y[1:]}


def _scipy_least_squares(theta):
    def jacobian(y):
        decay = np.exp(-y[1] * TIMES)
        columns = decay, -y[0] * TIMES * decay, TIMES * np.cos(y[2] * TIMES)
        return np.stack(columns, axis=1)

    fn = lambda y: _residuals(_as_tree(y), theta, np)
    y = scipy.optimize.least_squares(fn, np.array([1.0, 0.5, 1.2]), jacobian).x
    # Its criteria leave half of the digits; the gradient's root has them all.
    return scipy.optimize.root(lambda y: jacobian(y).T @ fn(y), y, tol=1e-15).x


#
# A root, of a coupled cubic system
#


MATRIX = 4 * np.eye(3) + normal((3, 3))


def _cubic(y, theta):
    return y**3 + MATRIX @ y - theta * np.arange(1.0, 4.0)


def _tree_cubic(y, theta):
    out = _cubic(flatten(y), theta)
    return out[0], out[1:].reshape(2, 1)


def _scipy_root(theta):
    return scipy.optimize.root(_cubic, np.ones(3), theta, tol=1e-15).x


#
# Every caller
#


LEAST_SQUARES = ft.partial(optx.least_squares, _tree_residuals, y0=GUESS)
ROOT_FIND = ft.partial(optx.root_find, _tree_cubic, y0=_as_tree(np.ones(3)))

CALLERS = {
    # Reference solver, caller, method, referee.
    "GaussNewton": (lx.QR(), LEAST_SQUARES, optx.GaussNewton, _scipy_least_squares),
    "LevenbergMarquardt": (
        lx.QR(),
        LEAST_SQUARES,
        optx.LevenbergMarquardt,
        _scipy_least_squares,
    ),
    "Dogleg": (lx.QR(), LEAST_SQUARES, optx.Dogleg, _scipy_least_squares),
    "Newton": (lx.LU(), ROOT_FIND, optx.Newton, _scipy_root),
    "Chord": (lx.LU(), ROOT_FIND, optx.Chord, _scipy_root),
}
# One of each caller without `--slow`; they differ in optimistix's own steps.
FEW = "GaussNewton", "Newton"
over_callers_and_solvers = pytest.mark.parametrize(
    "reference, caller, method, referee, linear_solver",
    [
        pytest.param(
            *row,
            solver,
            id=f"{name}-{solver_name}",
            marks=() if name in FEW and i == 0 else pytest.mark.slow,
        )
        for name, row in CALLERS.items()
        for i, (solver_name, solver) in enumerate(SOLVERS.items())
        # Every caller meets QR; every solver, one of each.
        if name in FEW or i == 0
    ],
)


def _run(caller, method, linear_solver, theta, **kwargs):
    solution = caller(
        solver=method(rtol=1e-6, atol=1e-6, linear_solver=linear_solver),
        args=theta,
        adjoint=optx.ImplicitAdjoint(linear_solver),
        **kwargs,
    )
    return flatten(solution.value), solution.stats["num_steps"]


@ft.cache
def _reference(caller, method, linear_solver):
    run = ft.partial(_run, caller, method, linear_solver)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(run))(THETAS))


@over_callers_and_solvers
def test_callers(reference, caller, method, referee, linear_solver):
    run = ft.partial(_run, caller, method, linear_solver)

    @jax.jit
    @jax.vmap
    def value_and_jacobian(theta):
        jacobian, _ = jax.jacrev(run, has_aux=True)(theta)
        return *run(theta), jacobian

    values, steps, jacobians = value_and_jacobian(THETAS)
    expected, expected_steps = _reference(caller, method, reference)
    np.testing.assert_array_equal(steps, expected_steps)
    assert_close(values, expected, 1e-12)
    # Up to the tolerance of the nonlinear solve.
    assert_close(values, np.stack([referee(theta) for theta in THETAS]), 1e-6)
    gradient = lambda theta: directional(lambda t: referee(theta + t))
    assert_close(jacobians, np.stack([gradient(theta) for theta in THETAS]), 1e-6)


@in_turn(
    "method, linear_solver",
    (optx.GaussNewton, optx.LevenbergMarquardt, optx.Dogleg),
    tuple(SOLVERS.values()),
)
def test_reverse_only(method, linear_solver):
    theta = THETAS[0]
    fn = jax.custom_vjp(lambda y: _tree_residuals(y, theta))
    fn.defvjp(
        lambda y: jax.vjp(lambda y: _tree_residuals(y, theta), y),
        lambda vjp, cotangent: vjp(cotangent),
    )
    caller = ft.partial(optx.least_squares, lambda y, _: fn(y), y0=GUESS)
    value, steps = _run(caller, method, linear_solver, None, options={"jac": "bwd"})
    expected, expected_steps = _reference(LEAST_SQUARES, method, lx.QR())
    assert steps == expected_steps[0]
    assert_close(value, expected[0], 1e-12)
    assert_close(value, _scipy_least_squares(theta), 1e-6)


#
# Tags, at a size where the dense matrix would be 800 MB
#


N = 10_000
SOURCE, WEIGHTS = 1 + normal((N,)) ** 2, normal((N,), seed=1)
TAGS = frozenset({lx.tridiagonal_tag})


def _reaction(u, p, np=jnp):
    neighbours = np.pad(u[1:], (0, 1)) + 0.5 * np.pad(u[:-1], (1, 0))
    return u**3 + 4 * u - neighbours - p * SOURCE


def _tree_reaction(u, p):
    out = _reaction(flatten(u), p)
    return out[:1].reshape(()), out[1:].reshape(3, -1)


def _banded(u):
    upper, lower = np.full(N, -1.0), np.full(N, -0.5)
    return np.stack([upper, 3 * u**2 + 4, lower])


@ft.cache
def _scipy_reaction(p):
    """The solution, and its derivative with respect to p."""
    u = p * SOURCE / 5
    for _ in range(20):
        residual = _reaction(u, p, np)
        u = u - scipy.linalg.solve_banded((1, 1), _banded(u), residual)
    assert np.max(np.abs(residual)) < 1e-13
    return u, scipy.linalg.solve_banded((1, 1), _banded(u), SOURCE)


def _tree_guess(p):
    u = p * SOURCE / 5
    return {"a": u[:4], "b": u[4:].reshape(-1, 2)}


over_structures = pytest.mark.parametrize(
    "fn, guess", ((_reaction, lambda p: p * SOURCE / 5), (_tree_reaction, _tree_guess))
)


AUTO = lxe.AutoStructuredLinearSolver()


@over_structures
@pytest.mark.parametrize("method", (optx.Newton, slow(optx.Chord)))
@pytest.mark.parametrize("known_by", ("tags", "infer_tags", "pattern"))
def test_tridiagonal_root_find(method, fn, guess, known_by):
    @jax.value_and_grad
    def value_and_grad(p):
        y0 = jax.lax.stop_gradient(guess(p))
        if known_by == "pattern":
            solver = method(rtol=1e-12, atol=1e-12, linear_solver=AUTO)
            kwargs = {"adjoint": optx.ImplicitAdjoint(AUTO)}
        else:
            solver = method(rtol=1e-12, atol=1e-12)
            inferred = known_by == "infer_tags"
            kwargs = {"tags": lxe.infer_tags(fn, y0, p) if inferred else TAGS}
        solution = optx.root_find(fn, solver, y0, p, **kwargs)
        return WEIGHTS @ flatten(solution.value)

    with dense_path_fails():
        value, grad = jax.jit(value_and_grad)(1.0)
    u, du = _scipy_reaction(1.0)
    assert_close(value, WEIGHTS @ u, 1e-12)
    assert_close(grad, WEIGHTS @ du, 1e-12)


def test_tridiagonal_root_find_batched():
    ps = (0.5, 1.0, 2.0)

    def run(p):
        solver = optx.Newton(rtol=1e-12, atol=1e-12)
        return optx.root_find(_reaction, solver, p * SOURCE / 5, p, tags=TAGS).value

    with dense_path_fails():
        values, tangents = jax.vmap(lambda p: jax.jvp(run, (p,), (1.0,)))(np.array(ps))
    expected, derivatives = zip(*map(_scipy_reaction, ps))
    assert_close(values, np.stack(expected), 1e-13)
    assert_close(tangents, np.stack(derivatives), 1e-13)


def test_untagged_root_find_is_caught():
    solver = optx.Newton(rtol=1e-12, atol=1e-12)
    with dense_path_fails(), pytest.raises(AssertionError, match="dense path"):
        optx.root_find(_reaction, solver, SOURCE / 5, 1.0)


@pytest.mark.parametrize("jac", (None, slow("bwd")))
@pytest.mark.parametrize("tagged", (False, True))
@over_structures
def test_tridiagonal_jacobian(fn, guess, tagged, jac):
    u = guess(1.0)

    def solve(p):
        tags = () if tagged else lx.tridiagonal_tag
        operator = lx.JacobianLinearOperator(fn, u, p, tags, jac=jac)
        if tagged:
            operator = lx.TaggedLinearOperator(operator, lx.tridiagonal_tag)
        return flatten(lx.linear_solve(operator, fn(u, p)).value)

    with dense_path_fails():
        value, tangent = jax.jvp(jax.jit(solve), (1.0,), (1.0,))
    flat = SOURCE / 5
    for found, vector in ((value, _reaction(flat, 1.0, np)), (tangent, -SOURCE)):
        expected = scipy.linalg.solve_banded((1, 1), _banded(flat), vector)
        assert_close(found, expected, 1e-13)
