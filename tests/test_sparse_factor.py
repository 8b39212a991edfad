"""The sparse direct solver, array by array, against dense NumPy."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from helpers import slow

from lineax_ext import Pattern
from lineax_ext._factor.sparse import (
    analyse,
    determinant,
    factor,
    matching,
    selected_inverse,
    solve,
)
from lineax_ext._factor.sparse.blocks import completed
from lineax_ext._factor.sparse.fronts import Fronts, fronts_of
from lineax_ext._factor.sparse.minimum_degree import minimum_degree, ordered
from lineax_ext._factor.sparse.ordering import dissect
from lineax_ext._factor.sparse.schedule import classify, schedule


def _random(n, seed, dtype=np.float64, density=0.06, dense_rows=0):
    """Unsymmetric, without diagonal dominance, with zeros on the diagonal."""
    rng = np.random.default_rng(seed)
    mask = rng.random((n, n)) < density
    mask[np.arange(n), rng.permutation(n)] = True  # regular, with probability one
    mask[:dense_rows] = True
    matrix = rng.normal(size=(n, n))
    if np.issubdtype(dtype, np.complexfloating):
        matrix = matrix + 1j * rng.normal(size=(n, n))
    return np.where(mask, matrix, 0).astype(dtype)


def _grid(side, dtype=np.float64):
    one = sp.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(side, side))
    eye = sp.eye_array(side)
    matrix = (sp.kron(one, eye) + sp.kron(eye, one)).toarray()
    return (matrix + 0.1 * np.eye(side**2)).astype(dtype)


def _apart(matrix):
    rows, cols = np.nonzero(matrix)
    return Pattern(rows, cols, matrix.shape), jnp.asarray(matrix[rows, cols])


@eqx.filter_jit
def _all(symbolic, values, b):
    factors = factor(symbolic, values)
    solutions = [
        solve(symbolic, factors, b, transpose=transpose, conj=conj)
        for transpose, conj in ((False, False), (True, True))
    ]
    inverse = selected_inverse(symbolic, factors)
    return solutions, determinant(symbolic, factors), inverse, factors.raised


def _check(matrix, *, symmetric=False, tolerance=1e-10):
    pattern, values = _apart(matrix)
    n = len(matrix)
    wide = matrix.astype(np.result_type(matrix.dtype, np.float64))
    symbolic = analyse(pattern, symmetric)
    b = np.random.default_rng(7).normal(size=(n, 2)).astype(matrix.dtype)
    solutions, (sign, logabsdet), inverse, raised = _all(symbolic, values, b)
    for (x, good), a in zip(solutions, (wide, wide.conj().T)):
        assert good.all()
        np.testing.assert_allclose(
            x, np.linalg.solve(a, b), rtol=0, atol=tolerance * _size(a)
        )
    if not raised:
        expected = np.linalg.slogdet(wide)
        np.testing.assert_allclose(sign, expected[0], atol=tolerance)
        np.testing.assert_allclose(logabsdet, expected[1], atol=tolerance * n)
        dense = np.linalg.inv(wide)
        np.testing.assert_allclose(
            inverse,
            dense[pattern.cols, pattern.rows],
            rtol=0,
            atol=tolerance * _size(wide),
        )
    return bool(raised)


def _size(a):
    inverse = np.linalg.inv(a)
    return max(1, np.abs(inverse).max())


@pytest.mark.parametrize("dtype", [slow(np.float64), np.complex128])
def test_random(dtype):
    assert not _check(_random(60, 0, dtype))


def test_dense_rows():
    _check(_random(80, 1, density=0.02, dense_rows=2))


def test_float32():
    _check(_random(60, 3, np.float32), tolerance=2e-3)


def test_grid_in_several_classes():
    symbolic = analyse(_apart(_grid(24))[0])
    assert len(symbolic.schedule.classes) > 1
    assert not _check(_grid(24))


@pytest.mark.parametrize("symmetric", [False, True])
def test_sweep(symmetric):
    """Every front once, after its children, in fewer entries than its class has."""
    symbolic = analyse(_apart(_grid(40))[0], symmetric)
    fronts, sweep = symbolic.fronts, symbolic.sweep
    steps = [step[step >= 0] for g in sweep.groups for step in g.members]
    when = np.empty(len(fronts.parents), np.int64)
    for s, step in enumerate(steps):
        when[step] = s
    every = np.sort(np.concatenate(steps))
    np.testing.assert_array_equal(every, np.arange(len(fronts.parents)))
    child = np.flatnonzero(fronts.parents >= 0)
    assert np.all(when[child] < when[fronts.parents[child]])
    assert len(np.unique(sweep.slots)) == len(fronts.order)
    of_classes = sum(
        c.members.size * c.p * (c.p + 2 * c.u) for c in symbolic.schedule.classes
    )
    assert symbolic.fill < (0.6 if symmetric else 1) * of_classes


@pytest.mark.parametrize("symmetric", [False, True])
def test_places_of_updates(symmetric):
    """Whatever a step reads was left there by the children of its fronts."""
    symbolic = analyse(_apart(_grid(40))[0], symmetric)
    parents, plan = symbolic.fronts.parents, symbolic.schedule
    owner, total = np.full(plan.store, -1), 0
    for c in plan.classes:
        for s, members in enumerate(c.members):
            mine = members[members >= 0]
            read = c.source[c.chunks[s] : c.chunks[s + 1]].ravel()
            found = np.unique(owner[read[read > plan.zeros]])
            children = np.flatnonzero(np.isin(parents, mine))
            children = children[symbolic.fronts.boundaries[children] > 0]
            np.testing.assert_array_equal(found, children)
            places = owner[c.updates[s] :][: c.batch * c.u**2]
            places[:] = np.repeat(members, c.u**2)
            total += len(places)
    assert plan.classes[0].inverse - plan.zeros < 0.7 * total  # places are reused


def test_cholesky():
    assert not _check(_grid(12), symmetric=True)
    scale = np.exp2(np.random.default_rng(0).integers(-20, 20, 144))
    _check(scale[:, None] * _grid(12) * scale, symmetric=True, tolerance=1e-12)
    pattern, values = _apart(_grid(12) - 0.3 * np.eye(144))
    symbolic = analyse(pattern, True)
    (_, good), _ = _all(symbolic, values, np.ones((144, 2)))[0]
    assert not good.any()


def test_hermitian():
    n = 40
    a = _random(n, 5, np.complex128, density=0.03)
    _check(a @ a.conj().T + np.eye(n), symmetric=True)


def test_disconnected():
    blocks = [_random(k, k, density=0.3) for k in (1, 30, 2, 41, 1)]
    _check(np.asarray(sp.block_diag(blocks).todense()))


@pytest.mark.parametrize("n", [0, 1, 2])
def test_tiny(n):
    matrix = np.array([[0.0, 2.0], [3.0, 0.0]]) if n == 2 else 4.0 * np.eye(n)
    if n == 0:
        symbolic = analyse(Pattern([], [], (0, 0)))
        ((x, good), _), determinant, inverse, _ = _all(
            symbolic, jnp.zeros(0), jnp.zeros((0, 1))
        )
        assert x.shape == (0, 1) and good.all()
        assert determinant == (1, 0)
        assert inverse.shape == (0,)
    else:
        _check(matrix)


def test_badly_scaled():
    rng = np.random.default_rng(1)
    rows, cols = (10.0 ** rng.integers(-40, 40, 60) for _ in range(2))
    matrix = _random(60, 0)  # the program of `test_random`
    pattern, values = _apart(matrix)
    scaled = values * rows[pattern.rows] * cols[pattern.cols]
    b = rng.normal(size=(60, 2))
    symbolic = analyse(pattern)
    (x, good), _ = _all(symbolic, scaled, rows[:, None] * b)[0]
    assert good.all()
    np.testing.assert_allclose(x * cols[:, None], np.linalg.solve(matrix, b), rtol=1e-9)


def test_raised_pivots():
    """Leaves that are singular by themselves: what is raised is put right by GCR."""
    rng = np.random.default_rng(3)
    leaves, size, hubs = 6, 24, 8
    n = leaves * size + hubs
    matrix = np.zeros((n, n))
    for k in range(leaves):
        here = slice(k * size, (k + 1) * size)
        block = rng.normal(size=(size, size))
        block[-1] = block[:-1].sum(axis=0)
        matrix[here, here] = block
    matrix[-hubs:], matrix[:, -hubs:] = (
        rng.normal(size=(hubs, n)),
        rng.normal(size=(n, hubs)),
    )
    assert _check(matrix, tolerance=1e-9)


def test_transposed_or_conjugated():
    matrix = _random(30, 4, np.complex128, density=0.1)
    pattern, values = _apart(matrix)
    symbolic = analyse(pattern)
    b = np.random.default_rng(0).normal(size=(30, 1)) + 0j

    @jax.jit
    def fn(values):
        factors = factor(symbolic, values)
        transposed = solve(symbolic, factors, b, transpose=True)
        return transposed, solve(symbolic, factors, b, conj=True)

    for (x, good), a in zip(fn(values), (matrix.T, matrix.conj())):
        assert good.all()
        np.testing.assert_allclose(x, np.linalg.solve(a, b), rtol=1e-10)


@pytest.mark.parametrize("kind", ["grid", "star"])
def test_ordering(kind):
    """That of the two by which it takes less time; SuperLU's is better for a star."""
    if kind == "grid":
        pattern, _ = _apart(_grid(12))
    else:  # of paths
        ends = np.arange(1, 801)
        before = np.where(ends % 40 == 1, 0, ends - 1)
        rows = np.concatenate([ends, before, np.arange(801)])
        cols = np.concatenate([before, ends, np.arange(801)])
        pattern = Pattern(rows, cols, (801, 801))
    graph = matching.graph(pattern.rows, pattern.cols, pattern.shape[0])
    dissected = fronts_of(graph, dissect(graph, 16))
    degrees = fronts_of(graph, *minimum_degree(*ordered(graph)))
    times = [classify(fronts)[1] for fronts in (dissected, degrees)]
    taken = (dissected, degrees)[int(np.argmin(times))]
    assert (taken is dissected) == (kind == "grid")
    np.testing.assert_array_equal(analyse(pattern, True).fronts.order, taken.order)
    assert sorted(taken.order) == list(range(pattern.shape[0]))


def test_too_large_for_32_bits():
    p, u = 32, 50_000
    boundary = [np.arange(p, p + u), np.zeros(0, np.int64)]
    starts, parents = np.array([0, p, p + u]), np.array([1, -1])
    fronts = Fronts(np.arange(p + u), starts, boundary, parents)
    none = np.zeros(0, np.int64)
    with pytest.raises(ValueError, match="32 bits"):
        schedule(fronts, np.array([0, 1]), none, none, False)


@ft.lru_cache
def _jitted(n, seed):
    pattern, values = _apart(_random(n, seed))
    symbolic = analyse(pattern)

    @jax.jit
    def fn(values, b):
        return solve(symbolic, factor(symbolic, values), b)

    return pattern, values, fn


def test_singular():
    pattern, values, fn = _jitted(60, 0)
    b = np.random.default_rng(0).normal(size=(60, 1))
    twice = np.where(pattern.rows == 5, 0, values)
    assert not fn(twice, b)[1].any()
    for bad in (np.nan, np.inf):
        assert not fn(values.at[3].set(bad), b)[1].any()
        assert not fn(values, np.where(np.arange(60)[:, None] == 2, bad, b))[1].any()
    assert fn(values, b)[1].all()
    with pytest.raises(ValueError, match="singular"):
        analyse(Pattern([0, 1, 1], [0, 0, 0], (2, 2)))
    with pytest.raises(ValueError, match="square"):
        analyse(Pattern([0], [0], (1, 2)))


def test_zero_vector():
    _, values, fn = _jitted(60, 0)
    x, good = fn(values, np.zeros((60, 1)))
    assert good.all() and not x.any()


def test_vmap():
    pattern, values, fn = _jitted(60, 0)
    rng = np.random.default_rng(2)
    many = jnp.asarray(rng.normal(size=(2, len(values))))
    b = jnp.asarray(rng.normal(size=(2, 3, 60, 1)))
    x, good = jax.jit(jax.vmap(jax.vmap(fn, (None, 0))))(many, b)
    assert good.all()
    for i in range(2):
        dense = np.zeros((60, 60))
        dense[pattern.rows, pattern.cols] = many[i]
        np.testing.assert_allclose(
            x[i, ..., 0].T, np.linalg.solve(dense, b[i, ..., 0].T), rtol=1e-8
        )


def test_vectors_are_columns():
    """No product of the program is one of a matrix with a single vector."""
    pattern, values = _apart(_random(60, 0))
    symbolic = analyse(pattern)
    factors = jax.eval_shape(ft.partial(factor, symbolic), values)
    over = jax.vmap(ft.partial(solve, symbolic), (None, 0))
    assert "dot_general" in (
        text := str(jax.make_jaxpr(over)(factors, jnp.ones((5, 60, 1))))
    )
    for line in text.splitlines():
        if "dot_general" in line:
            assert line.split(":")[1].split("=")[0].strip().endswith(",5]")


def test_value_semantics():
    a, _ = _apart(_random(60, 0))
    b, _ = _apart(_random(60, 0))
    assert (
        a is not b and analyse(a) == analyse(b) and hash(analyse(a)) == hash(analyse(b))
    )


def test_blocks_are_joined():
    # A chain of poses, as (x, y, θ): what is measured of a place depends on the heading
    # from which it is seen, and what is measured of a heading on headings alone.
    count = 6
    rows, cols, row = [], [], 0
    for i in range(count - 1):
        here, there = 3 * i, 3 * i + 3
        for seen in ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [2, 5]):
            rows += [row] * len(seen)
            cols += [here + k if k < 3 else there + k - 3 for k in seen]
            row += 1
    jacobian = sp.coo_array((np.ones(len(rows)), (rows, cols)), (row, 3 * count))
    gram = sp.csr_array(jacobian.T @ jacobian).toarray() != 0
    np.fill_diagonal(gram, False)
    joined = completed(sp.csr_array(gram.astype(np.int8))).toarray() != 0
    assert np.array_equal(joined, joined.T) and not np.any(np.diagonal(joined))
    assert np.all(joined | ~gram)
    kinds = lambda graph: len(np.unique(graph | np.eye(3 * count, dtype=bool), axis=0))
    # A place and a heading in each pose, and then a pose as a whole.
    assert kinds(gram) == 2 * count and kinds(joined) <= count


def test_a_grid_has_no_blocks():
    graph = _grid(6) != 0
    np.fill_diagonal(graph, False)
    assert completed(sp.csr_array(graph.astype(np.int8))) is None
