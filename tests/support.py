"""What is supported: `test_support.py` runs every row, and the site shows this table.

A row computes x from a matrix and a vector; each of its dtypes is run under all of
`TRANSFORMS`, and compared with what NumPy computes in double precision.
"""

import functools as ft
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import scipy.linalg

import lineax_ext as lxe


TRANSFORMS = ("jit", "vmap", "jvp", "vjp")
DTYPES = ("float32", "float64", "complex64", "complex128")
_REAL = DTYPES[:2]


class Row(NamedTuple):
    name: str
    fn: Callable
    referee: Callable
    shape: tuple[int, int] = (4, 4)
    dtypes: tuple[str, ...] = DTYPES
    # Of float64 and complex128; of the others, with the same share of their digits.
    digits: float = 12
    expensive: bool = False


def _entries(a):
    """As an operator whose structure is to be found: tridiagonal."""
    i, j = _TRIDIAGONAL
    fn = lambda x: jnp.zeros_like(x).at[i].add(a[i, j] * x[j])
    return lx.FunctionLinearOperator(fn, jax.eval_shape(lambda: a[0]))


_FULL = np.indices((4, 4)).reshape(2, -1)
_TRIDIAGONAL = _FULL[:, abs(_FULL[0] - _FULL[1]) <= 1]


def _sparse(a, places=_FULL, tags=()):
    i, j = np.indices(a.shape).reshape(2, -1) if a.shape != (4, 4) else places
    return lxe.SparseMatrixLinearOperator(a[i, j], lxe.Pattern(i, j, a.shape), tags)


def _tagged(a):
    fn = lambda x: jnp.diagonal(a) * x
    return lx.FunctionLinearOperator(fn, jax.eval_shape(lambda: a[0]))


def _blocks(a):
    a = a.reshape(2, 2, 2, 2).swapaxes(1, 2)
    i = np.arange(2)
    return lxe.BlockTridiagonalLinearOperator(a[i, i], a[[1], [0]], a[[0], [1]])


def _solve(solver, operator, vector):
    return lx.linear_solve(operator, vector, solver).value


def _solving(solver, operator=lx.MatrixLinearOperator, referee=None, **kwargs):
    """A row of a solver: its name comes from that."""
    name = kwargs.pop("name", f"`{type(solver).__name__}`")
    fn = lambda a, b: _solve(solver, operator(a), b)
    referee = referee or (lambda a, b: np.linalg.pinv(a) @ b)
    return Row(name, fn, referee, **kwargs)


def _gram(a):
    """Positive definite."""
    xp = jnp if isinstance(a, jax.Array) else np
    return a.conj().T @ a + xp.eye(len(a), dtype=a.dtype)


def _banded(a):
    return a * (abs(np.subtract.outer(range(4), range(4))) <= 1)


def _damping(solver, operator, expensive=False):
    def fn(a, b):
        damping = jnp.asarray(0.3, a.real.dtype)
        return lxe.damped_solve(operator(a), b, damping, solver).value

    normal = lambda a: a.conj().T @ a + 0.3 * np.eye(a.shape[1])
    referee = lambda a, b: np.linalg.solve(normal(a), a.conj().T @ b)
    name = f"`damped_solve`, `{type(solver).__name__}`"
    return Row(name, fn, referee, (5, 3), expensive=expensive)


def _fit(solver):
    def fn(a, b):
        residuals = lambda y, args: args[0] @ y - args[1]
        y0 = jnp.zeros(a.shape[1:], a.dtype)
        return optx.least_squares(residuals, solver, y0, (a, b)).value

    return fn


def _fits(make, name, expensive=False, **kwargs):
    # Tighter than the dtype can be asked for is an error, and so is 0.
    def fn(a, b):
        eps = float(jnp.finfo(a.dtype).eps)
        return _fit(make(rtol=10 * eps, atol=10 * eps, **kwargs))(a, b)

    referee = lambda a, b: np.linalg.pinv(a) @ b
    # Half of all digits: what comparing sums of squares can tell apart.
    return Row(name, fn, referee, (5, 3), _REAL, digits=7, expensive=expensive)


def _flow(a, b):
    """y' = −A y, from y(0) = b to t = 0.1, in as many steps as are exact enough."""
    import diffrax as dfx

    term = dfx.ODETerm(lambda t, y, a: -(a @ y))
    # diffrax takes Python's numbers for float64, where there is that.
    t0, t1, dt0 = (jnp.asarray(t, b.dtype) for t in (0.0, 0.1, 0.02))
    return dfx.diffeqsolve(
        term,
        lxe.structured(dfx.Kvaerno5(root_finder=optx.Newton(1e-3, 1e-3))),
        t0=t0,
        t1=t1,
        dt0=dt0,
        y0=b,
        args=a,
        adjoint=dfx.DirectAdjoint(),
        max_steps=8,
    ).ys[-1]


def _slogdet(a, b):
    sign, logdet = lxe.slogdet(lx.MatrixLinearOperator(a))
    return jnp.stack([sign.astype(a.dtype), logdet.astype(a.dtype)]) * b[0]


def _quad_logdet(operator):
    def fn(a, b):
        quad, logdet = lxe.inv_quad_logdet(operator(_gram(a)), b)
        return jnp.stack([quad, logdet])

    def referee(a, b):
        a = _gram(a)
        quad = (b.conj() @ np.linalg.solve(a, b)).real
        return np.stack([quad, np.linalg.slogdet(a)[1]])

    return fn, referee


def _gram_operator(a, b):
    gram = lxe.GramLinearOperator(lx.MatrixLinearOperator(a), shift=1.0)
    eps = float(jnp.finfo(a.dtype).eps)
    return _solve(lx.CG(rtol=10 * eps, atol=10 * eps), gram, b)


_definite = lambda make: lambda a: make(_gram(a), tags=lx.positive_semidefinite_tag)
_of_gram = lambda a, b: np.linalg.solve(_gram(a), b)

ROWS = (
    _solving(lxe.QRMultiply(), shape=(5, 3)),
    _solving(
        lxe.QRMultiply(pivoting=True), shape=(3, 5), name="`QRMultiply(pivoting=True)`"
    ),
    _solving(lxe.DampedQR(), shape=(5, 3)),
    _solving(lxe.DampedSVD(), shape=(5, 3)),
    _solving(
        lxe.AutoStructuredLinearSolver(),
        _entries,
        lambda a, b: np.linalg.solve(_banded(a), b),
    ),
    _solving(
        lxe.TaggedLinearSolver(lx.Diagonal(), lx.diagonal_tag),
        _tagged,
        lambda a, b: b / np.diagonal(a),
    ),
    _solving(lxe.BlockTridiagonal(), _blocks),
    _solving(lxe.SparseLU(), _sparse),
    _solving(lxe.SparseCholesky(), _definite(_sparse), _of_gram, expensive=True),
    _damping(lxe.DampedQR(), lx.MatrixLinearOperator),
    _damping(lxe.DampedSVD(), lx.MatrixLinearOperator),
    _damping(lxe.DampedSparse(), _sparse, expensive=True),
    Row(
        "`slogdet`",
        _slogdet,
        lambda a, b: np.stack(np.linalg.slogdet(a)) * b[0],
    ),
    Row(
        "`inv_quad_logdet`",
        *_quad_logdet(
            lambda a: lx.MatrixLinearOperator(a, lx.positive_semidefinite_tag)
        ),
    ),
    Row(
        "`inv_quad_logdet`, sparse",
        *_quad_logdet(ft.partial(_sparse, tags=lx.positive_semidefinite_tag)),
        expensive=True,
    ),
    Row("`GramLinearOperator`, `lx.CG`", _gram_operator, _of_gram, digits=11),
    _fits(lxe.LevenbergMarquardt, "`LevenbergMarquardt`"),
    _fits(
        lxe.LevenbergMarquardt,
        '`LevenbergMarquardt(scale="jacobian")`',
        scale="jacobian",
        expensive=True,
    ),
    _fits(
        lxe.IndirectLevenbergMarquardt, "`IndirectLevenbergMarquardt`", expensive=True
    ),
    Row(
        "`structured(Kvaerno5())`",
        _flow,
        lambda a, b: scipy.linalg.expm(-0.1 * a) @ b,
        dtypes=_REAL,
        digits=8,
        expensive=True,
    ),
)
