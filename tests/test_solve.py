import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from helpers import (
    assert_close,
    badly_scaled,
    in_turn,
    matrix_operator,
    normal,
    OPERATORS,
    over_regular_solvers,
    over_shapes,
    over_solvers,
    over_square_solvers,
    over_square_solvers_in_turn,
    pinv,
    pytree_jacobian_operator,
    pytree_operator,
    SHAPES,
    solve,
    SOLVERS,
    tolerance,
    well_conditioned,
)

import lineax_ext as lxe


modes = {
    "eager": lambda fn: fn,
    "jit of vmap": lambda fn: lambda a, b: jax.jit(jax.vmap(fn))(a[None], b[None])[0],
}


@in_turn(
    "solver, tags, shape, dtype",
    [row[1:3] for row in SOLVERS],
    [(shape,) for shape in SHAPES],
    (np.float32, np.float64, np.complex128),
)
@pytest.mark.parametrize("mode", modes.values(), ids=modes)
def test_matrix(solver, tags, shape, dtype, mode):
    matrix = well_conditioned(shape, dtype)
    vector = normal(shape[:1], dtype)
    fn = lambda a, b: solve(matrix_operator(a, tags), b, solver)
    out = mode(fn)(jnp.asarray(matrix), jnp.asarray(vector))
    assert out.dtype == dtype
    assert_close(out, pinv(matrix) @ vector, tolerance(dtype))


@in_turn(
    "solver, tags, shape, make_operator",
    [(*row[1:3], shape) for row in SOLVERS for shape in SHAPES[::2]],
    OPERATORS,
)
def test_operators(solver, tags, shape, make_operator):
    matrix = well_conditioned(shape, np.complex128)
    vector = normal(shape[:1], np.complex128)
    out = solve(make_operator(matrix, tags), vector, solver)
    assert_close(out, pinv(matrix) @ vector, 1e-12)


@in_turn(
    "solver, tags, shapes",
    [row[1:3] for row in SOLVERS],
    [([(0, 0), (1, 1)],), ([(3, 0), (1, 3)],), ([(0, 3), (3, 1)],)],
)
def test_sizes_0_and_1(solver, tags, shapes):
    for shape in shapes:
        matrix, vector = normal(shape), normal(shape[:1])
        out = solve(matrix_operator(matrix, tags), vector, solver)
        assert_close(out, pinv(matrix) @ vector, 1e-14)


@over_solvers
def test_state(solver, tags):
    matrix = well_conditioned((5, 3), np.complex128)
    operator = pytree_operator(matrix, tags)
    state = solver.init(operator, {})
    for seed in (0, 1):
        vector = normal((5,), np.complex128, seed)
        out = solve(operator, vector, solver, state=state)
        assert_close(out, pinv(matrix) @ vector, 1e-12)


@over_regular_solvers  # a numerical rank does depend on the scaling
@over_shapes
def test_badly_scaled(solver, tags, shape):
    # Scaling the columns of a tall operator, or the rows of a wide one, is harmless.
    matrix, inverse = badly_scaled(shape)
    vector = normal(shape[:1])
    expected = inverse @ vector
    out = solve(matrix_operator(matrix, tags), vector, solver)
    if shape[0] < shape[1]:
        assert_close(out, expected, 1e-12)
    else:
        assert_close(out / expected, np.ones(shape[1]), 1e-12)


@over_solvers
def test_mixed_dtypes(solver, tags):
    matrix = well_conditioned((5, 4))
    vector = normal((5,))

    def fn(x):
        y = matrix @ jnp.concatenate([x["a"].astype(np.float64), x["b"]])
        return y[:2], y[2:].astype(np.float32)

    struct = jax.ShapeDtypeStruct
    structure = {"a": struct((1,), np.float32), "b": struct((3,), np.float64)}
    operator = lx.FunctionLinearOperator(fn, structure, tags)
    rhs = jnp.asarray(vector[:2]), jnp.asarray(vector[2:], np.float32)
    out = lx.linear_solve(operator, rhs, solver).value
    assert jax.tree.map(lambda x: struct(x.shape, x.dtype), out) == structure
    expected = pinv(matrix) @ vector
    assert_close(out["a"], expected[:1], 1e-5)
    assert_close(out["b"], expected[1:], 1e-5)


# By columns, and by rows.
@in_turn("shape, jac", [((300, 230),), ((150, 480),)], (None, "bwd"))
def test_materialised_in_chunks(shape, jac):
    matrix, vector = well_conditioned(shape), normal(shape[:1])
    operator = pytree_jacobian_operator(matrix, jac=jac)
    out = solve(operator, vector, lxe.QRMultiply())
    assert_close(out, pinv(matrix) @ vector, 1e-12)


@over_solvers
@pytest.mark.parametrize("to_complex", (True, False))
def test_between_real_and_complex(solver, tags, to_complex):
    dtypes = (np.float64, np.complex128)
    source, target = dtypes if to_complex else dtypes[::-1]
    fn = lambda x: x.astype(target) if to_complex else x.real
    structure = jax.ShapeDtypeStruct((2,), source)
    operator = lx.FunctionLinearOperator(fn, structure, tags)
    with pytest.raises(ValueError, match=f"`{type(solver).__name__}`.*real.*complex"):
        lx.linear_solve(operator, jnp.ones(2, target), solver)


@over_square_solvers_in_turn("dtype, mode", (np.float32, np.complex128), modes.values())
def test_square(solver, make_operator, dtype, mode):
    matrix, vector = well_conditioned((4, 4), dtype), normal((4,), dtype)
    fn = lambda a, b: solve(make_operator(a), b, solver)
    out = mode(fn)(jnp.asarray(matrix), jnp.asarray(vector))
    assert out.dtype == dtype
    assert_close(out, pinv(matrix) @ vector, tolerance(dtype))


@over_square_solvers
def test_square_and_badly_scaled(solver, make_operator):
    matrix, inverse = badly_scaled((4, 4))
    vector = normal((4,))
    expected = inverse @ vector
    out = solve(make_operator(matrix), vector, solver)
    assert_close(out / expected, np.ones(4), 1e-12)
    if isinstance(solver, lxe.AbstractDampedSolver):
        return  # rows of least squares are weights: of those of 1e-6 nothing is left
    out = solve(make_operator(matrix.T), vector, solver)
    assert_close(out, inverse.T @ vector, 1e-12)
