"""`structured`: diffrax's solvers, their derivatives too, without a dense matrix."""

import ast
import contextlib
import inspect
import subprocess
import sys
import textwrap
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest
import scipy.integrate
from helpers import assert_close, flatten, needs_asdex
from operators import dense_path_fails

import lineax_ext as lxe


N = 12
START = np.sin(np.linspace(0, 8, N))
CONTROLLER = dfx.PIDController(rtol=1e-4, atol=1e-6)


def _laplacian(x, np=jnp):
    return np.diff(np.pad(np.diff(x), 1)) * N**2


def _allen_cahn(t, u, diffusion, np=jnp):
    return diffusion * _laplacian(u, np) + u - u**3


def _solve(solver, y0=START, args=0.01, term=_allen_cahn, t1=0.05, **kwargs):
    options: dict[str, Any] = dict(stepsize_controller=CONTROLLER, max_steps=64)
    terms = dfx.ODETerm(term) if callable(term) else term
    return dfx.diffeqsolve(terms, solver, 0.0, t1, 1e-2, y0, args, **(options | kwargs))


def _loss(solver, args=0.01, **kwargs):
    solution = _solve(solver, args=args, **kwargs)
    y = jax.tree.map(lambda x: x[-1], solution.ys)
    loss = jnp.sum(jnp.abs(flatten(y)) ** 2)
    return loss, (flatten(y), solution.stats["num_steps"])


def _gradient(solver, **kwargs):
    fn = jax.grad(lambda args: _loss(solver, args, **kwargs), has_aux=True)
    return jax.jit(fn)(0.01)


def _one_step(solver, term=_allen_cahn):
    """As `_gradient`, of a single step: what compiles is a fraction of a solve."""
    terms = dfx.ODETerm(term) if callable(term) else term

    def fn(args):
        y0, t0, t1 = map(jnp.asarray, (START, np.array(0.0), np.array(1e-3)))
        state = solver.init(terms, t0, t1, y0, args)
        y1, error, *_ = solver.step(terms, t0, t1, y0, args, state, False)
        return jnp.sum(y1**2), (y1, error)

    return jax.jit(jax.grad(fn, has_aux=True))(np.array(0.01))


def _assert_as_plain(plain, linear_solver=None, run=_gradient, rtol=1e-10, **kwargs):
    """Same steps, results and derivatives, without the dense path."""
    with dense_path_fails():
        if linear_solver is None:
            found = run(lxe.structured(plain), **kwargs)
        else:
            found = run(lxe.structured(plain, linear_solver), **kwargs)
    expected = run(plain, **kwargs)
    for actual, reference in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert_close(actual, reference, rtol)
    return found


#
# Every implicit solver
#


METHODS = (dfx.ImplicitEuler, dfx.Kvaerno3, dfx.Kvaerno4, dfx.Kvaerno5)
IMEX = (dfx.KenCarp3, dfx.KenCarp4, dfx.KenCarp5, dfx.Sil3)
# The explicit term couples everything, and must not count.
SPLIT = dfx.MultiTerm(
    dfx.ODETerm(lambda t, u, args: u - u**3 + jnp.mean(u)),
    dfx.ODETerm(lambda t, u, args: args * _laplacian(u)),
)


def test_every_solver_is_tested():
    implicit = {
        x
        for x in vars(dfx).values()
        if isinstance(x, type)
        and issubclass(x, dfx.AbstractImplicitSolver)
        and not inspect.isabstract(x)
        and hasattr(x, "order")
        and not x.__name__.startswith("Abstract")
    }
    assert implicit == {*METHODS, *IMEX}


@needs_asdex
@pytest.mark.parametrize("method", METHODS + IMEX)
def test_as_plain(method):
    if method is dfx.Kvaerno3:
        _assert_as_plain(method())
    else:
        term = SPLIT if method in IMEX else _allen_cahn
        plain = method(root_finder=dfx.VeryChord(1e-8, 1e-8))
        _assert_as_plain(plain, run=_one_step, term=term)


@needs_asdex
def test_half_solver():
    # Plain diffrax 0.7.2 cannot ask a `HalfSolver` for its root finder.
    solver = lxe.structured(dfx.HalfSolver(dfx.Kvaerno3()))
    assert isinstance(solver, dfx.HalfSolver)
    with dense_path_fails():
        controller = dfx.PIDController(rtol=1e-7, atol=1e-9)
        kwargs = dict(adjoint=dfx.ForwardMode(), stepsize_controller=controller)
        fn = lambda d: _loss(solver, d, max_steps=None, **kwargs)
        _, slope, (y, _) = jax.jvp(fn, (0.01,), (1.0,), has_aux=True)

    def scipy_y(diffusion):
        fn = lambda t, u: _allen_cahn(t, u, diffusion, np)
        return scipy.integrate.solve_ivp(
            fn, (0.0, 0.05), START, "Radau", rtol=1e-12, atol=1e-12
        ).y[:, -1]

    assert_close(y, scipy_y(0.01), 1e-6)
    step = 1e-5
    above, below = (np.sum(scipy_y(0.01 + s) ** 2) for s in (step, -step))
    assert_close(slope, (above - below) / (2 * step), 1e-5)


#
# Root finders and linear solvers
#


VERY_CHORD = dfx.with_stepsize_controller_tols(dfx.VeryChord)
ROOT_FINDERS = (
    VERY_CHORD(kappa=1e-3),
    dfx.VeryChord(1e-9, 1e-10, optx.rms_norm),
    dfx.with_stepsize_controller_tols(optx.Newton)(cauchy_termination=False),
    optx.Chord(1e-9, 1e-10),
)


@needs_asdex
@pytest.mark.parametrize("root_finder", ROOT_FINDERS, ids=lambda x: type(x).__name__)
def test_root_finder(root_finder):
    plain = dfx.ImplicitEuler(root_finder, root_find_max_steps=9)
    solver = lxe.structured(plain)
    assert type(solver.root_finder) is type(root_finder)
    assert solver.root_find_max_steps == 9
    settings = {k: x for k, x in vars(root_finder).items() if k != "linear_solver"}
    assert settings.items() <= vars(solver.root_finder).items()
    given = isinstance(root_finder.rtol, float)
    _assert_as_plain(plain, run=_one_step if given else _gradient)


def test_tags():
    linear_solver = lxe.TaggedLinearSolver(lx.Tridiagonal(), lx.tridiagonal_tag)
    plain = dfx.ImplicitEuler(root_finder=dfx.VeryChord(1e-8, 1e-8))
    _assert_as_plain(plain, linear_solver, run=_one_step)


def test_pattern():
    # That of ∂f/∂y: the diagonal of I − γ Δt ∂f/∂y is nobody's concern.
    i = np.arange(N - 1)
    pattern = lxe.Pattern([*i, *i + 1], [*i + 1, *i], (N, N))
    linear_solver = lxe.AutoStructuredLinearSolver(pattern=pattern)
    sine = lambda t, u, args: (
        args * (jnp.sin(jnp.pad(u[1:], (0, 1))) - jnp.sin(jnp.pad(u[:-1], (1, 0))))
    )
    plain = dfx.ImplicitEuler(root_finder=dfx.VeryChord(1e-8, 1e-8))
    _assert_as_plain(plain, linear_solver, run=_one_step, term=sine)


#
# What is known of the vector field
#


STIFFNESS = np.diag(np.full(N, -2.0)) + np.eye(N, k=1) + np.eye(N, k=-1)
RIGHT, LEFT = np.clip(np.arange(N) + 1, 0, N - 1), np.clip(np.arange(N) - 1, 0, N - 1)


def _product(stiffness):
    return lambda t, u, args: args * N**2 * (stiffness @ u) - u**3


def _gather(right, left):
    return lambda t, u, args: args * N**2 * (u[right] - 2 * u + u[left]) - u**3


@needs_asdex
@pytest.mark.parametrize(
    "root_finder", (dfx.VeryChord(1e-8, 1e-8), optx.Newton(1e-8, 1e-8))
)
@pytest.mark.parametrize(
    "term",
    (
        _product(STIFFNESS),
        _product(jnp.asarray(STIFFNESS)),
        _gather(jnp.asarray(RIGHT), jnp.asarray(LEFT)),
    ),
    ids=("numpy", "jax", "gather"),
)
def test_constants(term, root_finder):
    plain = dfx.ImplicitEuler(root_finder=root_finder)
    _assert_as_plain(plain, run=_one_step, term=term)


def test_root_find_in_the_vector_field():
    """It has nothing to do with the stages, and keeps its own adjoint."""

    def vector_field(t, u, args):
        newton = optx.Newton(1e-12, 1e-12)
        cube = lambda z, s: z**3 + z - s
        z = optx.root_find(cube, newton, jnp.zeros(2), u[:2]).value
        return args * _laplacian(u) - jnp.pad(z, (0, N - 2))

    plain = dfx.ImplicitEuler(root_finder=dfx.VeryChord(1e-8, 1e-8))
    found = _one_step(lxe.structured(plain), term=vector_field)
    expected = _one_step(plain, term=vector_field)
    for actual, reference in zip(*map(jax.tree.leaves, (found, expected))):
        assert_close(actual, reference, 1e-10)


#
# Adjoints, and whatever else goes through diffrax
#


@needs_asdex
@pytest.mark.parametrize("adjoint", (dfx.ForwardMode(), dfx.DirectAdjoint()))
def test_forward_mode(adjoint):
    def run(solver):
        kwargs = dict(adjoint=adjoint, max_steps=16)
        fn = lambda args: _loss(solver, args, **kwargs)
        return jax.jit(lambda d: jax.jvp(fn, (d,), (1.0,), has_aux=True))(0.01)

    _assert_as_plain(dfx.Kvaerno3(), run=run)


@needs_asdex
def test_direct_adjoint():
    adjoint = dfx.DirectAdjoint()
    _assert_as_plain(dfx.Kvaerno3(), adjoint=adjoint, max_steps=16)


@needs_asdex
def test_backsolve_adjoint():
    # An equation for y, the adjoint, and the gradient so far: its own terms.
    solver = dfx.Kvaerno3()
    kwargs = dict(adjoint=dfx.BacksolveAdjoint())
    found = _gradient(lxe.structured(solver), **kwargs)
    expected = _gradient(solver, **kwargs)
    for actual, reference in zip(*map(jax.tree.leaves, (found, expected))):
        assert_close(actual, reference, 1e-10)


@needs_asdex
def test_implicit_adjoint():
    kwargs: dict[str, Any] = dict(
        adjoint=dfx.ImplicitAdjoint(lxe.AutoStructuredLinearSolver()),
        event=dfx.Event(dfx.steady_state_event(1e-4, 1e-4)),
        t1=100.0,
        term=lambda t, u, args: args * _laplacian(u) + 1 - u,
    )
    # diffrax multiplies times with a strongly typed direction there.
    with jax.numpy_dtype_promotion("standard"):
        _assert_as_plain(dfx.Kvaerno3(), **kwargs)


@needs_asdex
def test_dense_output_and_event():
    def crossing(t, y, args, **kwargs):
        return y[0] - 0.2

    event = dfx.Event(crossing, optx.Newton(1e-10, 1e-10))

    def run(solver):
        def fn(args):
            saveat = dfx.SaveAt(dense=True, t1=True)
            solution = _solve(solver, args=args, saveat=saveat, event=event, t1=0.3)
            assert solution.ts is not None
            return jnp.sum(solution.evaluate(0.04) ** 2), solution.ts[-1]

        return jax.jit(jax.value_and_grad(fn, has_aux=True))(0.01)

    (_, t1), _ = _assert_as_plain(dfx.Kvaerno3(), run=run)
    assert 0.04 < t1 < 0.3


@needs_asdex
def test_vmap_over_trees():
    def field(t, y, args):
        out = _allen_cahn(t, flatten(y), args)
        return {"a": out[:4].reshape(2, 2), "b": out[4:]}

    def run(solver):
        def fn(y0, args):
            return _loss(solver, args, y0=y0, term=field)

        one = {"a": START[:4].reshape(2, 2), "b": START[4:]}
        y0 = jax.tree.map(lambda x: np.stack([x / 2, x]), one)
        gradient = jax.grad(fn, argnums=(0, 1), has_aux=True)
        return jax.jit(jax.vmap(gradient))(y0, jnp.asarray([0.01, 0.02]))

    _assert_as_plain(dfx.Kvaerno3(), run=run)


@needs_asdex
@pytest.mark.parametrize("dtype", (np.float32, np.complex128))
@pytest.mark.filterwarnings("ignore:Complex")
def test_dtype(dtype):
    def field(t, u, args):
        return jnp.asarray(args, u.dtype) * _laplacian(u) - u

    def run(solver):
        y0 = jnp.asarray(START * (1 + 1j) if dtype is np.complex128 else START, dtype)
        controller = dfx.PIDController(rtol=1e-4, atol=1e-4)
        real = y0.real.dtype
        fn = lambda args: _loss(
            solver, args, y0=y0, term=field, stepsize_controller=controller
        )
        return jax.jit(jax.grad(fn, has_aux=True))(jnp.asarray(0.01, real))

    _assert_as_plain(
        dfx.Kvaerno3(), run=run, rtol=1e-10 if dtype != np.float32 else 1e-4
    )


#
# A genuine solver of diffrax, and nothing of diffrax changed
#


@pytest.mark.parametrize("method", METHODS + IMEX)
def test_is_a_diffrax_solver(method):
    plain, solver = method(), lxe.structured(method())
    assert isinstance(solver, method)
    terms = SPLIT if method in IMEX else dfx.ODETerm(_allen_cahn)
    for name in ("order", "strong_order", "error_order"):
        assert getattr(solver, name)(terms) == getattr(plain, name)(terms)
    for name in ("interpolation_cls", "term_structure", "term_compatible_contr_kwargs"):
        assert getattr(solver, name) == getattr(plain, name)
    again = lxe.structured(lxe.structured(method()))
    assert type(again) is type(solver)
    assert jax.tree.structure(again) == jax.tree.structure(solver)


def test_nothing_is_patched():
    step, root_find = dfx.AbstractRungeKutta.step, optx.root_find
    seen = dict(step.__globals__)

    def fail(t, y, args):
        assert optx.root_find is root_find and dfx.AbstractRungeKutta.step is step
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        _solve(lxe.structured(dfx.Kvaerno3()), term=fail)
    assert optx.root_find is root_find and dfx.AbstractRungeKutta.step is step
    assert step.__globals__ == seen


@pytest.mark.parametrize("method", (dfx.AbstractRungeKutta, dfx.ImplicitEuler))
def test_diffrax_hands_over_no_adjoint(method):
    """Once it does, `structured` has less to do: this is where to look."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(method.step)))
    calls = [
        call
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "optx.root_find"
    ]
    assert len(calls) > 0
    keywords = {keyword.arg for call in calls for keyword in call.keywords}
    assert keywords == {"options", "throw", "max_steps"} - (
        {"options"} if method is dfx.ImplicitEuler else set()
    )


def test_import_leaves_diffrax_alone():
    code = "import sys, lineax_ext; assert 'diffrax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "solver, message",
    (
        (dfx.Tsit5(), "`Tsit5`, an explicit solver, which has nothing to solve"),
        (dfx.HalfSolver(dfx.Euler()), "`Euler`, an explicit solver"),
        (optx.Newton(1e-6, 1e-6), "`Newton`, which is no solver of diffrax"),
        (dfx.Kvaerno5, "which is no solver of diffrax"),
        (
            dfx.Kvaerno5(root_finder=optx.Bisection(1e-6, 1e-6)),
            "that of `Kvaerno5`, `Bisection`, has none",
        ),
    ),
)
def test_errors(solver, message):
    with pytest.raises(ValueError, match=message):
        lxe.structured(solver)
