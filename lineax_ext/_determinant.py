"""Log-determinants of operators, with the quadratic form that goes with them."""

import functools as ft
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, ArrayLike, Inexact, PyTree

from ._flat import is_complex, ravel, result_dtype, unravel
from ._materialise import as_matrix
from ._operator.block_tridiagonal import BlockTridiagonalLinearOperator
from ._solver import factored
from ._solver.block_tridiagonal import BlockTridiagonal
from ._solver.factored import Factored
from ._structure.extract import untagged


_Scalar = Inexact[Array, ""]


#
# Public functions
#


@ft.singledispatch
def slogdet(operator: lx.AbstractLinearOperator) -> tuple[_Scalar, _Scalar]:
    """The sign and the logarithm of the absolute value of det A.

        det A = sign · exp(logabsdet)

    By the structure that the operator or its tags say: diagonal or triangular, O(n)
    after reading the diagonal; tridiagonal, O(n); block-tridiagonal, O(N k³); positive
    or negative semidefinite, by Cholesky, n³/3; otherwise LU, 2n³/3. Products of square
    operators, scalings and negations are taken apart, not formed.

    Differentiable any number of times, forward and reverse, by d log|det A| = Re tr(A⁻¹
    dA), with no more of A⁻¹ than A has entries, and without another factorisation:
    again O(n) or O(N k³), n³ for Cholesky, 2n³ for LU.

    A class of operators can have a rule of its own, by `slogdet.register(cls, rule)`,
    where `rule(operator)` returns `(sign, logabsdet)`. Then [`lineax_ext.logdet`][] and
    [`lineax_ext.inv_quad_logdet`][] use it, too, also inside of products and scalings.

    **Arguments:**

    - `operator`: A, square.

    **Returns:**

    `(sign, logabsdet)`: 1 or −1 (or a complex number of modulus 1) and a real
    number. Of a singular operator, 0 and −inf. Both are nan if a tag of
    semidefiniteness is found to be false, or an entry is nan.

    **Raises:**

    `ValueError` if the operator is not square.
    """
    return _slogdet(operator)


def logdet(operator: lx.AbstractLinearOperator, *, throw: bool = True) -> _Scalar:
    """The logarithm of det A.

    As [`lineax_ext.slogdet`][], for a determinant that is not negative: that of a
    covariance matrix, for instance. For a complex operator that is not tagged positive
    semidefinite it is the principal logarithm, log|det A| + i arg(det A).

    **Arguments:**

    - `operator`: A, square.
    - `throw`: whether to raise an error for a negative determinant and for a
        semidefiniteness that proves false, or to return nan.

    **Returns:**

    A scalar. −inf if A is singular.

    **Raises:**

    `ValueError` if the operator is not square. At run time, if `throw`, an
    `equinox.EquinoxRuntimeError`.
    """
    return _logdet(operator, throw)


def inv_quad_logdet(
    operator: lx.AbstractLinearOperator,
    vector: PyTree[ArrayLike],
    *,
    throw: bool = True,
) -> tuple[_Scalar, _Scalar]:
    """The two terms of a Gaussian's logarithm, from one factorisation.

        bᴴ A⁻¹ b,    log det A

    The log-likelihood of b under N(0, A) is −½ (bᴴ A⁻¹ b + log det A + n log 2π). See
    [`lineax_ext.slogdet`][] for the structures and the derivatives; the derivative of
    the quadratic form costs two more solves.

    !!! Example

        ```python
        quad, logdet = lxe.inv_quad_logdet(operator, vector)
        log_likelihood = -(quad + logdet + vector.size * jnp.log(2 * jnp.pi)) / 2
        ```

    **Arguments:**

    - `operator`: A, square.
    - `vector`: b, with the structure of the output of A.
    - `throw`: whether to raise an error for what [`lineax_ext.logdet`][] does, and for
        a singular operator, or to return nan.

    **Returns:**

    Two scalars. They are real if A is, or if it is positive semidefinite.

    **Raises:**

    `ValueError` if the operator is not square, or the vector does not fit. At run time,
    if `throw`, an `equinox.EquinoxRuntimeError`.

    ??? cite "Reference"

        Gardner, Pleiss, Bindel, Weinberger, Wilson, *GPyTorch: blackbox matrix–matrix
        Gaussian process inference with GPU acceleration*, NeurIPS 31 (2018), for the
        name and the use; arXiv:1809.11165.
    """
    _check(operator, "inv_quad_logdet")
    structure = operator.out_structure()
    vector = jtu.tree_map(jnp.asarray, vector)
    found = jax.eval_shape(lambda: vector)
    if jtu.tree_structure(found) != jtu.tree_structure(structure) or any(
        x.shape != s.shape
        for x, s in zip(jtu.tree_leaves(found), jtu.tree_leaves(structure))
    ):
        raise ValueError(
            "`inv_quad_logdet(operator, vector)`: the vector must have the structure "
            f"of the operator's output, {structure}; found {found}."
        )
    return _inv_quad_logdet(operator, vector, throw)


def _check(operator: Any, name: str) -> None:
    if not isinstance(operator, lx.AbstractLinearOperator):
        raise ValueError(
            f"`{name}` needs a `lineax.AbstractLinearOperator`; found a "
            f"`{type(operator).__name__}`. A matrix can be wrapped in a "
            "`lineax.MatrixLinearOperator`."
        )
    m, n = operator.out_size(), operator.in_size()
    if m != n:
        raise ValueError(
            f"`{name}` needs a square operator; found one of {m} rows and {n} columns."
        )


# As `lx.linear_solve`: eager calls compile once, not once an operation.
@eqx.filter_jit
def _slogdet(operator):
    _check(operator, "slogdet")
    factors = _factorise(operator)
    return factors.sign, factors.logabsdet


@eqx.filter_jit
def _logdet(operator, throw):
    _check(operator, "logdet")
    return _log(operator, *slogdet(operator), "logdet", throw)


@eqx.filter_jit
def _inv_quad_logdet(operator, vector, throw):
    name = "inv_quad_logdet"
    factors = _factorise(operator)
    log = _log(operator, factors.sign, factors.logabsdet, name, throw)
    singular = jnp.isneginf(factors.logabsdet)
    if throw:
        log = eqx.error_if(log, singular, f"`{name}`: the operator is singular.")
    dtype = result_dtype((operator.out_structure(), operator.in_structure()))
    flat = ravel(vector).astype(dtype)
    quad = jnp.vdot(flat, factors.solve(flat))
    if _is_definite(operator):
        quad = quad.real
    return jnp.where(singular, jnp.nan, quad), log


def _log(operator, sign, logabsdet, name, throw):
    if is_complex(sign) and not _is_definite(operator):
        log = lax.complex(logabsdet, jnp.angle(sign))
        failed = jnp.isnan(logabsdet)
    else:
        failed = ~(sign.real >= 0)
        # A product, so that its derivative is nan, too.
        log = logabsdet * jnp.where(failed, jnp.nan, 1).astype(logabsdet.dtype)
    if throw:
        log = eqx.error_if(
            log,
            failed,
            f"`{name}`: the determinant is negative or not a number, or the operator "
            "is tagged as positive semidefinite and is not. `throw=False` returns nan; "
            "`lineax_ext.slogdet` has the sign.",
        )
    return log


#
# Which factorisation, by structure
#


def _is_definite(operator) -> bool:
    return lx.is_positive_semidefinite(operator)


def _factorise(operator, positive: bool = False) -> Factored:
    """`positive`: whether a tag outside says that it is positive semidefinite."""
    if operator.in_size() == 0:
        return _identity(operator)
    own = slogdet.dispatch(type(operator))
    if own is not slogdet.dispatch(object):
        solve = lambda vector: _linear_solve(operator, vector, None)
        return Factored(*own(operator), solve)
    return _by_structure(operator, positive or _is_definite(operator))


def _linear_solve(operator, vector, solver):
    """On flat vectors."""
    solver = lx.AutoLinearSolver(well_posed=True) if solver is None else solver
    vector = unravel(vector, operator.out_structure())
    return ravel(lx.linear_solve(operator, vector, solver, throw=False).value)


def _identity(operator) -> Factored:
    one = jnp.ones((), result_dtype(operator.out_structure()))
    return Factored(one, jnp.zeros_like(one.real), lambda vector: vector)


@ft.singledispatch
def _by_structure(operator, positive) -> Factored:
    if lx.is_diagonal(operator):
        diagonal = lx.diagonal(operator)
        factors = factored.from_diagonal(diagonal, lambda vector: vector / diagonal)
        return factors.claimed(jnp.all(diagonal.real >= 0)) if positive else factors
    if lx.is_tridiagonal(operator):
        factors, definite = factored.tridiagonal(*lx.tridiagonal(operator))
        return factors.claimed(definite) if positive else factors
    if lx.is_lower_triangular(operator) or lx.is_upper_triangular(operator):
        solve = lambda vector: _linear_solve(operator, vector, lx.Triangular())
        return factored.from_diagonal(lx.diagonal(operator), solve)
    if positive:
        return factored.cholesky(as_matrix(operator))
    if lx.is_negative_semidefinite(operator):
        return _scaled(factored.cholesky(-as_matrix(operator)), -1, operator)
    return factored.lu(as_matrix(operator))


def _scaled(factors: Factored, scalar, operator) -> Factored:
    """`operator` = scalar · what `factors` are of."""
    n = operator.in_size()
    scalar = jnp.asarray(scalar, result_dtype(operator.out_structure()))
    return Factored(
        factors.sign * factored.phase(scalar) ** n,
        factors.logabsdet + n * jnp.log(jnp.abs(scalar)),
        lambda vector: factors.solve(vector / scalar),
    )


def _checked(factors: Factored, positive: bool) -> Factored:
    return factors.claimed(factors.sign.real >= 0) if positive else factors


def _has_band(operator) -> bool:
    triangular = lx.is_lower_triangular(operator) or lx.is_upper_triangular(operator)
    return triangular or lx.is_diagonal(operator) or lx.is_tridiagonal(operator)


def _has_rule(operator) -> bool:
    """Whether it can be had for less than by forming its matrix."""
    cls, default = type(untagged(operator)), object
    return (
        _has_band(operator)
        or slogdet.dispatch(cls) is not slogdet.dispatch(default)
        or _by_structure.dispatch(cls) is not _by_structure.dispatch(default)
    )


@_by_structure.register
def _(operator: lx.TaggedLinearOperator, positive):
    if _has_band(operator) or not _has_rule(operator):
        return _by_structure.dispatch(object)(operator, positive)
    return _factorise(untagged(operator), positive)


@_by_structure.register
def _(operator: lx.IdentityLinearOperator, positive):
    del positive
    return _identity(operator)


@_by_structure.register
def _(operator: BlockTridiagonalLinearOperator, positive):
    blocks = operator.diagonal, operator.lower_diagonal, operator.upper_diagonal
    solve = lambda vector: _linear_solve(operator, vector, BlockTridiagonal())
    factors = Factored(*factored.block_tridiagonal_slogdet(*blocks), solve)
    return _checked(factors, positive)


@_by_structure.register
def _(operator: lx.NegLinearOperator, positive):
    return _scaling(operator, -1, positive)


@_by_structure.register
def _(operator: lx.MulLinearOperator, positive):
    return _scaling(operator, operator.scalar, positive)


@_by_structure.register
def _(operator: lx.DivLinearOperator, positive):
    return _scaling(operator, 1 / operator.scalar, positive)


def _scaling(operator, scalar, positive):
    inner = operator.operator
    definite = _is_definite(inner) or lx.is_negative_semidefinite(inner)
    if positive and not definite and not _has_rule(inner):
        return _by_structure.dispatch(object)(operator, positive)
    return _checked(_scaled(_factorise(inner), scalar, operator), positive)


@_by_structure.register
def _(operator: lx.ComposedLinearOperator, positive):
    first, second = operator.operator2, operator.operator1  # in order of application
    if first.out_size() != first.in_size():
        return _by_structure.dispatch(object)(operator, positive)
    f1, f2 = _factorise(first), _factorise(second)
    factors = Factored(
        f1.sign * f2.sign,
        f1.logabsdet + f2.logabsdet,
        lambda vector: f1.solve(f2.solve(vector)),
    )
    return _checked(factors, positive)
