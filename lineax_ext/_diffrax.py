"""What plugs into diffrax: an implicit solver whose linear solves have structure.

diffrax 0.7.2 has an argument for the linear solver of a stage, deep inside of a root
finder, and none for that of its derivative: `step` calls `optx.root_find` without
`adjoint`. The solvers made here run a copy of that very `step`, whose global name
`optx` leads to a `root_find` with the adjoint filled in. Nothing of diffrax is changed:
there is nothing to restore, other threads see nothing of it, and neither does a
`root_find` that the vector field calls itself.

diffrax is imported when it is used, and not before.
"""

import dataclasses
import functools as ft
import inspect
import types
from collections.abc import Callable
from typing import Any, TYPE_CHECKING, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
import optimistix as optx
from jax.core import Tracer
from jaxtyping import Array, PyTree

from ._checks import called, check_linear_solver
from ._flat import tree_size
from ._solver.auto import AutoStructuredLinearSolver
from ._solver.or_identity import OrIdentity
from ._structure.constants import known_value
from ._structure.detect import detect
from ._structure.pattern import Pattern


if TYPE_CHECKING:
    import diffrax as dfx


_Solver = TypeVar("_Solver", bound="dfx.AbstractSolver")


def structured(
    solver: _Solver,
    linear_solver: lx.AbstractLinearSolver = AutoStructuredLinearSolver(),
) -> _Solver:
    """The same diffrax solver, with stages and their derivatives by `linear_solver`.

    An implicit solver of diffrax finds every stage k of a step from

        k − f(t, y + γ k Δt) = 0,

    by Newton's method, with the matrix I − γ Δt ∂f/∂y. The derivative of the stage is a
    solve with that matrix, too: in diffrax 0.7.2 a dense one, whatever solves the
    stage. Here both are up to `linear_solver`; steps and results are those of `solver`.

    Needs no tags. The sparsity pattern of ∂f/∂y is found from the term itself, before
    diffrax and optimistix have made arguments of its constants: the zeros of a matrix
    or the entries of an index array that the vector field closes over are known. What
    arrives through `args`, as a field of a module or from an enclosing `jit` is not: it
    may have any value. Tags, where diffrax hands them over, come first.

    Takes every implicit solver that diffrax has: `ImplicitEuler`, `Kvaerno3` to
    `Kvaerno5`, of `KenCarp3` to `KenCarp5` and `Sil3` the implicit term, and wrappers
    such as `HalfSolver` around one of them. The root finder keeps its settings, and its
    tolerances come from the step size controller where they did before. All of
    diffrax's adjoints can be used. `diffrax.BacksolveAdjoint` solves a differential
    equation of its own, whose pattern is found in its stages, and
    `diffrax.ImplicitAdjoint` has a linear solver of its own.

    Costs, a step: one factorisation, and then a solve for each iteration and for the
    derivative of each stage, as `linear_solver` promises them. For a band that is O(n).

    !!! Example

        ```python
        import diffrax as dfx

        term = dfx.ODETerm(lambda t, y, args: vector - operator.mv(y))
        solver = lxe.structured(dfx.Kvaerno5())
        controller = dfx.PIDController(rtol=1e-8, atol=1e-8)
        solution = dfx.diffeqsolve(
            term, solver, 0.0, 1.0, None, 0 * vector, stepsize_controller=controller
        )
        ```

    **Arguments:**

    - `solver`: an implicit solver of diffrax, whose root finder has a `linear_solver`,
        as `diffrax.VeryChord`, `optimistix.Chord` and `optimistix.Newton` have.
    - `linear_solver`: what replaces it. If it is an `AutoStructuredLinearSolver` with a
        pattern, that is taken for the pattern of ∂f/∂y. Any other solver must take the
        operator as it comes, such as [`lineax_ext.TaggedLinearSolver`][].

    **Returns:**

    A solver of a subclass of `type(solver)`.

    **Raises:**

    `ValueError` for what is no solver of diffrax, for an explicit one, for a root
    finder without a linear solver, and for a `linear_solver` that is none.

    ??? cite "References"

        Kværnø, *Singly diagonally implicit Runge–Kutta methods with an explicit first
        stage*, BIT Numerical Mathematics 44 (2004),
        doi:10.1023/B:BITN.0000046811.70614.38. Blondel et al., *Efficient and Modular
        Implicit Differentiation* (2022), arXiv:2105.15183.
    """
    import diffrax as dfx

    if not isinstance(solver, dfx.AbstractSolver):
        raise ValueError(
            f"`structured` was given {called(solver)}, which is no solver of diffrax. "
            "Pass one such as `diffrax.Kvaerno5()`, and the result to "
            "`diffrax.diffeqsolve`."
        )
    check_linear_solver(linear_solver, "structured(linear_solver=…)")
    if type(solver) in _plain:
        solver = _of_class(_plain[type(solver)], solver)
    name = type(solver).__name__
    if isinstance(solver, dfx.AbstractWrappedSolver):
        inner = structured(solver.solver, linear_solver)
        solver = eqx.tree_at(lambda s: s.solver, solver, inner)
        return _of_class(_wrapper_class(type(solver)), solver)
    if not isinstance(solver, dfx.AbstractImplicitSolver):
        raise ValueError(
            f"`structured` was given `{name}`, an explicit solver, which has nothing "
            "to solve. Implicit ones are `diffrax.Kvaerno5`, `diffrax.KenCarp4` and "
            "others."
        )
    if not hasattr(solver.root_finder, "linear_solver"):
        raise ValueError(
            f"`structured` sets the linear solver of a root finder; that of `{name}`, "
            f"`{type(solver.root_finder).__name__}`, has none. Use "
            "`diffrax.VeryChord`, `optimistix.Chord` or `optimistix.Newton`."
        )
    return _of_class(_structured_class(type(solver)), _with(solver, linear_solver))


def _with(solver: Any, linear_solver: lx.AbstractLinearSolver) -> Any:
    where = lambda s: s.root_finder.linear_solver
    # A linear solver may be without leaves, and is replaced as a whole all the same.
    is_leaf = lambda x: isinstance(x, lx.AbstractLinearSolver)
    return eqx.tree_at(where, solver, linear_solver, is_leaf=is_leaf)


def _with_root_finder(solver: Any, root_finder: Any) -> Any:
    out = _of_class(type(solver), solver)
    object.__setattr__(out, "root_finder", root_finder)
    return out


class _FirstExplicit(eqx.Module):
    """The root finder of a step whose first stage is explicit.

    diffrax begins each step of a Runge–Kutta method by factorising the identity, for
    that stage, and seldom comes to use it: half of all factorisations, and of what
    there is to compile for them.
    """

    root_finder: Any

    def init(self, fn, y, args, *rest, **kwargs):
        init = lambda: self.root_finder.init(fn, y, args, *rest, **kwargs)
        diagonal = known_value(args[1])
        if isinstance(diagonal, Tracer) or np.any(diagonal != 0):
            return init()
        is_struct = lambda x: isinstance(x, jax.ShapeDtypeStruct)
        zeros = lambda x: jnp.zeros(x.shape, x.dtype) if is_struct(x) else x
        return jtu.tree_map(zeros, eqx.filter_eval_shape(init))


#
# Classes, made once each: JAX takes two for different pytrees
#

_plain: dict[type, type] = {}  # of each that was made: what it was made from


def _of_class(cls: type, solver: Any) -> Any:
    """`solver` as an instance of `cls`, which has the same fields."""
    out = object.__new__(cls)
    for field in dataclasses.fields(solver):
        object.__setattr__(out, field.name, getattr(solver, field.name))
    return out


def _restored(make: Callable[[type], type], plain: type, fields: dict) -> Any:
    out = object.__new__(make(plain))
    for name, value in fields.items():
        object.__setattr__(out, name, value)
    return out


def _subclass(make: Callable[[type], type], cls: type, **attributes) -> type:
    """`make` is the function that is asked for it, again where it is unpickled."""
    attributes |= {"__doc__": cls.__doc__, "__module__": __name__}
    attributes["__reduce__"] = lambda self: (_restored, (make, cls, vars(self)))
    name = f"Structured{cls.__name__}"
    out = types.new_class(name, (cls,), {}, lambda body: body.update(attributes))
    _plain[out] = cls
    return out


@ft.cache
def _structured_class(cls: Any) -> type:
    import diffrax as dfx

    second_stage = dfx.CalculateJacobian.second_stage
    inner_step = _with_adjoint(cls.step, cls.__name__)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        linear_solver = self.root_finder.linear_solver
        if isinstance(linear_solver, AutoStructuredLinearSolver):
            traced, term = _traced(self, terms, t0, y0, args)
            pattern = _stage_pattern(linear_solver.pattern, term, t0, t1, y0, args)
            terms = terms if pattern is None else traced
            self = _with(self, dataclasses.replace(linear_solver, pattern=pattern))
        if getattr(self, "calculate_jacobian", None) == second_stage:
            linear_solver = OrIdentity(self.root_finder.linear_solver)
            self = _with(self, linear_solver)
            self = _with_root_finder(self, _FirstExplicit(self.root_finder))
        return inner_step(self, terms, t0, t1, y0, args, solver_state, made_jump)

    return _subclass(_structured_class, cls, step=step)


@ft.cache
def _wrapper_class(cls: type) -> type:
    # diffrax takes a wrapper for what it wraps, and asks it for these; `HalfSolver`
    # has none of them.
    names = ("root_finder", "root_find_max_steps", "scan_kind")
    of_inner = lambda name: property(lambda self: getattr(self.solver, name))
    return _subclass(
        _wrapper_class, cls, **{x: of_inner(x) for x in names if not hasattr(cls, x)}
    )


#
# The adjoint
#


def _root_find(fn, solver: Any, *args, **kwargs):
    if isinstance(solver, _FirstExplicit):
        solver = solver.root_finder
        linear_solver = solver.linear_solver.solver
    else:
        linear_solver = solver.linear_solver
    kwargs.setdefault("adjoint", optx.ImplicitAdjoint(linear_solver))
    return optx.root_find(fn, solver, *args, **kwargs)


def _with_adjoint(step: Any, name: str) -> types.FunctionType:
    """`step`, where it names `optx.root_find` meaning `_root_find`."""
    step = inspect.unwrap(step)
    optimistix = types.ModuleType(optx.__name__)
    optimistix.__dict__.update(vars(optx), root_find=_root_find)

    def replaced(x):
        if x is optx.root_find:
            return _root_find
        return optimistix if x is optx else x

    names = {k: replaced(x) for k, x in step.__globals__.items()}
    if all(names[k] is x for k, x in step.__globals__.items()):
        raise ValueError(
            f"`structured` found no `optx.root_find` in `{name}.step`, and cannot tell "
            "it how to differentiate a stage."
        )
    out = types.FunctionType(
        step.__code__, names, step.__name__, step.__defaults__, step.__closure__
    )
    out.__kwdefaults__ = step.__kwdefaults__
    return out


#
# The pattern
#


@ft.cache
def _traced_class() -> type:
    import diffrax as dfx

    class Traced(dfx.AbstractTerm):
        """A term whose vector field is traced once for the pattern and the step.

        Both of them look at it more than once, which is quick with what JAX has traced.
        """

        term: dfx.AbstractTerm
        traced: Callable[..., PyTree[Array]]

        def vf(self, t, y, args):
            return self.traced(jnp.asarray(t), y, args)

        def contr(self, t0, t1, **kwargs):
            return self.term.contr(t0, t1, **kwargs)

        def prod(self, vf, control):
            return self.term.prod(vf, control)

        def vf_prod(self, t, y, args, control):
            return self.prod(self.vf(t, y, args), control)

        def is_vf_expensive(self, t0, t1, y, args):
            return self.term.is_vf_expensive(t0, t1, y, args)

    return Traced


def _traced(solver: Any, terms: Any, t0: Any, y: PyTree, args: PyTree) -> Any:
    """`terms`, with the implicit one traced, and that one.

    Where ∂f/∂y has a pattern, the product with the control is one entry by entry, and
    there is no cheaper one with the vector field than `prod` of `vf`.
    """
    import diffrax as dfx

    trace = lambda term: _traced_class()(
        term, eqx.filter_closure_convert(term.vf, jnp.asarray(t0), y, args)
    )
    tableau = getattr(solver, "tableau", None)
    if not isinstance(tableau, dfx.MultiButcherTableau):
        term = trace(terms)
        return term, term
    pairs = zip(tableau.tableaus, terms.terms)
    new = [trace(term) if tab.implicit else term for tab, term in pairs]
    (term,) = [x for x in new if isinstance(x, _traced_class())]
    return dfx.MultiTerm(*new), term


def _stage_pattern(
    pattern: Pattern | None, term: Any, t0: Any, t1: Any, y: PyTree, args: PyTree
) -> Pattern | None:
    """That of the matrix of a stage, I − γ Δt ∂f/∂y, or `None` where it is another one.

    diffrax solves for f or for k = f Δt. The pattern is the same if Δt multiplies f
    entry by entry. Terms of stochastic equations, and those of
    `diffrax.BacksolveAdjoint`, are left to the linear solver.
    """
    f = eqx.filter_eval_shape(term.vf, t0, y, args)
    if tree_size(y) == 0 or _shapes(f) != _shapes(y):
        return None
    control = term.contr(t0, t1)
    product = _pattern(lambda f, _, c, term: term.prod(f, c), y, (), control, term)
    if product is None or product.bandwidth != (0, 0):
        return None
    if pattern is None:
        # A step evaluates it at other times than t0, whether JAX traces that or not.
        vector_field = lambda y, t, args, term: term.vf(t, y, args)
        pattern = _pattern(vector_field, y, jnp.asarray(t0), args, term)
    return None if pattern is None else _with_diagonal(pattern)


def _shapes(tree: PyTree) -> tuple:
    leaves, structure = jtu.tree_flatten(tree)
    return structure, [jnp.shape(x) for x in leaves]


def _pattern(
    fn: Callable, y: PyTree[Array], unknown: PyTree[Array], *args: PyTree
) -> Pattern | None:
    """Where ∂fn/∂y may have entries. What JAX traces is an argument, as it is unknown;
    everything else is a constant, and its zeros count. (As an argument, what is weakly
    typed would lose that, and promote y.)"""
    is_unknown = lambda x: isinstance(x, Tracer) and not x.weak_type
    traced, known = eqx.partition(args, is_unknown)
    closed = lambda y, args: fn(y, args[0], *eqx.combine(args[1], known))
    operator = lx.JacobianLinearOperator(
        closed, y, (unknown, traced), closure_convert=False
    )
    return detect(operator)


@ft.lru_cache(maxsize=64)
def _with_diagonal(pattern: Pattern) -> Pattern:
    i = np.arange(min(pattern.shape))
    rows, cols = np.append(pattern.rows, i), np.append(pattern.cols, i)
    return Pattern(rows, cols, pattern.shape)
