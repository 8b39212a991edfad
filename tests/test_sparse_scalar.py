"""LU entry by entry, against dense NumPy."""

import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import slow

from lineax_ext import Pattern
from lineax_ext._factor import sparse
from lineax_ext._factor.sparse import scalar
from lineax_ext._structure.pattern import full


WAYS = ((False, False), (True, False), (False, True), (True, True))


def random(n, seed, dtype: Any = np.float64, dominant=False):
    """Unsymmetric, with zeros on the diagonal unless it is dominant."""
    rng = np.random.default_rng(seed)
    mask = rng.random((n, n)) < 3 / n
    mask[np.arange(n), rng.permutation(n)] = True  # regular, with probability one
    matrix = rng.normal(size=(n, n)).astype(dtype)
    if np.issubdtype(dtype, np.complexfloating):
        matrix = matrix + 1j * rng.normal(size=(n, n))
    matrix = np.where(mask, matrix, 0)
    return matrix + dominant * np.diag(np.sum(np.abs(matrix), axis=1) + 1)


def tree(n, seed):
    """Symmetric positive definite: that of a graph without circles."""
    rng = np.random.default_rng(seed)
    matrix = 0.1 * np.eye(n)
    for i in range(1, n):
        parent, weight = rng.integers(0, i), rng.uniform(0.5, 1)
        matrix[i, parent] = matrix[parent, i] = -weight
        matrix[[i, parent], [i, parent]] += weight
    return matrix


def apart(matrix):
    rows, cols = np.nonzero(matrix)
    return Pattern(rows, cols, matrix.shape), jnp.asarray(matrix[rows, cols])


def planned(pattern, symmetric=False):
    plan = scalar.list_of(pattern, symmetric)
    assert plan is not None
    return plan


@eqx.filter_jit
def solutions(plan, values, b):
    factors = sparse.factor(plan, values)
    found = [sparse.solve(plan, factors, b, transpose=t, conj=c) for t, c in WAYS]
    return found, factors.sound


def check(matrix, symmetric=False, tolerance=1e-10, columns=1):
    pattern, values = apart(matrix)
    b = np.random.default_rng(7).normal(size=(len(matrix), columns))
    b = b.astype(matrix.dtype)
    found, sound = solutions(planned(pattern, symmetric), values, b)
    for (x, good), (transpose, conj) in zip(found, WAYS):
        a = matrix.astype(np.result_type(matrix.dtype, np.float64))
        a = a.T if transpose else a
        expected = np.linalg.solve(np.conj(a) if conj else a, b)
        assert good.all()
        error = np.max(np.abs(np.asarray(x) - expected)) / np.max(np.abs(expected))
        assert error < tolerance
    return bool(sound)


@pytest.mark.parametrize("dtype", (slow(np.float64), np.complex128))
def test_random(dtype):
    columns = 1 if dtype == np.complex128 else 3
    assert not check(random(60, 0, dtype), columns=columns)  # it was refined
    # There was no need.
    assert check(random(60, 1, dtype, dominant=True), columns=columns)


def test_float32():
    check(random(60, 2, np.float32, dominant=True), tolerance=1e-4)


def test_definite():
    matrix = tree(60, 4)
    assert check(matrix, symmetric=True)
    pattern, values = apart(matrix)
    failed = jax.jit(
        lambda values: sparse.factor(planned(pattern, True), values).failed
    )
    assert failed(-values)


@pytest.mark.parametrize("n", (0, 1, 2))
def test_tiny(n):
    values = jnp.arange(1.0, n**2 + 1)
    ((x, good), *_), _ = solutions(planned(full(n, n)), values, jnp.ones((n, 1)))
    a = np.asarray(values).reshape(n, n)
    np.testing.assert_allclose(x, np.linalg.solve(a, np.ones((n, 1))), rtol=1e-12)
    assert good.all()


def test_badly_scaled():
    """Scales of rows and columns change no digit, and no flag."""
    matrix = random(60, 5)
    rows, cols = 2.0 ** np.random.default_rng(6).integers(-120, 120, (2, 60))
    pattern, values = apart(matrix)
    b = np.random.default_rng(8).normal(size=(60, 1))
    plan = planned(pattern)
    scaled = values * rows[pattern.rows] * cols[pattern.cols]
    ((x, good), *_), _ = solutions(plan, scaled, b * rows[:, None])
    assert good.all()
    expected = np.linalg.solve(matrix, b)
    np.testing.assert_allclose(x * cols[:, None], expected, rtol=1e-9)


def test_raised_pivot():
    """Zero, by its value: of a matrix that is far from singular."""
    matrix = random(40, 9, dominant=True)
    matrix[3] = matrix[:, 3] = 0
    matrix[3, 7] = matrix[7, 3] = 1
    rows, cols = np.nonzero(matrix + np.eye(40))
    pattern = Pattern(rows, cols, matrix.shape)
    values, b = jnp.asarray(matrix[rows, cols]), np.ones((40, 1))
    ((x, good), *_), sound = solutions(planned(pattern), values, b)
    assert good.all() and not sound
    np.testing.assert_allclose(x, np.linalg.solve(matrix, b), rtol=1e-9)


@pytest.mark.parametrize("bad", (0.0, np.nan, np.inf))
def test_singular(bad):
    pattern, values = apart(random(40, 10, dominant=True))
    own = pattern.rows == 5 if bad == 0 else (pattern.rows == 5) & (pattern.cols == 5)
    values = jnp.where(own, bad, values)
    b = np.random.default_rng(11).normal(size=(40, 1))
    found, _ = solutions(planned(pattern), values, b)
    assert not any(good.any() for _, good in found)


def test_vmap():
    """Over values, over vectors, and over both."""
    matrices = [random(30, 11, dominant=True) * scale for scale in (1, 2.0)]
    pattern, first = apart(matrices[0])
    plan = planned(pattern)
    values = jnp.stack([first, 2 * first])
    b = np.random.default_rng(12).normal(size=(2, 3, 30))

    def solve(values, b):
        x, good = sparse.solve(plan, sparse.factor(plan, values), b[:, None])
        return x[:, 0], good[0]

    x, good = jax.jit(jax.vmap(jax.vmap(solve, (None, 0))))(values, b)
    assert good.all()
    for i, matrix in enumerate(matrices):
        np.testing.assert_allclose(x[i].T, np.linalg.solve(matrix, b[i].T), rtol=1e-10)


def test_vmap_of_vmap():
    """Hermitian matrices, as many at a time as fit in a register, and one is left."""
    rng = np.random.default_rng(15)
    first = np.tril(random(20, 16, np.complex128), -1)
    first = first + first.conj().T + np.diag(np.sum(np.abs(first), axis=0) + 20)
    pattern, values = apart(first)
    scales = rng.uniform(1, 2, (2, 3))
    plan = planned(pattern, True)
    b = rng.normal(size=(20, 1)) + 1j

    def solve(values):
        factors = sparse.factor(plan, values)
        x, good = sparse.solve(plan, factors, jnp.asarray(b), transpose=True)
        return x, good[0] & ~factors.failed

    many = scales[..., None] * np.asarray(values)
    x, good = jax.jit(jax.vmap(jax.vmap(solve)))(many)
    assert good.all()
    expected = np.linalg.solve(first.T, b) / scales[..., None, None]
    np.testing.assert_allclose(x, expected, rtol=1e-12)


def test_one_triangle():
    """Of a dense matrix: divisions, and products of pairs."""
    n, below = 10, np.arange(10)
    assert planned(full(n, n)).operations == np.sum(1 + below + below**2)
    half = below * (below + 1) // 2
    assert planned(full(n, n), True).operations == np.sum(1 + below + half)


@pytest.mark.parametrize(
    "symmetric, dtype",
    (
        (False, np.complex128),
        slow(False, np.float64),
        slow(True, np.complex128),
        (True, np.float64),
    ),
)
def test_several_a_step(symmetric, dtype):
    """Blocks of a border: columns that are eliminated with several others, some entries
    a step, fewer at the ends; and many matrices."""
    rng = np.random.default_rng(15)
    n, border = 42, 12
    matrix = np.zeros((n, n), dtype)
    for start in range(0, n - border, 10):
        block = np.append(np.arange(start, start + 10), np.arange(n - border, n))
        entries = rng.normal(size=(2, len(block), len(block)))
        entries = entries[0] + 1j * entries[1]
        real = not np.iscomplexobj(matrix)
        matrix[np.ix_(block, block)] += entries.real if real else entries
    matrix = matrix + matrix.conj().T if symmetric else matrix
    matrix += 100 * np.eye(n)
    assert check(matrix, symmetric)
    pattern, values = apart(matrix)
    plan = planned(pattern, symmetric)
    # A column, a place, and four rows; or one.
    narrow = planned(apart(tree(50, 14))[0])
    assert plan.sweep.shape[1] == 6 and narrow.sweep.shape[1] == 3
    b = jnp.asarray(rng.normal(size=(n, 1)).astype(dtype))
    scales = np.arange(1.0, 6).astype(dtype)
    x, good = jax.jit(
        jax.vmap(lambda s: sparse.solve(plan, sparse.factor(plan, s * values), b))
    )(jnp.asarray(scales))
    expected = np.linalg.solve(matrix, b) / scales[:, None, None]
    assert good.all()
    np.testing.assert_allclose(x, expected, rtol=1e-11)


def test_in_place():
    """A substitution is two loops, of which no step copies the vector."""
    n = 60
    pattern, values = apart(10 * np.eye(n) + np.tri(n, k=4) * np.tri(n, k=4).T)
    plan = planned(pattern)
    factors = sparse.factor(plan, values)
    substitute = jax.jit(lambda s, b: scalar.substitute(plan, s, b))
    text = substitute.lower(factors, jnp.ones((n, 1))).compile().as_text()
    assert plan.sweep.shape[1] == 6 and text.count(" while(") == 2
    assert not re.search(rf"f64\[{n + 4},1\]\S* copy\(", text)


def test_which_way(monkeypatch):
    """Little that fills in, on a CPU; all else by fronts."""
    assert isinstance(sparse.plan(apart(tree(100, 13))[0]), scalar.Scalar)
    ends = np.random.default_rng(17).integers(0, 1000, (2, 4000))
    rows, cols = np.append(ends, np.tile(np.arange(1000), (2, 1)), axis=1)
    # Most of it fills in.
    assert scalar.list_of(Pattern(rows, cols, (1000, 1000))) is None
    every = np.arange(250_001)
    many = Pattern(every, every, (250_001, 250_001))
    assert scalar.list_of(many) is None  # of more entries than stay in a cache
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    sparse.plan.cache_clear()
    assert isinstance(sparse.plan(apart(tree(100, 13))[0]), sparse.Symbolic)
    sparse.plan.cache_clear()
    with pytest.raises(ValueError, match="is singular"):
        scalar.list_of(Pattern([0, 1, 1], [0, 0, 0], (2, 2)))


def test_value_semantics():
    pattern, _ = apart(tree(50, 14))
    again = Pattern(pattern.rows.copy(), pattern.cols.copy(), pattern.shape)
    plan = planned(pattern)
    scalar.list_of.cache_clear()
    assert plan == planned(again) and hash(plan) == hash(planned(again))
    assert plan != planned(pattern, True)
    # A tree fills in nowhere: an operation a pivot, and two a branch.
    assert plan.operations == 50 + 2 * 49
