"""A damped solver that finds out whether a matrix is sparse enough to stay so."""

import functools as ft
from typing import Any, TypeAlias

import equinox as eqx
import lineax as lx
from jaxtyping import Array, PyTree, ScalarLike

from .._arrangement import cost
from .._factor.sparse_gram import gram, products
from .._flat import is_complex
from .._structure.detect import detect
from .._structure.extract import untagged
from .._structure.pattern import check_fits, check_is_pattern, Pattern
from .damped import AbstractDampedSolver, unwrap
from .damped_qr import DampedQR, DampedQRState
from .damped_sparse import DampedSparse, DampedSparseState, way
from .orientation import frozen
from .sharding import find_rows


_State: TypeAlias = DampedQRState | DampedSparseState


# Of fewer unknowns a dense matrix is the faster one whatever its pattern is, compiling
# included: 64 in a chain take 0.2 ms a step, and 0.1 with `DampedSparse`, but 1.2 s to
# compile in place of 3.7. With 128 these are 0.9 and 0.1 ms, 4.0 and 3.6 s.
_SMALL = 100

# Operators that have all their entries at hand.
_dense = lx.MatrixLinearOperator, lx.PyTreeLinearOperator


def _is_split(operator: lx.AbstractLinearOperator) -> bool:
    return is_complex(operator.in_structure()) != is_complex(operator.out_structure())


@ft.lru_cache(maxsize=64)
def _is_sparse(pattern: Pattern) -> bool:
    m, n = pattern.shape
    dense = cost.dense_least_squares(m, n)
    # Only then the analysis, which may take a second, and longer where AᴴA is full.
    normal = cost.products(products(pattern))
    if normal + cost.sparse_at_least(n).total > dense:
        return False
    if len(gram(pattern)) > n**2 / 4:
        return False
    return normal + way(pattern)[1].total < dense


class AutoDampedSolver(AbstractDampedSolver[_State]):
    """Damped least squares by `DampedSparse` or `DampedQR`, whichever is faster.

    Solves min ‖A x − b‖² + λ ‖D x‖². With fewer than 100 columns, or fewer rows than
    columns, it is [`lineax_ext.DampedQR`][], and nothing is looked for. Of a larger A
    the pattern is found while JAX traces, and [`lineax_ext.DampedSparse`][] taken if it
    is predicted to be faster: from the operations of a sparse factorisation of AᴴA,
    which are counted, and those of a dense QR. What holds a dense matrix, has its rows
    on several devices, or is between a real and a complex space is for `DampedQR`.

    Costs what the solver that is taken costs, and once the search: of a dense Jacobian
    of 2000×198, 0.1 s; of a map with thousands of unknowns, with the analysis, up to a
    second.

    !!! Example

        ```python
        solver = lxe.LevenbergMarquardt(
            rtol=1e-8, atol=1e-8, linear_solver=lxe.AutoDampedSolver()
        )
        sol = optx.least_squares(residuals, solver, y0)
        ```

    **Arguments:**

    - `pattern`: where A may have entries, as for [`lineax_ext.DampedSparse`][].

    **Raises:**

    `ValueError` for a pattern of another shape than the operator's, and for the state
    of another solver.
    """

    pattern: Pattern | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.pattern is not None:
            check_is_pattern(self.pattern, "AutoDampedSolver(pattern=…)")

    def chosen(self, operator: lx.AbstractLinearOperator) -> DampedQR | DampedSparse:
        m, n = operator.out_size(), operator.in_size()
        if self.pattern is not None:
            check_fits(self.pattern, operator, "AutoDampedSolver(pattern=…)")
        if n < _SMALL or m < n or isinstance(untagged(operator), _dense):
            return DampedQR()
        if _is_split(operator) or find_rows(None, operator, "AutoDampedSolver"):
            return DampedQR()
        pattern = self.pattern
        if pattern is None:
            pattern = detect(frozen(operator, "AutoDampedSolver"))
        if pattern is None or not _is_sparse(pattern):
            return DampedQR()
        return DampedSparse(pattern)

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> _State:
        return self.chosen(unwrap(operator)[0]).init(operator, options)

    def damp(
        self,
        state: _State,
        damping: ScalarLike,
        scale: PyTree[Array] | None = None,
    ) -> _State:
        if isinstance(state, DampedSparseState):
            return DampedSparse().damp(state, damping, scale)
        return DampedQR().damp(state, damping, scale)

    def path(self, operator: lx.AbstractLinearOperator, vector: PyTree[Array]):
        return self.chosen(operator).path(operator, vector)

    def spectrum(self, operator: lx.AbstractLinearOperator, vector: PyTree[Array]):
        return self.chosen(operator).spectrum(operator, vector)

    def compute(self, state: _State, vector: PyTree[Array], options: dict[str, Any]):
        if isinstance(state, DampedSparseState):
            return DampedSparse().compute(state, vector, options)
        return DampedQR().compute(state, vector, options)

    def assume_full_rank(self) -> bool:
        return False
