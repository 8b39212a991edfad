"""The certified nonlinear regression problems of NIST, from both starts."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
import scipy.optimize
from nist import PROBLEMS

import lineax_ext as lxe


# Flat valleys, ridges of scale, a start where the model overflows.
HARD = (
    "MGH10", "Bennett5", "Thurber", "MGH17", "BoxBOD", "ENSO", "Eckerle4", "Hahn1",
    "MGH09", "Lanczos3", "Rat43", "Nelson",
)  # fmt: skip
over_hard = pytest.mark.parametrize("name", HARD)


@eqx.filter_jit
def fit(residual, start):
    """Compiled once for both starts."""
    solver = lxe.LevenbergMarquardt(rtol=1e-10, atol=1e-10, scale="jacobian")
    return optx.least_squares(residual, solver, start, max_steps=2000).value


@over_hard
@pytest.mark.parametrize("start", (0, 1))
def test_certified_parameters(name, start):
    problem = PROBLEMS[name]
    found = fit(problem.residual, jnp.asarray(problem.starts[start]))
    np.testing.assert_allclose(found, problem.certified, rtol=1e-5)
    squares = float(jnp.sum(problem.residual(found) ** 2))
    np.testing.assert_allclose(squares, problem.residual_sum_of_squares, rtol=1e-8)


def test_the_problems_are_hard():
    """MINPACK, with the same scaling, ends elsewhere."""
    problem = PROBLEMS["BoxBOD"]
    out = scipy.optimize.least_squares(
        lambda y: np.asarray(problem.residual(y)),
        problem.starts[0],
        method="lm",
        x_scale="jac",
    )
    assert np.max(np.abs(out.x / problem.certified - 1)) > 0.1
