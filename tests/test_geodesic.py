"""Geodesic acceleration, against NumPy, and where it saves steps."""

import equinox as eqx
import jax
import jax.numpy as jnp
import nist
import numpy as np
import optimistix as optx
import pytest
from helpers import slow

import lineax_ext as lxe


SOLVERS = {
    "qr": lxe.DampedQR(),
    "svd": lxe.DampedSVD(),
    "sparse": lxe.DampedSparse(),
}


def decay(y, t):
    return {"r": y["height"] * jnp.exp(-y["rate"] * t) - 1 / (1 + t)}


def accelerated(y, t, damping, scale):
    """δ, and whether it is bent, by NumPy."""
    height, rate = y
    e = np.exp(-rate * t)
    r, jacobian = height * e - 1 / (1 + t), np.stack([e, -height * t * e], axis=1)
    d = np.linalg.norm(jacobian, axis=0) if scale == "jacobian" else np.ones(2)
    stack = np.concatenate([jacobian, np.sqrt(damping) * np.diag(d)])
    solve = lambda b: np.linalg.lstsq(stack, np.concatenate([b, [0, 0]]), rcond=None)[0]
    v = -solve(r)
    a = -solve(-2 * v[0] * v[1] * t * e + height * t**2 * e * v[1] ** 2)
    bent = 2 * np.linalg.norm(d * a) <= 0.75 * np.linalg.norm(d * v)
    return v + a / 2 if bent else v, bent


def first_step(fn, solver, y, args):
    """y + δ"""
    fn_aux = lambda y, args: (fn(y, args), None)
    struct = jax.eval_shape(fn, y, args)

    @jax.jit
    def step(y):
        state = solver.init(fn_aux, y, args, {}, struct, None, frozenset())
        _, state, _ = solver.step(fn_aux, y, args, {}, state, frozenset())
        return state.y_eval

    return step(y)


# The first step has λ = 1, and λ = 0 within the first trust region.
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    "scale, damping, start, bends",
    (
        (None, 1, (1.2, 0.9), True),
        slow(None, 1, (1.0, 0.1), False),
        ("jacobian", 0, (1.2, 0.9), True),
        ("jacobian", 0, (0.9, 0.7), False),
    ),
)
def test_one_step(solver, scale, damping, start, bends):
    t = np.linspace(0, 3, 7)
    y = {"height": jnp.array(start[0]), "rate": jnp.array(start[1])}
    solver = lxe.LevenbergMarquardt(
        1e-8, 1e-8, linear_solver=SOLVERS[solver], scale=scale, geodesic=True
    )
    step, bent = accelerated(np.array(start), t, damping, scale)
    assert bent == bends
    found = first_step(decay, solver, y, jnp.asarray(t))
    found = np.array([found["height"], found["rate"]]) - start
    np.testing.assert_allclose(found, step, rtol=1e-8)


def test_fewer_residuals_than_parameters():
    fn = lambda y, _: jnp.stack([y[0] * y[1] - 1, y[1] * y[2] ** 2])
    y = np.array([1.0, 0.8, 0.5])
    r = np.array([y[0] * y[1] - 1, y[1] * y[2] ** 2])
    jacobian = np.array([[y[1], y[0], 0], [0, y[2] ** 2, 2 * y[1] * y[2]]])
    inner = np.linalg.inv(jacobian @ jacobian.T + np.eye(2))  # λ = 1
    v = -jacobian.T @ (inner @ r)
    second = [2 * v[0] * v[1], 4 * y[2] * v[1] * v[2] + 2 * y[1] * v[2] ** 2]
    a = -jacobian.T @ (inner @ second)
    assert 2 * np.linalg.norm(a) < 0.75 * np.linalg.norm(v)
    solver = lxe.LevenbergMarquardt(1e-8, 1e-8, geodesic=True)
    found = first_step(fn, solver, jnp.asarray(y), None)
    np.testing.assert_allclose(found, y + v + a / 2, rtol=1e-12)


@pytest.mark.parametrize("scale", (None, "jacobian"))
def test_curved_valleys_take_fewer_steps(scale):
    problem = nist.PROBLEMS["Bennett5"]
    starts = jnp.asarray(np.stack(problem.starts))

    def fit(y, geodesic):
        solver = lxe.LevenbergMarquardt(1e-10, 1e-10, scale=scale, geodesic=geodesic)
        sol = optx.least_squares(problem.residual, solver, y, max_steps=2000)
        return sol.value, sol.stats["num_steps"]

    _, plain = jax.jit(lambda y: fit(y, False))(starts[0])
    y, steps = jax.jit(lambda y: fit(y, True))(starts[0])
    assert 5 * steps < plain
    np.testing.assert_allclose(y, problem.certified, rtol=1e-6)
    batch, _ = jax.jit(jax.vmap(lambda y: fit(y, True)))(starts)
    np.testing.assert_allclose(batch, [problem.certified] * 2, rtol=1e-6)


@pytest.mark.parametrize("scale", (None, slow("jacobian")))
def test_sparse_is_dense(scale):
    def valley(y, _):
        return jnp.concatenate([10 * (y[1:] - y[:-1] ** 2), 1 - y])

    def fit(y, linear_solver):
        solver = lxe.LevenbergMarquardt(
            1e-9, 1e-9, linear_solver=linear_solver, scale=scale, geodesic=True
        )
        sol = optx.least_squares(valley, solver, y, max_steps=9, throw=False)
        return sol.value

    start = jnp.tile(jnp.array([-1.2, 1.0]), 6)
    fit = eqx.filter_jit(fit)
    dense, sparse = fit(start, lxe.DampedQR()), fit(start, lxe.DampedSparse())
    np.testing.assert_allclose(sparse, dense, rtol=1e-7)
    starts = jnp.stack([start, 0.9 * start])
    batch = jax.vmap(lambda y: fit(y, lxe.DampedSparse()))(starts)
    np.testing.assert_allclose(batch[0], dense, rtol=1e-7)
    np.testing.assert_allclose(batch[1], fit(starts[1], lxe.DampedQR()), rtol=1e-7)


def test_what_it_does_not_take():
    solver = lxe.LevenbergMarquardt(1e-8, 1e-8, geodesic=True)
    y = jnp.ones(2)
    with pytest.raises(ValueError, match="geodesic"):
        optx.least_squares(lambda y, _: y**2, solver, y, options=dict(jac="bwd"))
    with pytest.raises(ValueError, match="geodesic"):
        optx.least_squares(lambda y, _: y.astype(jnp.float32) ** 2, solver, y)
