"""Log-determinants of operators, with the quadratic form that goes with them."""

import functools as ft
from typing import Any

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, ArrayLike, Inexact, PyTree

from ._checks import check_operator, check_vector
from ._factor import sparse, with_determinant
from ._factor.with_determinant import Factored
from ._flat import is_complex, ravel, result_dtype, unravel
from ._materialise import as_matrix
from ._operator.block_tridiagonal import BlockTridiagonalLinearOperator
from ._operator.sparse import SparseMatrixLinearOperator
from ._solver.block_tridiagonal import BlockTridiagonal
from ._solver.orientation import frozen
from ._structure.extract import untagged
from ._structure.pattern import has_structure
from ._tags import definiteness


_Scalar = Inexact[Array, ""]


#
# Public functions
#


@ft.singledispatch
def slogdet(operator: lx.AbstractLinearOperator) -> tuple[_Scalar, _Scalar]:
    """The sign and the logarithm of the absolute value of det A.

        det A = sign · exp(logabsdet)

    By the structure that the operator or its tags say: diagonal or triangular, O(n)
    after reading the diagonal; tridiagonal, O(n); block-tridiagonal, O(N k³); sparse,
    by [`lineax_ext.SparseCholesky`][] or [`lineax_ext.SparseLU`][]; positive or
    negative semidefinite, by Cholesky, n³/3; otherwise LU, 2n³/3. Products of square
    operators, scalings and negations are taken apart, not formed.

    Differentiable any number of times, forward and reverse, by d log|det A| = Re tr(A⁻¹
    dA), with no more of A⁻¹ than A has entries: again O(n), O(N k³) or O(fill), by
    Takahashi's recurrences; second derivatives of a sparse one are O(n · fill). For a
    dense matrix from the factors that are there, 2n³/3 for Cholesky, 2n³ for LU.

    A class of operators can have a rule of its own, by `slogdet.register(cls, rule)`,
    where `rule(operator)` returns `(sign, logabsdet)`. Then [`lineax_ext.logdet`][] and
    [`lineax_ext.inv_quad_logdet`][] use it, too, also inside of products and scalings.

    **Arguments:**

    - `operator`: A, square.

    **Returns:**

    `(sign, logabsdet)`: 1 or −1 (or a complex number of modulus 1) and a real
    number. Of a singular operator, 0 and −inf. Both are nan if the operator is tagged
    as semidefinite and is found not to be: by Cholesky, or from the entries of a
    diagonal or tridiagonal operator. (With other structure nothing is found out.)

    **Raises:**

    `ValueError` if the operator is not square, and for a sparse one of whose pattern
    every matrix is singular.
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
    """The two terms of a Gaussian's logarithm, together.

        bᴴ A⁻¹ b,    log det A

    A dense matrix is factorised once for both and for all of their derivatives.

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

    `ValueError` if the operator is not square, or the vector does not fit: has
    another structure, is complex where the operator is real, or of higher precision. At
    run time, if `throw`, an `equinox.EquinoxRuntimeError`.

    ??? cite "Reference"

        Gardner, Pleiss, Bindel, Weinberger, Wilson, *GPyTorch: blackbox matrix–matrix
        Gaussian process inference with GPU acceleration*, NeurIPS 31 (2018), for the
        name and the use; arXiv:1809.11165.
    """
    _check(operator, "inv_quad_logdet")
    vector = jtu.tree_map(jnp.asarray, vector)
    check_vector(vector, operator, "inv_quad_logdet")
    return _inv_quad_logdet(operator, vector, throw)


def _check(operator: Any, name: str) -> None:
    check_operator(operator, name)
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
    log, valid = _log(operator, _factorise(operator), "logdet", throw)
    return log * valid.astype(log.dtype)


@eqx.filter_jit
def _inv_quad_logdet(operator, vector, throw):
    name = "inv_quad_logdet"
    factors = _factorise(operator)
    log, valid = _log(operator, factors, name, throw)
    regular = _one_unless(
        jnp.isneginf(factors.logabsdet),
        f"`{name}`: the operator is singular." if throw else None,
        valid.dtype,
    )
    flat = ravel(vector).astype(factors.sign.dtype)
    quad = jnp.vdot(flat, factors.solve(flat))
    if lx.is_positive_semidefinite(operator):
        quad = quad.real
    quad = quad * (valid * regular).astype(quad.dtype)
    if throw:  # so that the error is there if this is all that is asked for
        valid = jnp.where(regular == 1, valid, jnp.nan)
    return quad, log * valid.astype(log.dtype)


def _log(operator, factors, name, throw):
    """log det A, and the factor that makes it, and its derivatives, valid: 1 or nan."""
    sign, logabsdet, _ = factors
    if is_complex(sign) and not lx.is_positive_semidefinite(operator):
        log, failed = lax.complex(logabsdet, jnp.angle(sign)), False
    else:
        log, failed = logabsdet, ~(sign.real >= 0)
    message = (
        f"`{name}`: the determinant is negative or not a number, or the operator is "
        "tagged as positive semidefinite and is not. `throw=False` returns nan; "
        "`lineax_ext.slogdet` has the sign."
    )
    failed = failed | ~(logabsdet < jnp.inf)
    return log, _one_unless(failed, message if throw else None, logabsdet.dtype)


def _one_unless(failed, message, dtype):
    """1, or nan if `failed`; or an error, if there is a message.

    As a factor, the error is raised by whatever it is a factor of, derivatives too.
    """
    one = jnp.where(failed, jnp.nan, 1).astype(dtype)
    return one if message is None else eqx.error_if(one, failed, message)


#
# Which factorisation, by structure
#


def _factorise(operator, definite: int = 0) -> Factored:
    """`definite`: what a tag outside says of `definiteness(operator)`."""
    if operator.in_size() == 0:
        return _identity(operator)
    if _is_registered(slogdet, type(operator)):
        sign, logabsdet = slogdet(operator)
        solve = lambda vector: _linear_solve(operator, vector).astype(sign.dtype)
        return Factored(sign, logabsdet, solve)
    return _by_structure(operator, definite or definiteness(operator))


def _linear_solve(operator, vector, solver=None):
    """On flat vectors, with derivatives that are nan where the vector is.

    Those of `lx.linear_solve` raise an error there, whatever `throw` says.
    """
    solver = lx.AutoLinearSolver(well_posed=True) if solver is None else solver
    structure = operator.in_structure(), operator.out_structure()
    state = solver.init(frozen(operator, "slogdet"), {})
    turned, _ = solver.transpose(state, {})

    def solve(state, structure, b):
        x, *_ = solver.compute(state, unravel(b, structure), {})
        return ravel(x).astype(vector.dtype)

    return lax.custom_linear_solve(
        lambda x: ravel(operator.mv(unravel(x, structure[0]))).astype(vector.dtype),
        vector,
        lambda _, b: solve(state, structure[1], b),
        lambda _, b: solve(turned, structure[0], b),
    )


def _identity(operator) -> Factored:
    one = jnp.ones((), result_dtype(operator.out_structure()))
    return Factored(one, jnp.zeros_like(one.real), lambda vector: vector)


@ft.singledispatch
def _by_structure(operator, definite) -> Factored:
    n = operator.in_size()
    if lx.is_diagonal(operator):
        diagonal = lx.diagonal(operator)
        solve = lambda vector: vector / diagonal
        factors = with_determinant.from_diagonal(diagonal, solve)
        valid = jnp.all(definite * diagonal.real >= 0)
        return factors.claimed(valid) if definite else factors
    if lx.is_tridiagonal(operator):
        diagonal, lower, upper = lx.tridiagonal(operator)
        diagonals = diagonal, lower, upper
        if definite == -1:
            diagonals = -diagonal, -lower, -upper
        matrix = lx.TridiagonalLinearOperator(*diagonals)
        solve = lambda vector: _linear_solve(matrix, vector, lx.Tridiagonal())
        factors, valid = with_determinant.tridiagonal(diagonals, solve)
        factors = factors.claimed(valid) if definite else factors
        return _negated(factors, n) if definite == -1 else factors
    if lx.is_lower_triangular(operator) or lx.is_upper_triangular(operator):
        diagonal, solve = lx.diagonal(operator), _triangular_solve(operator)
        return with_determinant.from_diagonal(diagonal, solve)
    matrix = as_matrix(operator)
    if definite == -1:
        return _negated(with_determinant.cholesky(-matrix), n)
    factorise = with_determinant.cholesky if definite == 1 else with_determinant.lu
    return factorise(matrix)


def _triangular_solve(operator):
    lower = lx.is_lower_triangular(operator)
    tag = lx.lower_triangular_tag if lower else lx.upper_triangular_tag
    # Of the matrix: for a pytree of mixed dtypes lineax has none.
    matrix = lambda: lx.MatrixLinearOperator(as_matrix(operator), tag)
    return lambda vector: _linear_solve(matrix(), vector, lx.Triangular())


def _negated(factors: Factored, n: int) -> Factored:
    return factors.scaled(-jnp.ones((), factors.sign.dtype), n)


def _is_registered(rule, cls: type) -> bool:
    return rule.dispatch(cls) is not rule.dispatch(object)


def _has_rule(operator) -> bool:
    """Whether it can be had for less than by forming its matrix."""
    cls = type(untagged(operator))
    rules = slogdet, _by_structure
    return has_structure(operator) or any(_is_registered(rule, cls) for rule in rules)


@_by_structure.register
def _(operator: lx.TaggedLinearOperator, definite):
    if has_structure(operator) or not _has_rule(operator):
        return _by_structure.dispatch(object)(operator, definite)
    return _factorise(untagged(operator), definite)


@_by_structure.register
def _(operator: lx.IdentityLinearOperator, definite):
    del definite
    return _identity(operator)


@_by_structure.register
def _(operator: BlockTridiagonalLinearOperator, definite):
    del definite
    blocks = operator.diagonal, operator.lower_diagonal, operator.upper_diagonal
    solve = lambda vector: _linear_solve(operator, vector, BlockTridiagonal())
    slogdet_ = with_determinant.block_tridiagonal_slogdet(*blocks)
    return Factored(*slogdet_, solve)


@_by_structure.register
def _(operator: SparseMatrixLinearOperator, definite):
    if has_structure(operator):
        return _by_structure.dispatch(object)(operator, definite)
    symbolic = sparse.analyse(operator.pattern, definite != 0)
    if definite == -1:
        factors = sparse.with_determinant(symbolic, -operator.values)
        return _negated(factors, operator.in_size())
    return sparse.with_determinant(symbolic, operator.values)


@_by_structure.register
def _(operator: lx.NegLinearOperator, definite):
    return _scaling(operator, -1, definite)


@_by_structure.register
def _(operator: lx.MulLinearOperator, definite):
    return _scaling(operator, operator.scalar, definite)


@_by_structure.register
def _(operator: lx.DivLinearOperator, definite):
    return _scaling(operator, 1 / operator.scalar, definite)


def _scaling(operator, scalar, definite):
    inner = operator.operator
    known = definiteness(inner)
    if definite and not known and not _has_rule(inner):
        return _by_structure.dispatch(object)(operator, definite)
    factors = _factorise(inner)
    if jnp.iscomplexobj(scalar) and not is_complex(factors.sign):
        raise ValueError(
            f"`{type(operator).__name__}` of a complex scalar and a real operator: its "
            "determinant would be complex. Make the operator complex."
        )
    scalar = jnp.asarray(scalar).astype(factors.sign.dtype)
    factors = factors.scaled(scalar, operator.in_size())
    if definite and known:
        return factors.claimed(definite * known * scalar.real >= 0)
    return factors


@_by_structure.register
def _(operator: lx.ComposedLinearOperator, definite):
    first, second = operator.operator2, operator.operator1  # in order of application
    if first.out_size() != first.in_size():
        return _by_structure.dispatch(object)(operator, definite)
    f1, f2 = _factorise(first), _factorise(second)
    dtype = result_dtype((f1.sign, f2.sign))
    solve = lambda factors, vector: factors.solve(vector.astype(factors.sign.dtype))
    return Factored(
        f1.sign.astype(dtype) * f2.sign.astype(dtype),
        f1.logabsdet.astype(jnp.finfo(dtype).dtype)
        + f2.logabsdet.astype(jnp.finfo(dtype).dtype),
        lambda vector: solve(f1, solve(f2, vector)).astype(dtype),
    )
