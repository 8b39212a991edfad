"""The sparsity pattern of an operator, found from its computation."""

import collections
import math
import warnings
from collections.abc import Hashable
from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.tree_util as jtu
import lineax as lx
from jax.core import Tracer

from .._flat import result_dtype, tree_size
from .constants import known_value
from .dataflow import Flow, follow
from .differential import Differential
from .extract import direction, reader, untagged
from .fingerprint import fingerprint
from .known import known_pattern
from .pattern import Pattern


def detect(
    operator: lx.AbstractLinearOperator, by: Literal["columns", "rows"] | None = None
) -> Pattern | None:
    """Where the matrix of `operator` may have entries, for any values of its arrays.

    Nothing is evaluated: it is followed which of the outputs of a Jacobian's function,
    or else of `reader(operator, by)`, depend on which inputs. The operator's arrays are
    arguments of what is traced, not constants, so that the pattern is that of every
    operator with the same computation, under any transformation. Constants are what
    `operator.fn` closes over, as far as it does not depend on anything that is traced.

    Cached by the value of the computation. `None` stands for every entry, which nobody
    needs a list of. A warning names the primitives without a rule for which it does.
    """
    return detect_in_shape(operator, by)[1]


def detect_in_shape(
    operator: lx.AbstractLinearOperator, by: Literal["columns", "rows"] | None = None
) -> tuple[tuple[int, int], Pattern | None]:
    """The same, and the shape of the matrix: to ask the operator for it may be to trace
    its function once more."""
    known = known_pattern(operator)
    if known is not None:
        return known.shape, known
    operator = untagged(operator)
    by = direction(operator, by)
    constants = _constants(operator)
    is_argument = lambda x: eqx.is_array(x) and id(x) not in constants
    arrays, static = eqx.partition(operator, is_argument)
    static = jtu.tree_map(lambda x: constants.get(id(x), x), static)
    arrays = jtu.tree_map(_struct, arrays)

    if isinstance(operator, lx.JacobianLinearOperator) and by == "columns":
        # Not linearised: that would take several times as long.
        def call(arrays, x):
            jacobian = eqx.combine(arrays, static)
            return jacobian.fn(x, jacobian.args)

        x = jtu.tree_map(_struct, operator.x)
        program = jax.make_jaxpr(call)(arrays, x)
        return _cached_pattern(program, len(jtu.tree_leaves(x)), Differential)

    out_structure, in_structure = operator.out_structure(), operator.in_structure()
    n = tree_size(in_structure if by == "columns" else out_structure)
    seed = jax.ShapeDtypeStruct((n,), result_dtype(out_structure))

    def apply(arrays, seed):
        return reader(eqx.combine(arrays, static), by).apply(seed)

    program = jax.make_jaxpr(apply)(arrays, seed)
    (m, n), pattern = _cached_pattern(program, 1, Flow)
    if by == "columns":
        return (m, n), pattern
    return (n, m), None if pattern is None else pattern.T


def _struct(x: Any) -> jax.ShapeDtypeStruct:
    # A weak type stays weak: it promotes otherwise, or is not let to.
    return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=jax.typeof(x).weak_type)


def _constants(operator: lx.AbstractLinearOperator) -> dict[int, Any]:
    """Those arrays of the operator's function that never change, by their `id`."""
    if not isinstance(operator, lx.JacobianLinearOperator | lx.FunctionLinearOperator):
        return {}
    leaves = [x for x in jtu.tree_leaves(operator.fn) if eqx.is_array(x)]
    if isinstance(operator, lx.JacobianLinearOperator):
        # What is an argument, too, may be another one next time.
        given = set(map(id, jtu.tree_leaves((operator.x, operator.args))))
        leaves = [x for x in leaves if id(x) not in given]
    else:
        # Of a linearised function the floating-point constants are values at a point.
        leaves = [x for x in leaves if not eqx.is_inexact_array(x)]
    found = {id(x): known_value(x) for x in leaves}
    return {k: x for k, x in found.items() if not isinstance(x, Tracer)}


_Found: TypeAlias = tuple[tuple[int, int], Pattern | None]

_cache: collections.OrderedDict[Hashable, _Found] = collections.OrderedDict()
_cache_size = 64


def _cached_pattern(program: jex.ClosedJaxpr, inputs: int, flow: type[Flow]) -> _Found:
    key = flow, inputs, fingerprint(program, flow is Differential)
    # Other threads may put in and take out what they like at the same time.
    found = _cache.pop(key, None)
    if found is None:
        found = _pattern(program, inputs, flow())
    _cache[key] = found
    while len(_cache) > _cache_size:
        _cache.popitem(last=False)
    return found


def _pattern(program: jex.ClosedJaxpr, inputs: int, flow: Flow) -> _Found:
    invars, outvars = program.jaxpr.invars, program.jaxpr.outvars
    size = lambda atoms: sum(math.prod(x.aval.shape) for x in atoms)
    m, n = size(outvars), size(invars[len(invars) - inputs :])
    if min(m, n) == 0:
        return (m, n), Pattern([], [], (m, n))
    found = follow(flow, program, inputs)
    if not found.is_dense():
        return (m, n), Pattern(*found.pairs(), (m, n))
    if flow.strangers:
        names = ", ".join(map(repr, flow.strangers))
        warnings.warn(
            f"No rule is known for the primitive {names}: each of its outputs may "
            "depend on all that reaches it. The matrix is taken to be dense. If it is "
            "not, say so by tags, or by `AutoStructuredLinearSolver(pattern=...)`.",
            stacklevel=2,
        )
    return (m, n), None
