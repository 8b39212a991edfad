"""The solver table, matrices, operators and NumPy referees that the tests share."""

import itertools

import jax
import jax.extend.core
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
import pytest

import lineax_ext as lxe


#
# The table. A new solver is one row.
#

SOLVERS = (
    # name, solver, tags of the operator, rank-deficient operators allowed
    ("QRMultiply", lxe.QRMultiply(), (), False),
    ("QRMultiply-pivoting", lxe.QRMultiply(pivoting=True), (), True),
    ("DampedQR", lxe.DampedQR(), (), False),
    ("DampedSVD", lxe.DampedSVD(), (), True),
    ("AutoStructured", lxe.AutoStructuredLinearSolver(), (), False),
)


def _over(rows):
    return pytest.mark.parametrize(
        "solver, tags", [pytest.param(s, tags, id=name) for name, s, tags, _ in rows]
    )


over_solvers = _over(SOLVERS)
over_regular_solvers = _over([row for row in SOLVERS if not row[-1]])

# Solvers of square operators of one class, which a function makes of a matrix.
SQUARE_SOLVERS = (
    (
        "BlockTridiagonal",
        lxe.BlockTridiagonal(),
        lambda matrix: block_tridiagonal_operator(matrix, 2),
    ),
    ("SparseLU", lxe.SparseLU(), lambda matrix: sparse_operator(matrix)),
    # Of a wide matrix it knows no least-norm solution.
    ("DampedSparse", lxe.DampedSparse(), lambda matrix: sparse_operator(matrix)),
)

over_square_solvers = pytest.mark.parametrize(
    "solver, make_operator",
    [pytest.param(solver, make, id=name) for name, solver, make in SQUARE_SOLVERS],
)


def over_square_solvers_in_turn(names, *sweeps):
    solvers = [row[1:] for row in SQUARE_SOLVERS]
    return in_turn(f"solver, make_operator, {names}", solvers, *sweeps)


def slow(*values, **kwargs):
    """A parameter of a sweep that is left out without `--slow`."""
    return pytest.param(*values, marks=pytest.mark.slow, **kwargs)


# Without `--slow` not where derivatives take ten seconds to compile.
over_square_solvers_derived = pytest.mark.parametrize(
    "solver, make_operator",
    [
        (slow if name == "DampedSparse" else pytest.param)(*row, id=name)
        for name, *row in SQUARE_SOLVERS
    ],
)


SHAPES = ((5, 3), (4, 4), (3, 5))
SHAPE_IDS = ("tall", "square", "wide")
# Square takes the path of tall.
over_shapes = pytest.mark.parametrize(
    "shape", (SHAPES[0], slow(SHAPES[1]), SHAPES[2]), ids=SHAPE_IDS
)
# Where square adds nothing to tall.
over_oblong_shapes = pytest.mark.parametrize("shape", SHAPES[::2], ids=SHAPE_IDS[::2])


def in_turn(names, *sweeps, first=0, more=()):
    """One in k of the product of some sweeps; k is the length of the shortest one.

    Of three sweeps and more every pair of values is met. Of two, each value is met by
    one of the other's, and by another with `--slow`. And the rows of `more`.
    """
    least = min(map(len, sweeps))
    turns = 2 if len(sweeps) == 2 else 1
    rows = []
    for chosen in itertools.product(*map(enumerate, sweeps)):
        values = [x if isinstance(x, tuple) else (x,) for _, x in chosen]
        turn = (sum(i for i, _ in chosen) + first) % least
        if turn < turns:
            rows.append((slow if turn else pytest.param)(*sum(values, ())))
    # A solver by its class; `None` leaves it to pytest.
    name = lambda x: (
        type(x).__name__ if isinstance(x, lx.AbstractLinearSolver) else None
    )
    return pytest.mark.parametrize(names, [*rows, *more], ids=name)


def over_solvers_in_turn(first, names=None, *sweeps):
    """Of the oblong shapes, one without `--slow`: the next solver has the other.

    And so with the further sweeps over `names`.
    """
    solvers = [(solver, tags) for _, solver, tags, _ in SOLVERS]
    shapes = [(shape,) for shape in SHAPES[::2]]
    names = ", ".join(filter(None, ("solver, tags, shape", names)))
    return in_turn(names, solvers, shapes, *sweeps, first=first)


# What is said without a dtype is tested in float64.
over_dtypes = pytest.mark.parametrize(
    "dtype", (np.float32, slow(np.float64), np.complex128)
)
over_double_dtypes = pytest.mark.parametrize("dtype", (slow(np.float64), np.complex128))


def tolerance(dtype):
    """For a problem with a condition number of ten, as `well_conditioned` is."""
    return {4: 2e-5, 8: 1e-12}[np.finfo(dtype).dtype.itemsize]


#
# Matrices
#


def normal(shape, dtype=np.float64, seed=0):
    rng = np.random.default_rng((seed, *shape))
    out = rng.standard_normal(shape)
    if np.issubdtype(dtype, np.complexfloating):
        out = out + 1j * rng.standard_normal(shape)
    return out.astype(dtype)


def _from_singular_values(shape, values, dtype, seed):
    u, _, vh = np.linalg.svd(
        normal(shape, np.promote_types(dtype, np.float64), seed), full_matrices=False
    )
    return (u * values @ vh).astype(dtype)


def well_conditioned(shape, dtype=np.float64, seed=0):
    """Singular values from 0.5 to 5."""
    values = np.geomspace(5, 0.5, min(shape))
    return _from_singular_values(shape, values, dtype, seed)


def rank_deficient(shape, dtype=np.float64, seed=0, rank=2):
    values = np.where(np.arange(min(shape)) < rank, np.geomspace(5, 1, min(shape)), 0)
    return _from_singular_values(shape, values, dtype, seed)


def duplicated(shape, dtype=np.float64):
    """A column twice, or a row when wide: the most visible of linear dependences."""
    matrix = well_conditioned(shape, dtype)
    columns = matrix.T if shape[0] < shape[1] else matrix
    columns[:, -1] = columns[:, 0]
    return matrix


def badly_scaled(shape, dtype=np.float64, seed=0):
    """`(matrix, pseudoinverse)`, with columns (rows, when wide) from 1e-6 to 1e6."""
    m, n = shape
    matrix = well_conditioned(shape, dtype, seed)
    inverse = pinv(matrix)
    scale = np.geomspace(1e-6, 1e6, min(shape))
    if m < n:
        return scale[:, None] * matrix, inverse / scale
    return matrix * scale, inverse / scale[:, None]


#
# Operators, each with the given matrix once its inputs and outputs are flattened
#


def _struct(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype)


def _in_struct(n, dtype):
    return {"a": _struct((n // 2,), dtype), "b": _struct((n - n // 2, 1), dtype)}


def _out_struct(m, dtype):
    return _struct((), dtype), [_struct((1, m - 1), dtype)]


def flatten(tree):
    return jnp.concatenate([jnp.reshape(x, -1) for x in jtu.tree_leaves(tree)])


def unflatten(vector, structure):
    leaves, treedef = jtu.tree_flatten(structure)
    stops = np.cumsum([leaf.size for leaf in leaves])[:-1]
    split = jnp.split if isinstance(vector, jax.Array) else np.split
    pieces = split(vector, stops)
    return treedef.unflatten(
        jnp.asarray(x.reshape(s.shape)) for x, s in zip(pieces, leaves)
    )


def matrix_operator(matrix, tags=()):
    return lx.MatrixLinearOperator(jnp.asarray(matrix), tags)


def block_tridiagonal_operator(matrix, k, tags=()):
    """Reads three block diagonals, which is all there is of a 2k×2k matrix."""
    count = matrix.shape[0] // k
    blocks = matrix.reshape(count, k, count, k).swapaxes(1, 2)
    i = np.arange(count)
    bands = blocks[i, i], blocks[i[1:], i[:-1]], blocks[i[:-1], i[1:]]
    return lxe.BlockTridiagonalLinearOperator(*map(jnp.asarray, bands), tags)


def sparse_operator(matrix, tags=()):
    """With an entry everywhere."""
    rows, columns = np.indices(matrix.shape).reshape(2, -1)
    pattern = lxe.Pattern(rows, columns, matrix.shape)
    values = jnp.asarray(matrix.reshape(-1))
    return lxe.SparseMatrixLinearOperator(values, pattern, tags)


def function_operator(matrix, tags=()):
    matrix = jnp.asarray(matrix)
    struct = _struct(matrix.shape[1:], matrix.dtype)
    return lx.FunctionLinearOperator(lambda x: matrix @ x, struct, tags)


def jacobian_operator(matrix, tags=(), jac=None):
    matrix = jnp.asarray(matrix)
    at = jnp.linspace(-1, 1, matrix.shape[1]).astype(matrix.dtype)
    fn = lambda x, args: matrix @ (x + (x - at) ** 2)
    return lx.JacobianLinearOperator(fn, at, None, tags, jac=jac)


def pytree_operator(matrix, tags=()):
    m, n = matrix.shape
    row, column = _in_struct(n, matrix.dtype), _out_struct(m, matrix.dtype)

    def split(x, structure, axis):
        leaves, treedef = jtu.tree_flatten(structure)
        stops = np.cumsum([leaf.size for leaf in leaves])[:-1]
        split = jnp.split if isinstance(x, jax.Array) else np.split
        return treedef.unflatten(split(x, stops, axis))

    def blocks(out, rows):
        block = lambda x, to: jnp.asarray(x.reshape(*out.shape, *to.shape))
        return jtu.tree_map(block, split(rows, row, 1), row)

    rows = split(matrix, column, 0)
    return lx.PyTreeLinearOperator(jtu.tree_map(blocks, column, rows), column, tags)


def pytree_function_operator(matrix, tags=()):
    m, n = matrix.shape
    matrix = jnp.asarray(matrix)
    fn = lambda x: unflatten(matrix @ flatten(x), _out_struct(m, matrix.dtype))
    return lx.FunctionLinearOperator(fn, _in_struct(n, matrix.dtype), tags)


def pytree_jacobian_operator(matrix, tags=(), jac=None):
    inner = jacobian_operator(matrix)
    m, n = matrix.shape

    def fn(x, args):
        return unflatten(inner.fn(flatten(x), None), _out_struct(m, matrix.dtype))

    at = unflatten(inner.x, _in_struct(n, matrix.dtype))
    return lx.JacobianLinearOperator(fn, at, None, tags, jac=jac)


def bwd_jacobian_operator(matrix, tags=()):
    """Of a function that has a VJP and no JVP."""
    matrix = jnp.asarray(matrix)
    fn = jax.custom_vjp(lambda x: matrix @ x)
    fn.defvjp(lambda x: (matrix @ x, None), lambda _, g: (matrix.T @ g,))
    x = jnp.ones(matrix.shape[1:], matrix.dtype)
    return lx.JacobianLinearOperator(lambda x, args: fn(x), x, None, tags, jac="bwd")


OPERATORS = (
    matrix_operator,
    function_operator,
    jacobian_operator,
    bwd_jacobian_operator,
    pytree_operator,
    pytree_function_operator,
    pytree_jacobian_operator,
)
# Those without `--slow` leave no step out that the others take.
over_operators = pytest.mark.parametrize(
    "make_operator",
    (
        matrix_operator,
        slow(function_operator),
        slow(jacobian_operator),
        bwd_jacobian_operator,
        pytree_operator,
        slow(pytree_function_operator),
        pytree_jacobian_operator,
    ),
)


def solve(operator, vector, solver, **kwargs):
    """`lx.linear_solve` between flat vectors."""
    vector = unflatten(vector, operator.out_structure())
    return flatten(lx.linear_solve(operator, vector, solver, **kwargs).value)


def turned(solver, operator):
    """The states of Aᵀ, Ā and Aᴴ, from that of A."""
    state = solver.init(operator, {})
    transpose, _ = solver.transpose(state, {})
    conj, _ = solver.conj(state, {})
    adjoint, _ = solver.conj(transpose, {})
    return transpose, conj, adjoint


#
# Referees
#


def double(x):
    x = np.asarray(x)
    return x.astype(np.promote_types(x.dtype, np.float64))


def pinv(matrix):
    """A⁺ in double precision; what `matrix` itself cannot resolve counts as zero."""
    rcond = 100 * np.finfo(matrix.dtype).eps
    return np.linalg.pinv(double(matrix), rcond=rcond)


def damped_stack(matrix, damping, scale=None):
    """[A; √λ D] in double precision."""
    matrix = double(matrix)
    scale = np.ones(matrix.shape[1]) if scale is None else double(scale)
    return np.concatenate([matrix, np.sqrt(double(damping)) * np.diag(scale)])


def assert_close(actual, expected, rtol):
    """Relative to the largest entry, which neither under- nor overflows."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    error = np.max(np.abs(actual - expected), initial=0)
    bound = rtol * np.max(np.abs(expected), initial=0)
    assert error <= bound, f"{error=} > {bound=}\n{actual=}\n{expected=}"


def directional(fn, h=5e-4):
    """d fn(t)/dt at t = 0, to fourth order."""
    near, far = fn(h) - fn(-h), fn(2 * h) - fn(-2 * h)
    return (8 * near - far) / (12 * h)


def gradient(fn, x):
    """The gradient of a real `fn`; if x is complex, in JAX's convention."""
    x = np.asarray(x)

    def partial(index, unit):
        e = np.zeros_like(x)
        e[index] = unit
        return directional(lambda t: fn(x + t * e))

    out = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        out[index] = partial(index, 1)
        if np.iscomplexobj(x):
            out[index] -= 1j * partial(index, 1j)
    return out


#
# Jaxprs
#


def equations(jaxpr):
    """Every equation that the outputs depend on, in the jaxprs inside as well."""
    live = set(filter(_is_var, jaxpr.outvars))
    for eqn in reversed(jaxpr.eqns):
        if live.isdisjoint(eqn.outvars):
            continue
        live.update(filter(_is_var, eqn.invars))
        yield eqn
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from equations(inner)


def _is_var(x):
    return isinstance(x, jax.extend.core.Var)
