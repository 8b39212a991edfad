"""Checking at run time that a pattern has all entries."""

import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
from jaxtyping import PRNGKeyArray

from .._checks import check_key, check_operator
from .check import attach, strip
from .colour import colour
from .extract import direction, read_compressed, reader
from .pattern import check_fits, check_is_pattern, Pattern


def check_pattern(
    operator: lx.AbstractLinearOperator, pattern: Pattern, *, key: PRNGKeyArray
) -> lx.AbstractLinearOperator:
    """Returns `operator`, with a run-time error attached if its matrix has an entry
    outside of `pattern`.

    A solver that is given a pattern takes it on trust: with one that lacks an entry the
    answer is wrong, silently. Here the entries P are read as that solver reads them, by
    colours, and compared with the operator itself: A v = P v for a random v. Where an
    entry is missing, that holds with probability zero. Costs one application more than
    the pattern has colours.

    A violation smaller than √eps of the largest entry of the product passes for
    rounding. A matrix with non-finite entries passes: it is the solver's to report.

    Works under `jit` and `vmap`; the error comes when the returned operator is used.

    !!! Example

        ```python
        pattern = lxe.Pattern(range(5), range(5), (5, 5))
        operator = lxe.check_pattern(operator, pattern, key=jr.key(0))
        solver = lxe.AutoStructuredLinearSolver(pattern=pattern)
        solution = lx.linear_solve(operator, vector, solver)
        ```

    **Arguments:**

    - `operator`: any linear operator, with a matrix of m×n.
    - `pattern`: where it may have entries, of shape (m, n).
    - `key`: the random key for v.

    **Returns:**

    The same operator. Use it in place of the original.

    **Raises:**

    `ValueError` for what is no operator, pattern or key, and for a pattern of another
    shape.
    `equinox.EquinoxRuntimeError`, an `eqx.error_if`, if an entry is missing.
    """
    check_operator(operator, "check_pattern")
    check_is_pattern(pattern, "check_pattern(pattern=…)")
    check_fits(pattern, operator, "check_pattern")
    check_key(key, "check_pattern")
    name, stripped = type(operator).__name__, strip(operator)
    if 0 in pattern.shape:
        return operator
    found = colour(pattern, direction(stripped))
    read = reader(stripped, found.by)
    compressed = read_compressed(read, found.colours, found.count)
    line, along = pattern.cols, pattern.rows
    if read.by == "rows":
        line, along = along, line
    entries = compressed[found.colours[line], along]
    # Real, so that any mixture of real and complex leaves can hold it.
    real = jnp.finfo(read.dtype).dtype
    v = jr.normal(key, (len(found.colours),), real).astype(read.dtype)

    def product(entries, v):
        out = jnp.zeros(compressed.shape[1], entries.dtype)
        return out.at[np.asarray(along)].add(entries * v[np.asarray(line)])

    actual = read.apply(v)
    error = jnp.max(jnp.abs(actual - product(entries, v)))
    bound = product(jnp.abs(entries), jnp.abs(v))
    scale = jnp.maximum(jnp.max(bound), jnp.max(jnp.abs(actual)))
    missing = error > float(jnp.finfo(read.dtype).eps) ** 0.5 * scale
    message = (
        f"`check_pattern`: the `{name}` has entries outside of the pattern. Find one "
        "that has them all by `infer_pattern`, or give more."
    )
    return attach(operator, missing, message)
