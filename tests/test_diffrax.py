"""The solvers, and tags, inside diffrax's implicit methods."""

import functools as ft

import diffrax as dfx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.integrate
from helpers import (
    assert_close,
    directional,
    flatten,
    in_turn,
    slow,
)
from operators import dense_path_fails

import lineax_ext as lxe


SOLVERS = {"QRMultiply": lxe.QRMultiply(), "DampedQR": lxe.DampedQR()}


def _solve(method, linear_solver, term, t1, y0, args, **kwargs):
    root_finder = dfx.with_stepsize_controller_tols(dfx.VeryChord)(
        linear_solver=linear_solver
    )
    solution = dfx.diffeqsolve(
        dfx.ODETerm(term),
        method(root_finder=root_finder),
        0.0,
        t1,
        None,
        y0,
        args,
        stepsize_controller=dfx.PIDController(rtol=1e-6, atol=1e-8),
        **kwargs,
    )
    return jax.tree.map(lambda x: x[0], solution.ys), solution.stats["num_steps"]


#
# Small, stiff and dense: Van der Pol's oscillator, damped by a third variable
#


def _stiff(t, y, stiffness, np=jnp):
    u, v, w = y
    return np.stack([v, stiffness * (1 - u**2) * v - u + w, -50.0 * w + u * v])


def _tree_stiff(t, y, stiffness):
    out = _stiff(t, flatten(y), stiffness)
    return {"u": out[0], "vw": out[1:].reshape(2, 1)}


T1, Y0, STIFFNESS = 2.0, np.array([2.0, 0.0, 1.0]), np.array([20.0, 100.0])
TREE_Y0 = {"u": Y0[0], "vw": Y0[1:].reshape(2, 1)}


@ft.cache
def _scipy_stiff(stiffness):
    return scipy.integrate.solve_ivp(
        lambda t, y: _stiff(t, y, stiffness, np),
        (0.0, T1),
        Y0,
        "Radau",
        rtol=1e-12,
        atol=1e-13,
    ).y[:, -1]


@ft.cache
def _batch_of_stiff(linear_solver):
    def run(stiffness):
        y, steps = _solve(
            dfx.Kvaerno5, linear_solver, _tree_stiff, T1, TREE_Y0, stiffness
        )
        return flatten(y), steps

    return jax.jit(jax.vmap(run))(STIFFNESS)


@pytest.mark.parametrize("solver", ("QRMultiply", slow("DampedQR")))
def test_dense(solver):
    expected, expected_steps = _batch_of_stiff(lx.QR())
    # Up to the tolerance of the time steps.
    assert_close(expected, np.stack([_scipy_stiff(x) for x in STIFFNESS]), 1e-7)
    values, steps = _batch_of_stiff(SOLVERS[solver])
    np.testing.assert_array_equal(steps, expected_steps)
    assert_close(values, expected, 1e-11)


# What `DampedQR` does in reverse mode has a sweep of its own (`test_vjp.py`).
@pytest.mark.parametrize(
    "solver, mode", (("QRMultiply", "forward"), slow("DampedQR", "reverse"))
)
def test_dense_gradient(solver, mode):
    forward = mode == "forward"
    adjoint = dfx.ForwardMode() if forward else dfx.RecursiveCheckpointAdjoint()
    weights = np.array([1.0, -2.0, 3.0])

    def fn(stiffness):
        y, _ = _solve(
            dfx.Kvaerno5,
            SOLVERS[solver],
            _tree_stiff,
            T1,
            TREE_Y0,
            stiffness,
            adjoint=adjoint,
            max_steps=100,
        )
        return weights @ flatten(y)

    transform = jax.jacfwd if forward else jax.grad
    found = jax.jit(transform(fn))(STIFFNESS[0])
    expected = directional(lambda t: weights @ _scipy_stiff(STIFFNESS[0] + t), 0.1)
    assert_close(found, expected, 1e-5)


#
# Tridiagonal: a reaction-diffusion equation
#


TAGGED = lxe.TaggedLinearSolver(lx.Tridiagonal(), lx.tridiagonal_tag)
AUTO = lxe.AutoStructuredLinearSolver()


N = 2000
START = np.sin(np.pi * np.linspace(0, 1, N)) + 0.1


def _diffuse(t, u, diffusion, np=jnp):
    right, left = np.pad(u[1:], (0, 1)), np.pad(u[:-1], (1, 0))
    # Not symmetric: an upwind advection term.
    return diffusion * N**2 * (right - 2 * u + left) - N * (u - left) + u - u**3


def _tree_diffuse(t, tree, diffusion):
    out = _diffuse(t, flatten(tree), diffusion)
    return {"a": out[:10].reshape(2, 5), "b": out[10:]}


@ft.cache
def _scipy_diffuse(diffusion):
    return scipy.integrate.solve_ivp(
        lambda t, u: _diffuse(t, u, diffusion, np),
        (0.0, 0.2),
        START,
        "LSODA",
        lband=1,
        uband=1,
        rtol=1e-10,
        atol=1e-12,
    ).y[:, -1]


@in_turn(
    "term, y0, linear_solver",
    (
        (_diffuse, START),
        (_tree_diffuse, {"a": START[:10].reshape(2, 5), "b": START[10:]}),
    ),
    (TAGGED, AUTO),
)
def test_tridiagonal(linear_solver, term, y0):
    with dense_path_fails():
        y, steps = _solve(dfx.Kvaerno5, linear_solver, term, 0.2, y0, 0.05)
    assert steps < 100
    assert_close(flatten(y), _scipy_diffuse(0.05), 1e-6)


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="diffrax 0.7.2 hands `optx.root_find` neither tags nor an adjoint: the "
    "derivative of every stage is a dense LU solve, whatever solves the stage",
)
def test_tridiagonal_gradient():
    def fn(diffusion):
        adjoint = dfx.ForwardMode()
        run = ft.partial(_solve, dfx.Kvaerno5, TAGGED, _diffuse, 0.2, START)
        return run(diffusion, adjoint=adjoint)[0]

    with dense_path_fails():
        _, tangent = jax.jvp(fn, (0.05,), (1.0,))
    expected = directional(lambda t: _scipy_diffuse(0.05 + t), 1e-3)
    assert_close(tangent, expected, 1e-5)


def test_untagged_is_caught():
    with dense_path_fails(), pytest.raises(AssertionError, match="dense path"):
        _solve(dfx.Kvaerno5, lxe.QRMultiply(), _diffuse, 0.2, START, 0.05)


#
# Other structures: a pattern is found, steps and results are the dense ones
#


def _brusselator(t, y, diffusion):
    """Two species, whose Jacobian is a band once they are interleaved."""
    u, v = y["u"], y["v"]

    def spread(x):
        return diffusion * x.size**2 * jnp.diff(jnp.pad(jnp.diff(x), 1))

    return {"u": 1 + u**2 * v - 4 * u + spread(u), "v": 3 * u - u**2 * v + spread(v)}


GRID = np.linspace(0, 1, 60)
MIXTURE = {"u": 1 + np.sin(2 * np.pi * GRID), "v": 3 + 0 * GRID}


# The steps of one stage, and their derivative, without `--slow`.
@pytest.mark.slow
def test_pattern():
    def run(linear_solver, scale):
        y0 = jax.tree.map(lambda x: scale * x, MIXTURE)
        y, steps = _solve(dfx.Kvaerno3, linear_solver, _brusselator, 0.02, y0, 0.05)
        return flatten(y), steps

    def batched(linear_solver):
        return jax.jit(jax.vmap(ft.partial(run, linear_solver)))(np.array([0.9, 1.1]))

    expected, expected_steps = batched(lx.LU())
    with dense_path_fails():
        values, steps = batched(AUTO)
    np.testing.assert_array_equal(steps, expected_steps)
    assert_close(values, expected, 1e-12)


@pytest.mark.slow
def test_pattern_gradient():
    def fn(diffusion, linear_solver):
        y, steps = _solve(
            dfx.ImplicitEuler,
            linear_solver,
            _brusselator,
            0.02,
            MIXTURE,
            diffusion,
            max_steps=256,
        )
        return jnp.sum(flatten(y) ** 2), (flatten(y), steps)

    found, expected = (
        jax.jit(jax.grad(ft.partial(fn, linear_solver=solver), has_aux=True))(0.05)
        for solver in (AUTO, lx.LU())
    )
    for actual, reference in zip(*map(jax.tree.leaves, (found, expected))):
        assert_close(actual, reference, 1e-11)
