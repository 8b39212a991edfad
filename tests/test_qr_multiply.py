"""What `QRMultiply` alone has: pivoting, `rcond`, ranks."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from helpers import (
    assert_close,
    directional,
    equations,
    gradient,
    in_turn,
    matrix_operator,
    normal,
    over_double_dtypes,
    over_shapes,
    pinv as double_pinv,
    rank_deficient,
    SHAPES,
    solve,
    tolerance,
    well_conditioned,
)

import lineax_ext as lxe


PIVOTING = lxe.QRMultiply(pivoting=True)


def pinv(matrix):
    # A fixed cut: finite differences must not change the rank.
    return np.linalg.pinv(matrix, rcond=1e-8)


@pytest.mark.parametrize("rank", (0, 1, 2, 3))
@in_turn(
    "shape, dtype",
    [(shape,) for shape in SHAPES],
    (np.float32, np.float64, np.complex128),
)
def test_rank(shape, dtype, rank):
    matrix = rank_deficient(shape, dtype, rank=rank)
    vector = normal(shape[:1], dtype)
    solution = lx.linear_solve(matrix_operator(matrix), vector, PIVOTING)
    assert solution.stats["rank"] == rank
    assert_close(solution.value, double_pinv(matrix) @ vector, tolerance(dtype))


@pytest.mark.parametrize("shape", ((12, 7), (9, 9), (7, 12)))
def test_graded(shape):
    """Singular values down to 1e-10, all of which count."""
    u, _, vh = np.linalg.svd(normal(shape), full_matrices=False)
    values = np.geomspace(1, 1e-10, min(shape))
    matrix, inverse = u * values @ vh, vh.T / values @ u.T
    b = matrix @ normal(shape[1:])
    solution = lx.linear_solve(matrix_operator(matrix), b, PIVOTING)
    assert solution.stats["rank"] == min(shape)
    assert_close(solution.value, inverse @ b, 1e-5)
    assert_close(matrix @ solution.value, b, 1e-13)


def with_r_diagonal(values, transposed):
    """Orthogonal columns of the given lengths, in no order; and its pseudoinverse."""
    q, _ = np.linalg.qr(normal((5, 3)))
    values = np.asarray(values)
    with np.errstate(divide="ignore"):
        matrix, inverse = q * values, (q / values).T
    return (matrix.T, inverse.T) if transposed else (matrix, inverse)


@pytest.mark.parametrize("transposed", (False, True), ids=("tall", "wide"))
@pytest.mark.parametrize("rcond, rank", ((1e-4, 2), (1e-2, 1), (1e-7, 3), (None, 3)))
def test_rcond(transposed, rcond, rank):
    values = np.array([1e-3, 1, 1e-6])
    matrix, _ = with_r_diagonal(values, transposed)
    kept = np.where(values >= np.sort(values)[-rank], values, np.inf)
    _, inverse = with_r_diagonal(kept, transposed)
    b = normal(matrix.shape[:1])
    solver = lxe.QRMultiply(rcond=rcond, pivoting=True)
    solution = lx.linear_solve(matrix_operator(matrix), b, solver)
    assert solution.stats["rank"] == rank
    assert_close(solution.value, inverse @ b, 1e-12)


def test_rcond_without_pivoting():
    # Relative to its own column: the second is 1e-3 away from the first.
    matrix = np.array([[1.0, 1.0], [0.0, 1e-3], [0.0, 0.0]]) * [1, 1e9]
    result = lambda rcond: (
        lx.linear_solve(
            matrix_operator(matrix), jnp.ones(3), lxe.QRMultiply(rcond), throw=False
        ).result
    )
    assert result(None) == lx.RESULTS.successful
    assert result(9e-4) == lx.RESULTS.successful
    assert result(2e-3) == lx.RESULTS.singular


@pytest.mark.parametrize("rcond", (-1, -1e-3, float("nan")))
@pytest.mark.parametrize("solver", (lxe.QRMultiply, lxe.DampedSVD))
def test_invalid_rcond(solver, rcond):
    with pytest.raises(ValueError, match=f"`{solver.__name__}.*must not be negative"):
        solver(rcond=rcond)


def test_rank_without_pivoting():
    out = lx.linear_solve(matrix_operator(np.eye(2)), jnp.ones(2), lxe.QRMultiply())
    assert out.stats == {}


#
# Derivatives of A⁺ b along A(t) = L(t) R(t), all of rank two
#


def constant_rank(shape, dtype):
    m, n = shape
    factors = normal((m, 2), dtype), normal((2, n), dtype)
    directions = normal((m, 2), dtype, seed=1), normal((2, n), dtype, seed=1)
    return factors, directions, normal((m,), dtype), normal((m,), dtype, seed=1)


def move(x, dx):
    return lambda t: x + t * dx


@over_shapes
@over_double_dtypes
def test_jvp(shape, dtype):
    (l, r), (dl, dr), b, db = constant_rank(shape, dtype)
    fn = lambda l, r, b: solve(matrix_operator(l @ r), b, PIVOTING)
    out, t_out = jax.jit(lambda p, t: jax.jvp(fn, p, t))((l, r, b), (dl, dr, db))
    l_t, r_t, b_t = move(l, dl), move(r, dr), move(b, db)
    assert_close(out, pinv(l @ r) @ b, 1e-12)
    expected = directional(lambda t: pinv(l_t(t) @ r_t(t)) @ b_t(t))
    assert_close(t_out, expected, 1e-8)


@over_shapes
@over_double_dtypes
def test_vjp(shape, dtype):
    (l, r), _, b, _ = constant_rank(shape, dtype)
    cotangent = normal(shape[1:], dtype, seed=2)
    fn = lambda l, r, b: jnp.sum(cotangent * solve(matrix_operator(l @ r), b, PIVOTING))
    grads = jax.jit(jax.grad(lambda *args: fn(*args).real, (0, 1, 2)))(l, r, b)
    loss = lambda l, r, b: (cotangent @ pinv(l @ r) @ b).real
    assert_close(grads[0], gradient(lambda l: loss(l, r, b), l), 1e-8)
    assert_close(grads[1], gradient(lambda r: loss(l, r, b), r), 1e-8)
    assert_close(grads[2], gradient(lambda b: loss(l, r, b), b), 1e-8)


@over_shapes
def test_second_order(shape):
    (l, r), (dl, dr), b, db = constant_rank(shape, np.float64)
    cotangent = normal(shape[1:], seed=2)
    fn = lambda *p: cotangent @ solve(matrix_operator(p[0] @ p[1]), p[2], PIVOTING)
    hvp = lambda *p: jax.jvp(jax.grad(fn), p, (dl, dr, db))[1]
    loss = lambda l, r, b: cotangent @ pinv(l @ r) @ b

    def grad(t):
        r_t, b_t = r + t * dr, b + t * db
        return gradient(lambda l: loss(l, r_t, b_t), l + t * dl)

    assert_close(jax.jit(hvp)(l, r, b), directional(grad), 1e-5)


def test_vmap_over_ranks():
    matrices = np.stack([rank_deficient((5, 3), rank=rank) for rank in (1, 2, 3)])
    b = normal((5,))
    fn = lambda a: lx.linear_solve(matrix_operator(a), b, PIVOTING)
    solutions = eqx.filter_vmap(fn)(jnp.asarray(matrices))
    np.testing.assert_array_equal(solutions.stats["rank"], [1, 2, 3])
    assert_close(solutions.value, pinv(matrices) @ b, tolerance(np.float64))


def test_pivoting_is_of_r_alone():
    init = lambda a: jax.tree.leaves(PIVOTING.init(matrix_operator(a), {}))
    jaxpr = jax.make_jaxpr(init)(well_conditioned((50, 4))).jaxpr
    pivoted = [
        eqn.invars[0].aval.shape
        for eqn in equations(jaxpr)
        if eqn.params.get("pivoting") is True
    ]
    assert pivoted == [(4, 4)]
