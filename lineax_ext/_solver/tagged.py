"""Tags for operators that someone else makes."""

from typing import Any

import equinox as eqx
import lineax as lx
from jaxtyping import Array, PyTree

from .._checks import check_linear_solver
from .._tags import retagged, tag_set


def _tagged(
    operator: lx.AbstractLinearOperator, tags: frozenset[object]
) -> lx.AbstractLinearOperator:
    """With the tags inside: lineax drops those of a `TaggedLinearOperator` on its way
    to the entries of what is inside of it."""
    if isinstance(operator, lx.TaggedLinearOperator):
        return _tagged(operator.operator, operator.tags | tags)
    if isinstance(operator, lx.JacobianLinearOperator | lx.FunctionLinearOperator):
        return retagged(operator, operator.tags | tags)
    return lx.TaggedLinearOperator(operator, tags)


class TaggedLinearSolver(lx.AbstractLinearSolver[Any]):
    """Adds tags to every operator that it is handed, and leaves the rest to `solver`.

    This is how a library that makes its operators itself, as diffrax does, is told of
    their structure. The tags end up inside of a `lineax.JacobianLinearOperator` or a
    `lineax.FunctionLinearOperator`, also one that is tagged already, so that
    `lineax.Tridiagonal` reads a tridiagonal one in three applications.

    Needs the tags to be true: lineax takes them on trust (see `lineax_ext.check_tags`).
    Costs what `solver` costs with a tagged operator.

    !!! Example

        ```python
        solver = lxe.TaggedLinearSolver(lx.Tridiagonal(), lx.tridiagonal_tag)
        solution = lx.linear_solve(operator, vector, solver)
        # In diffrax:
        # dfx.Kvaerno5(root_finder=dfx.VeryChord(1e-6, 1e-6, linear_solver=solver))
        ```

    **Arguments:**

    - `solver`: the solver that makes use of the tags.
    - `tags`: one of lineax's tags, or several.

    **Returns:**

    From `lx.linear_solve`: what `solver` returns.

    **Raises:**

    `ValueError` for a `solver` or a tag that is none; and what the solver raises.
    """

    solver: lx.AbstractLinearSolver
    tags: frozenset[object] = eqx.field(static=True, converter=tag_set)

    def __check_init__(self):
        check_linear_solver(self.solver, "TaggedLinearSolver(solver=…)")

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> PyTree[Any]:
        return self.solver.init(_tagged(operator, self.tags), options)

    def compute(
        self, state: PyTree[Any], vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        return self.solver.compute(state, vector, options)

    def transpose(self, state: PyTree[Any], options: dict[str, Any]):
        return self.solver.transpose(state, options)

    def conj(self, state: PyTree[Any], options: dict[str, Any]):
        return self.solver.conj(state, options)

    def assume_full_rank(self) -> bool:
        return self.solver.assume_full_rank()
