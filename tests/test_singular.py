import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from helpers import (
    assert_close,
    duplicated,
    in_turn,
    matrix_operator,
    normal,
    over_regular_solvers,
    over_shapes,
    over_square_solvers,
    over_square_solvers_in_turn,
    pinv,
    pytree_operator,
    rank_deficient,
    SHAPES,
    solve,
    SOLVERS,
    tolerance,
    well_conditioned,
)


def zero_column(shape, dtype=np.float64):
    """A column, or a row when wide, of zeros."""
    matrix = well_conditioned(shape, dtype)
    index = (1,) if shape[0] < shape[1] else (slice(None), 1)
    matrix[index] = 0
    return matrix


def run(matrix, vector, solver, tags, **kwargs):
    return lx.linear_solve(matrix_operator(matrix, tags), vector, solver, **kwargs)


def solvers(pseudo):
    return [row[1:3] for row in SOLVERS if row[-1] is pseudo]


OBLONG = [(shape,) for shape in SHAPES[::2]]
DTYPES = np.float32, np.float64, np.complex128


@in_turn("solver, tags, shape, dtype", solvers(False), OBLONG, DTYPES)
def test_reported(solver, tags, shape, dtype):
    fn = eqx.filter_jit(lambda *args: run(*args, solver, tags, throw=False).result)
    for make_matrix in (duplicated, zero_column, np.zeros):
        matrix, vector = make_matrix(shape, dtype), normal(shape[:1], dtype)
        assert fn(matrix, vector) == lx.RESULTS.singular, make_matrix


@over_regular_solvers
@pytest.mark.xfail(
    strict=False,
    reason="Rounding in r_jj grows with the condition number of the columns before it",
)
def test_nearly_dependent_columns_first(solver, tags):
    a, d = normal((5,)), normal((5,), seed=1)
    matrix = np.stack([a, a + 1e-4 * d, d], axis=1)
    assert np.linalg.matrix_rank(matrix) == 2
    solution = run(matrix, normal((5,), seed=2), solver, tags, throw=False)
    assert solution.result == lx.RESULTS.singular


@in_turn("solver, tags, shape, jit", solvers(False), OBLONG, (False, True))
def test_raised(solver, tags, shape, jit):
    fn = lambda a, b: run(a, b, solver, tags).value
    with pytest.raises(eqx.EquinoxRuntimeError, match="singular"):
        (eqx.filter_jit(fn) if jit else fn)(zero_column(shape), normal(shape[:1]))


@over_regular_solvers
@over_shapes
def test_vmap(solver, tags, shape):
    matrices = jnp.stack([zero_column(shape), well_conditioned(shape)])
    fn = lambda a: run(a, normal(shape[:1]), solver, tags, throw=False)
    solutions = eqx.filter_vmap(fn)(matrices)
    singular = solutions.result == lx.RESULTS.singular
    np.testing.assert_array_equal(singular, [True, False])
    expected = pinv(well_conditioned(shape)) @ normal(shape[:1])
    assert_close(solutions.value[1], expected, 1e-12)


@in_turn("solver, tags, shape, dtype", solvers(True), OBLONG, DTYPES)
def test_pseudoinverse(solver, tags, shape, dtype):
    fn = jax.jit(lambda a, b: solve(pytree_operator(a, tags), b, solver))
    for make_matrix in (rank_deficient, duplicated, zero_column, np.zeros):
        matrix, vector = make_matrix(shape, dtype), normal(shape[:1], dtype)
        expected = pinv(matrix) @ vector
        assert_close(fn(matrix, vector), expected, tolerance(dtype))


@in_turn(
    "solver, tags, shape, value, where",
    [*solvers(False), *solvers(True)],
    OBLONG,
    (np.nan, np.inf),
    ("operator", "vector"),
)
def test_non_finite(solver, tags, shape, value, where):
    matrix, vector = well_conditioned(shape), normal(shape[:1])
    if where == "operator":
        matrix[1, 1], result = value, lx.RESULTS.singular
    else:
        vector[1], result = value, lx.RESULTS.nonfinite_input
    assert run(matrix, vector, solver, tags, throw=False).result == result
    with pytest.raises(eqx.EquinoxRuntimeError):
        run(matrix, vector, solver, tags)


@over_square_solvers_in_turn("dtype", (np.float32, np.complex128))
def test_square(solver, make_operator, dtype):
    makes = duplicated, zero_column, np.zeros, well_conditioned
    matrices = [make((4, 4), dtype) for make in makes]
    vector = normal((4,), dtype)
    fn = lambda a: lx.linear_solve(make_operator(a), vector, solver, throw=False)
    solutions = eqx.filter_jit(eqx.filter_vmap(fn))(jnp.stack(matrices))
    singular = solutions.result == lx.RESULTS.singular
    np.testing.assert_array_equal(singular, [True, True, True, False])
    assert_close(solutions.value[3], pinv(matrices[3]) @ vector, tolerance(dtype))


@over_square_solvers
def test_square_non_finite(solver, make_operator):
    matrix, vector = well_conditioned((4, 4)), normal((4,))
    fn = eqx.filter_jit(
        lambda a, b, throw: lx.linear_solve(make_operator(a), b, solver, throw=throw)
    )
    for target, result, value in (
        (matrix, lx.RESULTS.singular, np.nan),
        (matrix, lx.RESULTS.singular, np.inf),
        (vector, lx.RESULTS.nonfinite_input, np.nan),
        (vector, lx.RESULTS.nonfinite_input, np.inf),
    ):
        kept = target.flat[1]
        target.flat[1] = value
        assert fn(matrix, vector, False).result == result
        with pytest.raises(eqx.EquinoxRuntimeError):
            fn(matrix, vector, True)
        target.flat[1] = kept
