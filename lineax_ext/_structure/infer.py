"""What can be said of the Jacobian of a function before it is computed."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, ArrayLike, PyTree

from .._checks import called
from .detect import detect, detect_in_shape
from .pattern import full, Pattern


def infer_pattern(
    fn: Callable[[PyTree[Array], Any], PyTree[Array]],
    y: PyTree[ArrayLike],
    args: PyTree[Any] = None,
) -> Pattern:
    """Where the Jacobian ∂fn/∂y may have entries, whatever y and args are.

    For `AutoStructuredLinearSolver(pattern=...)`, and to look at. The function is seen
    before anybody has made arguments out of what it closes over: constant index arrays
    and matrices count with their values, zeros included.

    Nothing is evaluated, and an entry is never missed: what cannot be followed counts
    as everywhere among the inputs that reach it. Takes time in proportion to the size
    of the program and the number of entries: hundredths of a second for a stencil of
    100,000 unknowns.

    !!! Example

        ```python
        pattern = lxe.infer_pattern(residuals, y0, args)
        solver = lxe.AutoStructuredLinearSolver(pattern=pattern)
        newton = optx.Newton(rtol=1e-8, atol=1e-8, linear_solver=solver)
        sol = optx.root_find(residuals, newton, y0, args)
        ```

    **Arguments:**

    - `fn`: a function of `(y, args)`. What arrays it closes over counts as constant.
    - `y`, `args`: such as `fn` will be called with; only their shapes and dtypes are
        looked at, and what is no array.

    **Returns:**

    A [`lineax_ext.Pattern`][] of shape `(m, n)`, the sizes of `fn(y, args)` and of `y`,
    leaves one after the other.

    **Raises:**

    `ValueError` for what is no function or returns no array, and for a `y` of
    structures without arrays. A warning, if the matrix is taken to be dense for a
    primitive without a rule.

    ??? cite "Reference"

        Hill, Dalle, *Sparser, Better, Faster, Stronger: Sparsity Detection for
        Efficient Automatic Differentiation* (2025), arXiv:2501.17737.
    """
    shape, pattern = detect_in_shape(_jacobian(fn, y, args))
    if shape[0] == 0 and not jtu.tree_leaves(eqx.filter_eval_shape(fn, y, args)):
        raise ValueError(
            "`infer_pattern` was given a function of `(y, args)` that returns no array."
        )
    return full(*shape) if pattern is None else pattern


def infer_tags(
    fn: Callable[[PyTree[Array], Any], PyTree[Array]],
    y: PyTree[ArrayLike],
    args: PyTree[Any] = None,
) -> frozenset[object]:
    """The structural tags that the Jacobian ∂fn/∂y deserves, whatever y and args are.

    For the `tags=` of optimistix, which uses them in its solvers and, unlike a solver
    alone, in `optx.ImplicitAdjoint` as well.

    Nothing is evaluated. Takes hundredths of a second, also for a hundred thousand
    unknowns.

    !!! Example

        ```python
        tags = lxe.infer_tags(residuals, y0, args)
        sol = optx.root_find(residuals, optx.Newton(1e-8, 1e-8), y0, args, tags=tags)
        ```

    **Arguments:**

    - `fn`: a function of `(y, args)`. What arrays it closes over counts as constant.
    - `y`, `args`: such as `fn` will be called with; only their shapes and dtypes are
        looked at, and what is no array.

    **Returns:**

    A set of lineax's tags: diagonal, tridiagonal, lower and upper triangular, as far as
    they hold; none if the Jacobian is not square.

    **Raises:**

    `ValueError` for what is no function, and for a `y` of structures without arrays. A
    warning, if the matrix is taken to be dense for a primitive without a rule.
    """
    pattern = detect(_jacobian(fn, y, args))
    if pattern is None or pattern.shape[0] != pattern.shape[1]:
        return frozenset()
    lower, upper = pattern.bandwidth
    if lower == upper == 0:
        return frozenset([lx.diagonal_tag])
    holds = {
        lx.tridiagonal_tag: max(lower, upper) == 1,
        lx.lower_triangular_tag: upper == 0,
        lx.upper_triangular_tag: lower == 0,
    }
    return frozenset(tag for tag, true in holds.items() if true)


def _jacobian(fn, y, args) -> lx.JacobianLinearOperator:
    if not callable(fn):
        raise ValueError(
            "`infer_pattern` and `infer_tags` need a function of `(y, args)`; found "
            f"{called(fn)}."
        )
    for leaf in jtu.tree_leaves(y):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise ValueError(
                "`infer_pattern` and `infer_tags` need a `y` of arrays, such as "
                f"`jnp.zeros({leaf.shape})`; found {called(leaf)}."
            )
    return lx.JacobianLinearOperator(fn, y, args, closure_convert=False)
