"""The sparsity pattern of an operator, found from its computation by `asdex`."""

import collections
import contextlib
import gc
import hashlib
import importlib.util
import warnings
from collections.abc import Callable, Hashable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, PyTree

from .._flat import result_dtype, tree_size
from .constants import known_value
from .dataflow import replay
from .extract import direction, reader, untagged
from .known import known_pattern
from .pattern import Pattern


def detect(
    operator: lx.AbstractLinearOperator, by: Literal["columns", "rows"] | None = None
) -> Pattern | None:
    """Where the matrix of `operator` may have entries, for any values of its arrays.

    Nothing is evaluated: `asdex` follows which of the outputs of `reader(operator, by)`
    depend on which inputs. The operator's arrays are arguments of what is traced, not
    constants, so that the pattern is that of every operator with the same computation,
    under any transformation. Constants are what `operator.fn` closes over, as far as it
    does not depend on anything that is traced.

    Cached by the value of the computation. A matrix that `asdex` cannot follow has no
    pattern, `None`, and a warning says why.
    """
    known = known_pattern(operator)
    if known is not None:
        return known
    if importlib.util.find_spec("asdex") is None:
        raise ImportError(
            "To find a sparsity pattern `AutoStructuredLinearSolver` and `infer_tags` "
            "need `asdex`. Install it by `pip install 'lineax_ext[auto]'`, or say what "
            "is known of the structure by tags: see `TaggedLinearSolver`."
        )
    operator = untagged(operator)
    by = direction(operator, by)
    out_structure, in_structure = operator.out_structure(), operator.in_structure()
    m, n = tree_size(out_structure), tree_size(in_structure)
    m, n = (m, n) if by == "columns" else (n, m)
    seed = jax.ShapeDtypeStruct((n,), result_dtype(out_structure))
    constants = _constants(operator)
    is_argument = lambda x: eqx.is_array(x) and id(x) not in constants
    arrays, static = eqx.partition(operator, is_argument)
    static = jtu.tree_map(lambda x: constants.get(id(x), x), static)

    def apply(arrays, seed):
        return reader(eqx.combine(arrays, static), by).apply(seed)

    struct = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    arguments = jtu.tree_map(struct, arrays)
    program = jax.make_jaxpr(apply)(arguments, seed)

    pattern = _cached_pattern(program, m, n)
    return pattern if pattern is None or by == "columns" else pattern.T


def infer_tags(
    fn: Callable[[PyTree[Array], Any], PyTree[Array]],
    y: PyTree[ArrayLike],
    args: PyTree[Any] = None,
) -> frozenset[object]:
    """The structural tags that the Jacobian ∂fn/∂y deserves, whatever y and args are.

    For the `tags=` of optimistix, which uses them in its solvers and, unlike a solver
    alone, in `optx.ImplicitAdjoint` as well.

    Needs `asdex`, the extra `auto`; nothing is evaluated. Takes hundredths of a second
    for a thousand unknowns, and less than a second for a hundred thousand.

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

    `ImportError` if `asdex` is missing. A warning if a primitive is unknown to it.
    """
    operator = lx.JacobianLinearOperator(fn, y, args, closure_convert=False)
    pattern = detect(operator)
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


def _constants(operator: lx.AbstractLinearOperator) -> dict[int, Any]:
    """Those arrays of the operator's function that never change, by their `id`."""
    if not isinstance(operator, lx.JacobianLinearOperator | lx.FunctionLinearOperator):
        return {}
    leaves = [x for x in jtu.tree_leaves(operator.fn) if eqx.is_array(x)]
    if isinstance(operator, lx.FunctionLinearOperator):
        # Of a linearised function the floating-point constants are values at a point.
        leaves = [x for x in leaves if not eqx.is_inexact_array(x)]
    found = {id(x): known_value(x) for x in leaves}
    return {k: x for k, x in found.items() if not isinstance(x, Tracer)}


#
# Caching
#

_cache: collections.OrderedDict[Hashable, Pattern | None] = collections.OrderedDict()
_cache_size = 64


def _cached_pattern(program: jex.ClosedJaxpr, m: int, n: int) -> Pattern | None:
    key = _fingerprint(program, {})
    if key not in _cache:
        _cache[key] = _pattern(program, m, n)
        while len(_cache) > _cache_size:
            _cache.popitem(last=False)
    _cache.move_to_end(key)
    return _cache[key]


def _fingerprint(
    jaxpr: jex.Jaxpr | jex.ClosedJaxpr, numbers: dict[Any, int]
) -> Hashable:
    """Nested tuples that are equal for equal computations."""
    # Closed and open ones are of one class from jax 0.12 on.
    consts = tuple(map(_value, getattr(jaxpr, "consts", ())))
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)

    def atom(x):
        if isinstance(x, jex.Literal):
            return _value(x.val)
        return numbers.setdefault(x, len(numbers)), x.aval

    def param(x):
        if isinstance(x, jex.Jaxpr | jex.ClosedJaxpr):
            return _fingerprint(x, numbers)
        if isinstance(x, tuple | list):
            return tuple(map(param, x))
        if isinstance(x, np.ndarray):
            return _value(x)
        try:
            hash(x)
        except TypeError:
            return object()  # like nothing else
        return x

    def equation(eqn):
        params = [(name, param(eqn.params[name])) for name in sorted(eqn.params)]
        ins, outs = map(atom, eqn.invars), map(atom, eqn.outvars)
        return eqn.primitive, tuple(ins), tuple(outs), tuple(params)

    ins = map(atom, (*jaxpr.constvars, *jaxpr.invars))
    outs = map(atom, jaxpr.outvars)
    return consts, tuple(ins), tuple(map(equation, jaxpr.eqns)), tuple(outs)


def _value(x: Any) -> Hashable:
    if isinstance(x, Tracer):
        return "traced", x.aval
    dtype = getattr(x, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.extended):
        return dtype, _value(jax.random.key_data(x))
    x = np.asarray(x)
    return x.shape, x.dtype, hashlib.sha256(x.tobytes()).digest()


#
# Detection
#

# The entries of a dense matrix take long to enumerate. Where there may be so many of
# them a look at a few rows comes first.
_many = 10**5


def _pattern(program: jex.ClosedJaxpr, m: int, n: int) -> Pattern | None:
    (*_, seed), _ = program.in_avals, program.out_avals

    def find(rows):
        # Here, as it fails with a version of JAX that it does not know.
        import asdex

        fn = lambda *args: replay(program, *args)[rows]
        example = np.zeros(seed.shape, seed.dtype)
        return asdex.jacobian_sparsity(fn, example, np.zeros(()), argnums=0)

    with _collection_paused():
        try:
            step = m // 16
            if step * n > _many:
                found = find(slice(None, None, step))
                if len(found.rows) == len(range(0, m, step)) * n:
                    return None  # dense
            found = find(slice(None))
        except Exception as error:  # whatever it is, the dense matrix is right
            reason = str(error).partition(". ")[0]
            warnings.warn(
                f"`asdex` found no sparsity pattern: {reason} "
                f"({type(error).__name__}). The matrix is taken to be dense.",
                stacklevel=2,
            )
            return None
    rows, cols = (np.asarray(x, np.int32) for x in (found.rows, found.cols))
    return Pattern(rows, cols, (m, n))


@contextlib.contextmanager
def _collection_paused():
    """Index sets by the hundred thousand, none of them garbage: collecting took longer
    than everything else."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
