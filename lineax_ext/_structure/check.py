"""Checking at run time that structural tags tell the truth."""

from collections.abc import Callable

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, Bool, Inexact, PRNGKeyArray, PyTree

from .._checks import check_key, check_operator
from .._tags import definiteness, retagged
from .extract import (
    basis_vector,
    map_chunked,
    read_band,
    read_diagonals,
    Reader,
    reader,
)
from .pattern import bandwidth


_tagged = (
    lx.TaggedLinearOperator,
    lx.JacobianLinearOperator,
    lx.FunctionLinearOperator,
    lx.MatrixLinearOperator,
    lx.PyTreeLinearOperator,
)


def strip(operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
    """The same operator without any tags: lineax applies a tagged matrix by its tag."""

    is_tagged = lambda x: isinstance(x, _tagged)

    def without(op):
        if isinstance(op, lx.TaggedLinearOperator):
            return strip(op.operator)
        return retagged(op, ())

    return jtu.tree_map(without, operator, is_leaf=is_tagged)


class _Checked(eqx.Module):
    """A function whose value, and whose derivative, exist only if there is no lie.

    The error cannot hang on the arrays of the operator: the derivative of an affine
    function depends on none of them.
    """

    fn: Callable
    truth: Bool[Array, ""]

    def __call__(self, x: PyTree[Array], *args):
        x = jtu.tree_map(lambda xi: jnp.where(self.truth, xi, jnp.nan), x)
        return self.fn(x, *args)


_functions = (lx.JacobianLinearOperator, lx.FunctionLinearOperator)


def attach(operator, lie: Bool[Array, ""], message: str):
    is_function = lambda x: isinstance(x, _functions)
    leaves = jtu.tree_leaves(operator, is_leaf=is_function)
    if not any(map(is_function, leaves)):
        # Without arrays it is an identity, which cannot lie.
        arrays = any(map(eqx.is_array, leaves))
        return eqx.error_if(operator, lie, message) if arrays else operator
    truth = ~eqx.error_if(lie, lie, message)

    def wrap(op):
        if isinstance(op, lx.JacobianLinearOperator):
            fn = _Checked(op.fn, truth)
            return lx.JacobianLinearOperator(
                fn, op.x, op.args, op.tags, op.jac, closure_convert=False
            )
        if isinstance(op, lx.FunctionLinearOperator):
            fn = _Checked(op.fn, truth)
            return lx.FunctionLinearOperator(
                fn, op.in_structure(), op.tags, closure_convert=False
            )
        return op

    return jtu.tree_map(wrap, operator, is_leaf=is_function)


def _band_mv(read: Reader, band: dict[int, Array], vector: Array) -> Array:
    m, n = read.shape
    out = jnp.zeros((m if read.by == "columns" else n,), vector.dtype)
    for offset, entries in band.items():
        i, j = max(0, -offset), max(0, offset)
        source, target = (j, i) if read.by == "columns" else (i, j)
        size = entries.size
        term = entries * vector[source : source + size]
        out = out.at[target : target + size].add(term)
    return out


def _largest_forbidden(read: Reader, *, lower: bool) -> tuple[Array, Array]:
    """The largest entry outside a triangle, and the largest of all."""
    m, n = read.shape
    # Reading rows of A is reading columns of Aᵀ, whose triangles are swapped.
    lower = lower == (read.by == "columns")
    size, length = (n, m) if read.by == "columns" else (m, n)

    def column(index):
        out = jnp.abs(read.apply(basis_vector(index, size, read.dtype)))
        row = lax.iota(jnp.int32, length)
        forbidden = row < index if lower else row > index
        return jnp.stack([jnp.max(jnp.where(forbidden, out, 0)), jnp.max(out)])

    found = jnp.max(map_chunked(column, lax.iota(jnp.int32, size)), axis=0)
    return found[0], found[1]


def check_tags(
    operator: lx.AbstractLinearOperator, *, key: PRNGKeyArray
) -> lx.AbstractLinearOperator:
    """Returns `operator`, with a run-time error attached if a structural tag is a lie.

    lineax takes tags on trust: with a wrong one the answer is wrong, silently. This
    spends applications of the operator to find out, with `u` and `v` random vectors:

    - diagonal and tridiagonal: reads the band B that the tag leaves (1 or 3
      applications), and one more for `A v = B v`;
    - symmetric: two, for `uᵀ A v = vᵀ A u`;
    - unit diagonal: the diagonal is read;
    - lower or upper triangular, without a band: as many as there are columns, a chunk
      at a time; a combination of columns cannot tell the triangles apart.

    A violation smaller than √eps of the largest entry passes for rounding; one of
    symmetry, if smaller than √eps of the Frobenius norm. A matrix with non-finite
    entries passes: it is the solver's to report. Positive and negative semidefiniteness
    are not structural, and of them only the symmetry of a real operator is checked.

    Works under `jit` and `vmap`; the error comes when the returned operator is used.

    !!! Example

        ```python
        operator = lxe.check_tags(operator, key=jr.key(0))
        solution = lx.linear_solve(operator, vector, lx.Tridiagonal())
        ```

    **Arguments:**

    - `operator`: any linear operator, real, complex, or from the one to the other.
    - `key`: the random key for `u` and `v`.

    **Returns:**

    The same operator. Use it in place of the original.

    **Raises:**

    `ValueError` for what is no operator or no key. `equinox.EquinoxRuntimeError`, an
    `eqx.error_if`, naming the tag that is a lie.
    """
    check_operator(operator, "check_tags")
    check_key(key, "check_tags")
    read = reader(strip(operator))
    m, n = read.shape
    if m == 0 or n == 0:
        return operator
    tolerance = float(jnp.finfo(read.dtype).eps) ** 0.5
    size = n if read.by == "columns" else m
    # Real, so that any mixture of real and complex leaves can hold it.
    real = jnp.finfo(read.dtype).dtype
    u, v = jr.normal(key, (2, size), real).astype(read.dtype)
    name = type(operator).__name__

    def check(operator, error, scale, tag):
        lie = error > tolerance * scale
        message = f"`check_tags`: the `{name}` is tagged {tag}, but it is not."
        return attach(operator, lie, message)

    implied = bandwidth(operator)
    band: dict[int, Inexact[Array, " length"]] = {}
    if implied is not None:
        band = read_band(read, *implied)
        actual = read.apply(v)
        error = jnp.max(jnp.abs(actual - _band_mv(read, band, v)))
        magnitudes = {d: jnp.abs(x) for d, x in band.items()}
        bound = _band_mv(read, magnitudes, jnp.abs(v))
        scale = jnp.maximum(jnp.max(bound), jnp.max(jnp.abs(actual)))
        tag = {(0, 0): "diagonal", (1, 1): "tridiagonal"}.get(implied, "bidiagonal")
        operator = check(operator, error, scale, tag)
    else:
        for is_triangular, lower in (
            (lx.is_lower_triangular, True),
            (lx.is_upper_triangular, False),
        ):
            if is_triangular(operator):
                error, scale = _largest_forbidden(read, lower=lower)
                tag = "lower triangular" if lower else "upper triangular"
                operator = check(operator, error, scale, tag)

    if lx.has_unit_diagonal(operator):
        diagonal = band[0] if 0 in band else read_diagonals(read, (0,))[0]
        error = jnp.max(jnp.abs(diagonal - 1))
        operator = check(operator, error, jnp.ones_like(error), "as of unit diagonal")

    if lx.is_symmetric(operator) and implied != (0, 0):
        if m != n:
            raise ValueError(
                f"`check_tags`: the `{name}` is tagged symmetric, but its shape is "
                f"{(m, n)}."
            )
        av, au = read.apply(v), read.apply(u)
        error = jnp.abs(jnp.sum(u * av) - jnp.sum(v * au))
        # Either estimates ‖A‖, the Frobenius norm, whatever n is.
        scale = jnp.linalg.norm(av) + jnp.linalg.norm(au)
        tag = "symmetric" + " or semidefinite" * bool(definiteness(operator))
        operator = check(operator, error, scale, tag)
    return operator
