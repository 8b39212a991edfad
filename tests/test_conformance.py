"""That every class here has all that lineax expects of it, and a test."""

import ast
import functools as ft
import importlib
import inspect
import pathlib
import pkgutil

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from helpers import (
    assert_close,
    block_tridiagonal_operator,
    damped_stack,
    flatten,
    in_turn,
    jacobian_operator,
    normal,
    pytree_operator,
    SHAPES,
    SOLVERS,
    SQUARE_SOLVERS,
    unflatten,
)

import lineax_ext as lxe
from lineax_ext._solver.or_identity import OrIdentity


for _module in pkgutil.walk_packages(lxe.__path__, "lineax_ext."):
    importlib.import_module(_module.name)


def concrete_subclasses(cls):
    for subclass in cls.__subclasses__():
        if subclass.__module__.startswith("lineax_ext."):
            private = subclass.__name__.startswith("_")
            if not (private or inspect.isabstract(subclass)):
                yield subclass
        yield from concrete_subclasses(subclass)


OPERATORS = list(concrete_subclasses(lx.AbstractLinearOperator))
over_operators = pytest.mark.parametrize("cls", OPERATORS)

FUNCTIONS = [fn for fn in vars(lx).values() if callable(fn) and hasattr(fn, "registry")]
over_functions = pytest.mark.parametrize(
    "function", FUNCTIONS, ids=lambda x: x.__name__
)


def damped(shape, dtype):
    inner, scale = normal(shape, dtype), np.geomspace(0.5, 2, shape[1])
    operator = pytree_operator(inner)
    diagonal = unflatten(scale, operator.in_structure())
    operator = lxe.DampedLinearOperator(operator, 0.3, diagonal)
    return operator, damped_stack(inner, 0.3, scale)


def block_tridiagonal(shape, dtype):
    count, k = {(5, 3): (3, 2), (4, 4): (4, 1), (3, 5): (1, 3)}[shape]
    size = count * k
    near = np.abs(np.subtract.outer(np.arange(count), np.arange(count))) <= 1
    near = np.kron(near, np.ones((k, k))).astype(dtype)
    matrix = near * normal((size, size), dtype)
    return block_tridiagonal_operator(matrix, k), matrix


def gram(shape, dtype):
    inner, weights = normal(shape, dtype), np.geomspace(0.5, 2, shape[0])
    operator = jacobian_operator(inner)
    kwargs = dict(weights=weights, centre=True, shift=0.3)
    matrix = np.asarray(operator.as_matrix())  # that of `inner`, at another point
    matrix = np.sqrt(weights)[:, None] * (matrix - weights @ matrix / weights.sum())
    expected = matrix.conj().T @ matrix + 0.3 * np.eye(shape[1])
    return lxe.GramLinearOperator(operator, **kwargs), expected


def sparse(shape, dtype):
    matrix = normal(shape, dtype)
    matrix[1:, 0] = 0
    rows, cols = np.nonzero(matrix)
    pattern = lxe.Pattern(rows, cols, shape)
    values = jnp.asarray(matrix[rows, cols])
    return lxe.SparseMatrixLinearOperator(values, pattern), matrix


# An operator of each class, with its matrix. A class without an entry is an error.
EXAMPLES = {
    lxe.BlockTridiagonalLinearOperator: block_tridiagonal,
    lxe.DampedLinearOperator: damped,
    lxe.GramLinearOperator: gram,
    lxe.SparseMatrixLinearOperator: sparse,
}


# What each of lineax's functions must say of a matrix. One without an entry, such as a
# future version may bring, is an error.
def _same(result, matrix):
    assert_close(result.as_matrix(), matrix, 1e-14)


def _conj(result, matrix):
    assert_close(result.as_matrix(), matrix.conj(), 1e-14)


def _diagonal(result, matrix):
    assert_close(result, np.diagonal(matrix), 1e-14)


def _tridiagonal(result, matrix):
    for diagonal, offset in zip(result, (0, -1, 1), strict=True):
        assert_close(diagonal, np.diagonal(matrix, offset), 1e-14)


def _implies(holds):
    """A tag may be missing; one that is there must be true."""

    def check(result, matrix):
        assert type(result) is bool
        assert not result or (matrix.shape[0] == matrix.shape[1] and holds(matrix))

    return check


def _semidefinite(sign):
    return lambda a: np.all(sign * np.linalg.eigvalsh(a) >= -1e-14)


CHECKS = {
    "linearise": _same,
    "materialise": _same,
    "conj": _conj,
    "diagonal": _diagonal,
    "tridiagonal": _tridiagonal,
    "is_symmetric": _implies(lambda a: np.array_equal(a, a.T)),
    "is_diagonal": _implies(lambda a: np.array_equal(a, np.diag(np.diagonal(a)))),
    "is_tridiagonal": _implies(
        lambda a: np.array_equal(a, np.tril(np.triu(a, -1), 1)),
    ),
    "has_unit_diagonal": _implies(lambda a: np.all(np.diagonal(a) == 1)),
    "is_lower_triangular": _implies(lambda a: np.array_equal(a, np.tril(a))),
    "is_upper_triangular": _implies(lambda a: np.array_equal(a, np.triu(a))),
    "is_positive_semidefinite": _implies(_semidefinite(1)),
    "is_negative_semidefinite": _implies(_semidefinite(-1)),
}


def test_discovery():
    assert {lxe.DampedLinearOperator, lxe.GramLinearOperator} <= set(OPERATORS)
    assert {lx.linearise, lx.conj, lx.is_symmetric} <= set(FUNCTIONS)


@over_operators
@over_functions
def test_registered(cls, function):
    assert cls in function.registry


@ft.cache
def example(cls, shape, dtype):
    return EXAMPLES[cls](shape, dtype)


over_examples = in_turn(
    "cls, shape, dtype",
    OPERATORS,
    [(shape, dtype) for dtype in (np.complex128, np.float64) for shape in SHAPES],
)


@over_examples
@over_functions
def test_functions(cls, function, shape, dtype):
    operator, matrix = example(cls, shape, dtype)
    CHECKS[function.__name__](function(operator), matrix)


@over_examples
def test_methods(cls, shape, dtype):
    operator, matrix = example(cls, shape, dtype)
    m, n = matrix.shape
    assert (operator.out_size(), operator.in_size()) == (m, n)
    assert_close(operator.as_matrix(), matrix, 1e-14)

    @eqx.filter_jit
    def products(operator):
        derived = (
            operator,
            operator.T,
            operator.T.T,
            lx.conj(operator.T),
            lx.linearise(operator).T,
            -2 * operator,
            operator.T @ operator,
        )
        found = []
        for op in derived:
            x = normal((op.in_size(),), dtype)
            out = op.mv(unflatten(x, op.in_structure()))
            assert jax.eval_shape(lambda out=out: out) == op.out_structure()
            found.append(flatten(out))
        return found

    derived = (
        matrix,
        matrix.T,
        matrix,
        matrix.conj().T,
        matrix.T,
        -2 * matrix,
        matrix.T @ matrix,
    )
    for out, a in zip(products(operator), derived, strict=True):
        assert_close(out, a @ normal(a.shape[1:], dtype), 1e-13)


@over_operators
def test_vmap(cls):
    operator, matrix = EXAMPLES[cls]((5, 3), np.complex128)
    stack = lambda x: jnp.stack([x, 2 * x]) if eqx.is_array(x) else x
    stacked = jax.tree.map(stack, operator)
    xs = normal((2, matrix.shape[1]), np.complex128)

    def mv(operator, x):
        return flatten(operator.mv(unflatten(x, operator.in_structure())))

    out = eqx.filter_jit(eqx.filter_vmap(mv))(stacked, jnp.asarray(xs))
    assert_close(out[0], matrix @ xs[0], 1e-14)


def test_every_solver_is_in_the_table():
    solvers = set(concrete_subclasses(lx.AbstractLinearSolver))
    # They have tests of their own: three add nothing to the solver that they are given
    # or take, one takes operators that are tagged as definite alone.
    solvers -= {lxe.TaggedLinearSolver, OrIdentity, lxe.AutoDampedSolver}
    solvers -= {lxe.SparseCholesky}
    tested = [row[1] for row in (*SOLVERS, *SQUARE_SOLVERS)]
    assert set(map(type, tested)) == solvers


SOURCES = sorted(pathlib.Path(lxe.__file__).parent.rglob("*.py"))


def upstream_names(source):
    """Absolute dotted names of everything imported from other packages, or used."""
    modules = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.split(".")[0]
                modules[alias.asname or root] = alias.name if alias.asname else root
                yield alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Attribute):
            root, _, rest = ast.unparse(node).partition(".")
            if root in modules:
                yield f"{modules[root]}.{rest}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_private_is_imported(path):
    for name in upstream_names(path.read_text()):
        parts = [p for p in name.split(".") if not p.startswith("__")]
        assert not any(part.startswith("_") for part in parts), name


def test_private_names_are_seen():
    for source in (
        "import lineax._solve",
        "from lineax._solve import linear_solve",
        "from lineax import _solve",
        "import lineax as lx\nlx._solve.linear_solve",
        "import lineax.internal\nlineax._solve.linear_solve",
    ):
        assert any("lineax._solve" in name for name in upstream_names(source))
