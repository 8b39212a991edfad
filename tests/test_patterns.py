"""Patterns: no entry is missed, whatever the program, and few are too many."""

import os
import warnings

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, HealthCheck, settings
from programs import PROGRAMS, run, SHAPE

import lineax_ext as lxe
from lineax_ext._structure import detect as detection, loops
from lineax_ext._structure.colour import colour


COUNT = int(os.environ.get("LINEAX_EXT_PROGRAMS", "20"))
over_programs = settings(
    max_examples=COUNT,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def dense(pattern):
    return pattern.to_scipy().toarray() != 0


def inferred(fn, y):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return dense(lxe.infer_pattern(lambda y, _: fn(y), y))


def missed(program, points=2):
    """What the Jacobian has, and the pattern has not."""
    fn, rng = lambda x: run(program, x), np.random.default_rng(0)
    found = dense(lxe.infer_pattern(lambda x, _: fn(x), jnp.ones(SHAPE)))
    jacobian = np.zeros((6, 6), bool)
    with jax.disable_jit():
        for _ in range(points):
            x = rng.uniform(-1, 1, SHAPE)
            jacobian |= np.asarray(jax.jacfwd(fn)(x)).reshape(6, 6) != 0
    return jacobian & ~found


@over_programs
@given(PROGRAMS)
def test_random_programs(program):
    assert not missed(program).any()


@settings(over_programs, max_examples=max(1, COUNT // 8))
@given(PROGRAMS)
def test_random_programs_with_loops_summed_up(program):
    most = loops._most_equations
    loops._most_equations = 0
    detection._cache.clear()
    try:
        assert not missed(program).any()
    finally:
        loops._most_equations = most
        detection._cache.clear()


#
# Known patterns: not an entry too many
#

N = 12
INDEX = np.random.default_rng(0).permutation(N)
FACTOR = np.triu(np.tril(np.ones((N, N)), 1), -2)
EYE = np.eye(N, dtype=bool)
LOWER = np.tril(np.ones((N, N), bool))
BLOCKS = np.kron(np.eye(3, dtype=bool), np.ones((4, 4), bool))
COLUMNS = np.kron(np.ones((4, 4), bool), np.eye(3, dtype=bool))


def outside(y):
    """A primitive without a rule."""
    out = jax.ShapeDtypeStruct(y.shape, y.dtype)
    return jax.pure_callback(lambda y: y, out, y, vmap_method="sequential")


KNOWN = {
    "stencil": (lambda y: jnp.diff(y, append=0.0), EYE | np.eye(N, k=1, dtype=bool)),
    "cumsum": (lambda y: jnp.cumsum(y) + y, LOWER),
    "reversed": (lambda y: lax.cumsum(y, reverse=True), LOWER.T),
    "matrix": (lambda y: FACTOR @ y, FACTOR != 0),
    "from the right": (lambda y: y @ FACTOR, FACTOR.T != 0),
    "gather": (lambda y: y[INDEX], EYE[INDEX]),
    "batched fft": (lambda y: jnp.fft.fft(y.reshape(3, 4)).real.reshape(-1), BLOCKS),
    "substitution": (
        lambda y: lax.linalg.triangular_solve(
            np.eye(4), y.reshape(4, 3), left_side=True, lower=True
        ).reshape(-1),
        np.kron(np.tril(np.ones((4, 4), bool)), np.eye(3, dtype=bool)),
    ),
    "what does not reach it": (
        lambda y: jnp.concatenate([outside(y[:4]), y[4:]]),
        EYE | (np.arange(N)[:, None] < 4) & (np.arange(N) < 4),
    ),
    "sorted columns": (lambda y: jnp.sort(y.reshape(4, 3), 0).reshape(-1), COLUMNS),
    "any step": (
        lambda y: lax.map(lambda z: z * z.sum(), y.reshape(3, 4)).reshape(-1),
        BLOCKS,
    ),
}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("summed_up", (False, True))
def test_exact(name, summed_up, monkeypatch):
    fn, expected = KNOWN[name]
    if summed_up:
        monkeypatch.setattr(loops, "_most_equations", 0)
    detection._cache.clear()
    structure = jax.ShapeDtypeStruct((N,), np.float64)
    operator = lx.FunctionLinearOperator(fn, structure, closure_convert=False)
    found = dense(detection.detect(operator))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("m, n", ((0, 0), (0, 3), (3, 0), (1, 1)))
def test_sizes(m, n):
    found = lxe.infer_pattern(lambda y, _: jnp.zeros(m) + jnp.sum(y), jnp.ones(n))
    assert found.shape == (m, n) and len(found) == m * n


def test_zero_times_infinity():
    """A zero takes an entry out, infinity does not."""
    factor = np.array([0.0, np.inf, np.nan, 1.0])
    found = inferred(lambda y: factor * y, jnp.ones(4))
    np.testing.assert_array_equal(np.diag(found), [False, True, True, True])


#
# Colours
#


@pytest.mark.parametrize("by", ("columns", "rows"))
def test_colours(by):
    rng = np.random.default_rng(0)
    for shape in ((30, 20), (20, 30), (1, 5), (5, 1), (7, 0), (0, 7)):
        matrix = rng.uniform(size=shape) < 0.1
        pattern = lxe.Pattern.from_scipy(scipy.sparse.coo_array(matrix))
        found = colour(pattern, by)
        lines = matrix if by == "columns" else matrix.T
        for number in range(found.count):
            own = lines[:, found.colours == number]
            assert own.sum(axis=1).max(initial=0) <= 1
        assert found.colours.max(initial=-1) < found.count or lines.shape[1] == 0


#
# check_pattern
#


def test_check_pattern():
    fn = lambda y: jnp.diff(y, append=0.0) + 3 * y**2
    right, diagonal = KNOWN["stencil"][1], EYE
    key, b = jax.random.key(0), np.ones(N)

    @eqx.filter_jit
    def solve(y, jac, pattern):
        operator = lx.JacobianLinearOperator(lambda y, _: fn(y), y, jac=jac)
        operator = lxe.check_pattern(operator, pattern, key=key)
        return lx.linear_solve(operator, b, lx.LU()).value

    y = np.linspace(1, 2, N)
    expected = np.linalg.solve(np.asarray(jax.jacfwd(fn)(y)), b)
    for jac in ("fwd", "bwd"):
        to_pattern = lambda x: lxe.Pattern.from_scipy(scipy.sparse.coo_array(x))
        found = solve(y, jac, to_pattern(right))
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        with pytest.raises(Exception, match="outside of the pattern"):
            solve(y, jac, to_pattern(diagonal)).block_until_ready()
    with pytest.raises(ValueError, match="`check_pattern`.*shape"):
        solve(y, "fwd", lxe.Pattern([0], [0], (N, N - 1)))
