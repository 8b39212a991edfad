"""The ways in which `DampedSparse` factorises, and what its solves find."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest
import scipy.sparse as sp
from helpers import assert_close, badly_scaled, normal

import lineax_ext as lxe
from lineax_ext._factor import sparse
from lineax_ext._factor.sparse.bordered import factor_bordered, substitute
from lineax_ext._factor.sparse_gram import _blocks, gram, sums_of_products
from lineax_ext._factor.sparse_normal import (
    factorise,
    normal as normal_equations,
    solve,
)
from lineax_ext._solver.damped_sparse import as_sparse, way


def with_border(dtype, seed=0):
    """Blocks of one to three unknowns, each beside some of five others; in any order,
    Hermitian, the diagonal one."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 4, 30)
    starts = 5 + np.cumsum(sizes) - sizes
    n = 5 + int(sizes.sum())
    there = np.eye(n, dtype=bool)
    there[:5, :5] = True
    for start, size in zip(starts, sizes):
        own = slice(start, start + size)
        there[own, own] = True
        there[own, rng.choice(5, 2, replace=False)] = True
    there[starts[-1] :, :5] = False  # one that nothing is beside
    draw = rng.normal(size=(2, n, n))
    matrix = np.where(there | there.T, draw[0] + 1j * draw[1], 0)
    if not np.issubdtype(dtype, np.complexfloating):
        matrix = np.real(matrix)
    matrix = 0.03 * (matrix + matrix.conj().T)
    np.fill_diagonal(matrix, 1)
    order = rng.permutation(n)
    return matrix[np.ix_(order, order)].astype(dtype)


@pytest.mark.parametrize("dtype", (np.float64, np.complex128))
def test_a_border(dtype):
    matrix, b = with_border(dtype), normal((63,), dtype)
    b = np.resize(b, len(matrix))
    i, j = np.nonzero(matrix)
    plan = sparse.bordered(lxe.Pattern(i, j, matrix.shape))
    assert plan is not None and len(plan.border) <= 5
    assert np.sort(plan.members[plan.members < len(matrix)]).size == len(matrix) - len(
        plan.border
    )

    @jax.jit
    def solved(values, b):
        factors = factor_bordered(plan, values, jnp.ones(len(b)), jnp.zeros(len(b)))
        return substitute(plan, factors, b), factors.raised, factors.failed

    x, raised, failed = solved(matrix[i, j][i >= j], b)
    assert not raised and not failed
    assert_close(x, np.linalg.solve(matrix, b), 1e-12)


def test_a_singular_border():
    # Two columns of the border are the same: the corner is factorised all the same.
    a = np.eye(40, 4)
    a = np.concatenate([a, a[:, :1]], axis=1) + 0.0
    a[4:, :] += np.kron(np.ones((9, 1)), np.eye(4, 5))
    a[:, 4] = a[:, 0]
    matrix = np.block([[np.eye(40), 0.1 * a], [0.1 * a.T, np.eye(5)]])
    matrix[40:, 40:] = (0.1 * a).T @ (0.1 * a)
    i, j = np.nonzero(matrix + np.eye(45))
    plan = sparse.bordered(lxe.Pattern(i, j, matrix.shape))
    assert plan is not None
    ones, zeros = jnp.ones(45), jnp.zeros(45)
    factors = jax.jit(lambda v: factor_bordered(plan, v, ones, zeros))(
        matrix[i, j][i >= j]
    )
    assert factors.raised and not factors.failed


def test_no_border():
    i = np.arange(5000)
    rows, cols = np.append(i, [i[1:], i[:-1]]), np.append(i, [i[:-1], i[1:]])
    assert sparse.bordered(lxe.Pattern(rows, cols, (5000, 5000))) is None
    none = np.zeros(0, np.int64)
    assert sparse.bordered(lxe.Pattern(none, none, (0, 0))) is None


#
# Views of points, from cameras that nothing holds
#

CAMERAS, POINTS, VIEWS = 6, 60, 5


def views(seed=0):
    rng = np.random.default_rng(seed)
    point = np.repeat(np.arange(POINTS), VIEWS)
    camera = (rng.integers(0, CAMERAS, POINTS)[:, None] + np.arange(VIEWS)) % CAMERAS
    camera = camera.ravel()

    def residuals(y, seen):
        cameras, points = y[: 3 * CAMERAS], y[3 * CAMERAS :]
        turn, x, z = cameras.reshape(-1, 3)[camera].T
        a, b = points.reshape(-1, 2)[point].T
        c, s = jnp.cos(turn), jnp.sin(turn)
        return 10 * (c * a + s * b + x) / (8 + z + c * b - s * a) - seen

    truth = 0.1 * rng.normal(size=3 * CAMERAS), rng.normal(size=2 * POINTS)
    truth = np.concatenate(truth)
    seen = residuals(jnp.asarray(truth), 0.0)
    seen = jnp.asarray(seen + 0.01 * rng.normal(size=len(point)))
    return residuals, jnp.asarray(truth + 0.05 * rng.normal(size=truth.size)), seen


def test_views():
    residuals, y0, seen = views()
    pattern = lxe.infer_pattern(residuals, y0, seen)
    plan, _ = way(pattern)
    assert isinstance(plan, sparse.Bordered) and len(plan.border) == 3 * CAMERAS
    solver = lxe.LevenbergMarquardt(
        1e-8, 1e-8, linear_solver=lxe.DampedSparse(pattern), scale="jacobian"
    )
    found = jax.jit(lambda y: optx.least_squares(residuals, solver, y, seen).value)(y0)
    y, jacobian = y0, jax.jit(jax.jacfwd(residuals))
    for _ in range(12):  # Gauss and Newton, the shortest step where nothing holds
        y = y - np.linalg.lstsq(jacobian(y, seen), residuals(y, seen), rcond=1e-9)[0]
    expected = 0.5 * float(jnp.sum(residuals(y, seen) ** 2))
    found = 0.5 * float(jnp.sum(residuals(found, seen) ** 2))
    assert abs(found - expected) <= 1e-8 * expected


def test_ways():
    i = np.arange(600)
    chain = lxe.Pattern(np.append(i[:-1], i[:-1]), np.append(i[:-1], i[1:]), (600, 600))
    assert isinstance(way(chain)[0], sparse.Scalar)


@pytest.mark.parametrize("dtype", (np.float64, np.complex128))
@pytest.mark.parametrize("kind", ("fronts", "entries", "border"))
def test_each_way(kind, dtype):
    rng = np.random.default_rng(0)
    there = rng.random((90, 30)) < 0.1
    there[:30] |= np.eye(30, dtype=bool)
    there[:, 4:] &= np.cumsum(there[:, 4:], axis=1) == 1  # a diagonal, with a border
    rows, cols = np.nonzero(there)
    pattern = lxe.Pattern(rows, cols, (90, 30))
    of = gram(pattern)
    plan = {
        "fronts": lambda: sparse.analyse(of, symmetric=True),
        "entries": lambda: sparse.entry_by_entry(of, True),
        "border": lambda: sparse.bordered(of),
    }[kind]()
    assert plan is not None
    values, b, scale = (
        normal((len(pattern),), dtype),
        normal((90,), dtype),
        rng.random(30),
    )

    @jax.jit
    def solved(values, b):
        root, d = jnp.sqrt(0.3), jnp.asarray(scale)
        made = factorise(normal_equations(values, pattern, plan), root, d)
        z, _, good = solve(made, (b, jnp.zeros(30, dtype)))
        return z / made.lengths.astype(dtype), good

    x, good = solved(values, b)
    matrix = np.zeros((90, 30), dtype)
    matrix[pattern.rows, pattern.cols] = values
    stack = np.concatenate([matrix, np.sqrt(0.3) * np.diag(scale)])
    expected = np.linalg.lstsq(stack, np.append(b, np.zeros(30)), rcond=None)[0]
    assert good
    assert_close(x, expected, 1e-11)


@pytest.mark.slow
def test_uneven_lanes():
    # Fits of 2 to 8 steps, together and one by one.
    residuals = lambda u, data: (jnp.exp(u) - data, 2 * jnp.diff(u, 2))
    data = jnp.asarray(np.exp(np.sin(np.linspace(0, 6, 40))))
    solver = lxe.LevenbergMarquardt(
        1e-9, 1e-9, linear_solver=lxe.DampedSparse(), scale="jacobian"
    )

    def fitted(u):
        fit = optx.least_squares(residuals, solver, u, data)
        return fit.value, fit.stats["num_steps"]

    start = jnp.stack([jnp.zeros(40), jnp.full(40, 4.0), jnp.sin(jnp.arange(40.0))])
    value, steps = jax.jit(jax.vmap(fitted))(start)
    alone, alone_steps = jax.jit(lambda x: jax.lax.map(fitted, x))(start)
    assert_close(value, alone, 1e-10)
    assert len(set(np.asarray(steps).tolist())) > 1
    np.testing.assert_array_equal(steps, alone_steps)


#
# Rows of very different sizes, undamped
#


def solved(matrix, b):
    rows, cols = np.nonzero(matrix)
    pattern = lxe.Pattern(rows, cols, matrix.shape)
    values = jnp.asarray(matrix[pattern.rows, pattern.cols])
    operator = lxe.SparseMatrixLinearOperator(values, pattern)
    solve = lambda b: lx.linear_solve(operator, b, lxe.DampedSparse(), throw=False)
    out = jax.jit(solve)(jnp.asarray(b))
    return out.value, out.result == lx.RESULTS.successful


def test_scaled_rows():
    rng = np.random.default_rng(0)
    matrix = sp.random_array((80, 40), density=0.08, rng=rng).toarray() + np.eye(80, 40)
    matrix = 10.0 ** rng.uniform(-6, 6, (80, 1)) * matrix
    assert np.linalg.cond(matrix / np.linalg.norm(matrix, axis=0)) > 1e5
    expected = rng.normal(size=40)
    x, good = solved(matrix, matrix @ expected)
    assert good
    assert_close(x, expected, 1e-9)


def test_rows_scaled_beyond_all_digits():
    matrix, inverse = badly_scaled((4, 4))
    b = normal((4,))
    x, good = solved(matrix.T, b)
    wrong = np.max(np.abs(x - inverse.T @ b)) > 1e-3 * np.max(np.abs(x))
    assert not (good and wrong)


@pytest.mark.parametrize("dtype", (np.float64, np.complex128))
def test_products_by_blocks(dtype):
    """Two rows of an observation see six unknowns of one of ten, and three of one of
    700; but not all of them, and the last rows see fewer, or none."""
    rng = np.random.default_rng(0)
    count = 3500
    camera, point = rng.integers(0, 10, count), np.arange(count) % 700
    columns = np.concatenate(
        [6 * camera[:, None] + np.arange(6), 60 + 3 * point[:, None] + np.arange(3)], 1
    )
    columns = np.repeat(columns, 2, axis=0)
    there = np.ones(columns.shape, bool)
    there[::2, 4] = there[1::2, 5] = there[-1] = there[-2, 2:] = False
    rows = np.broadcast_to(np.arange(2 * count)[:, None], columns.shape)
    pattern = lxe.Pattern(rows[there], columns[there], (2 * count, 60 + 2100))
    blocks = _blocks(pattern)
    assert blocks is not None and blocks.entries.shape == (2, 9, count)
    values = rng.normal(size=(2, len(pattern)))
    values = values[0] + 1j * values[1] if dtype == np.complex128 else values[0]
    found = jax.jit(lambda v: sums_of_products(v, pattern))(jnp.asarray(values))
    matrix = sp.csr_array((values, (pattern.rows, pattern.cols)), pattern.shape)
    expected = (matrix.conj().T @ matrix).toarray()
    lower = gram(pattern)
    low = lower.rows >= lower.cols
    assert_close(found, expected[lower.rows[low], lower.cols[low]], 1e-13)
    assert np.count_nonzero(np.tril(expected)) <= low.sum()


def test_one_colour_after_the_other():
    """Six colours of so many rows that all at once would leave the caches."""
    m, n = 30_000, 60
    at = np.arange(m)[:, None] % np.array([5, 6, 7, 8, 9, 10]) + np.arange(0, 60, 10)
    pattern = lxe.Pattern(np.repeat(np.arange(m), 6), at.ravel(), (m, n))
    fn = lambda y, _: jnp.prod(jnp.sin(y[at]), axis=1)
    y = np.random.default_rng(0).uniform(0.5, 2.5, n)
    read = lambda y: as_sparse(lx.JacobianLinearOperator(fn, y), pattern).values
    if jax.default_backend() == "cpu" and jax.device_count() == 1:
        assert "scan" in str(jax.make_jaxpr(read)(y))
    expected = np.prod(np.sin(y[at]), axis=1)[:, None] / np.tan(y[at])
    assert_close(jax.jit(read)(y), expected.ravel(), 1e-13)
