"""The program of f run on index sets, for those of v ↦ ∂f v, one equation at a time.

To linearise a program with JAX takes several times as long as to trace it. It is not
needed: of most equations the derivative depends on what they do themselves, and the
others are linearised each for itself, once for all that are alike.
"""

from collections.abc import Hashable

import jax.extend.core as jex

from .dataflow import Flow
from .fingerprint import fingerprint
from .index_sets import IndexSets
from .linearised import alone, is_smooth, linearised
from .rules import linear
from .values import MOVES, unknown, Value


# Linear in all that may depend on v, or with a derivative by each of their inputs.
_as_they_are = {
    *MOVES,
    *"""
    neg exp exp2 log expm1 log1p tanh logistic sin cos tan asin acos atan sinh cosh
    asinh acosh atanh real imag conj complex abs sqrt rsqrt cbrt square erf erfc lgamma
    add add_any sub mul div max min select_n convert_element_type reduce_precision copy
    copy_p pad dynamic_slice dynamic_update_slice gather scatter-add scatter_add
    reduce_sum cumsum dot_general conv_general_dilated reduce_window_sum
    optimization_barrier sparse_product sparse_entry_products
    jit pjit closed_call core_call eval_jaxpr checkpoint remat remat2
    """.split(),
}

_programs: dict[Hashable, jex.ClosedJaxpr] = {}
_most_programs = 512


class Differential(Flow):
    """As `Flow`, of a program that is not linear: index sets are those of derivatives.
    What has none may well depend on the point, and is not known."""

    def equation(self, eqn: jex.JaxprEqn, ins: list[Value]) -> list[Value]:
        if not linear(ins):
            return super().equation(eqn, ins)
        if not any(map(is_smooth, eqn.outvars)):
            return [unknown] * len(eqn.outvars)
        if eqn.primitive.name in _as_they_are:
            return super().equation(eqn, ins)
        pairs = zip(eqn.invars, ins)
        given = {k: x for k, x in pairs if not isinstance(k, jex.Literal)}.values()
        moving = [isinstance(x, IndexSets) for x in given]
        point = [unknown if isinstance(x, IndexSets) else x for x in given]
        flow = Flow()
        flow.strangers = self.strangers
        tangents = flow.run(_derivative(eqn, moving), [*point, *linear([*given])])
        found = iter(tangents)
        outs = [next(found) if is_smooth(x) else unknown for x in eqn.outvars]
        return [x if isinstance(x, IndexSets) else unknown for x in outs]


def _derivative(eqn: jex.JaxprEqn, moving: list[bool]) -> jex.ClosedJaxpr:
    if eqn.primitive.name == "custom_jvp_call":  # a new function each time
        return linearised(eqn, moving)
    key = fingerprint(alone(eqn), True), tuple(moving)
    found = _programs.get(key)
    if found is None:
        found = linearised(eqn, moving)
        if len(_programs) >= _most_programs:
            _programs.clear()
        _programs[key] = found
    return found
