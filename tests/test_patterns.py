"""Patterns: no entry is missed, whatever the program, and few are too many."""

import os
import warnings

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


COUNT = int(os.environ.get("LINEAX_EXT_PROGRAMS", "200"))
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
