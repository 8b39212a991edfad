"""`structured`: diffrax's solvers, their derivatives too, without a dense matrix.

Compiling is what takes time here. Most tests take one step, or four of the same length,
and compare with NumPy; a few whole solves are compared with those of diffrax.
"""

import ast
import concurrent.futures
import contextlib
import functools as ft
import inspect
import pickle
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
from helpers import assert_close, directional, flatten, gradient, slow
from operators import dense_path_fails

import lineax_ext as lxe


N, DT, DIFFUSION = 12, 1e-3, 0.01
START = np.sin(np.linspace(0, 8, N))
EYE = np.eye(N)
LAPLACE = np.diff(np.pad(np.diff(EYE, axis=0), ((1, 1), (0, 0))), axis=0) * N**2
VERY_CHORD = dfx.VeryChord(1e-12, 1e-12)


def _laplacian(x):
    return jnp.diff(jnp.pad(jnp.diff(x), 1)) * N**2


def _allen_cahn(t, u, diffusion):
    return diffusion * _laplacian(u) + u - u**3


#
# Steps in NumPy
#


def _reaction(u):
    return u - u**3


def _coupling(u):
    return u - u**3 + np.mean(u)


def _numpy_step(
    solver, y0, args, explicit=None, matrix=LAPLACE, reaction=_reaction, dt=DT
):
    """A step of a diagonally implicit method for y' = args · matrix y + reaction(y),
    or of the first and of `explicit`; every stage by Newton's method."""

    def f(u):
        out = args * matrix @ u
        return out + reaction(u) if explicit is None else out

    def slope(u):
        h = 1e-30
        here = np.diag((reaction(u + 1j * h)).imag / h) if explicit is None else 0
        return args * matrix + here

    if isinstance(solver, dfx.ImplicitEuler):
        tableaus = [([[]], [1.0], None)]
        diagonal = [1.0]
    else:
        tableau = solver.tableau
        imex = isinstance(tableau, dfx.MultiButcherTableau)
        both = tableau.tableaus if imex else (tableau,)
        tableaus = [([[], *x.a_lower], x.b_sol, x.b_error) for x in both]
        diagonal = both[-1].a_diagonal
    slopes = [[] for _ in tableaus]

    def total(weights):
        pairs = [p for w, fs in zip(weights, slopes) for p in zip(w, fs)]
        return dt * sum((w * f for w, f in pairs), 0 * y0)

    assert diagonal is not None
    for i, gamma in enumerate(diagonal):
        y = base = y0 + total([a[i] for a, _, _ in tableaus])
        for _ in range(8):
            step = base + dt * gamma * f(y) - y
            y = y + np.linalg.solve(EYE - dt * gamma * slope(y), step)
        new = [f(y)] if explicit is None else [explicit(y), f(y)]
        for fs, x in zip(slopes, new):
            fs.append(x)
    y1 = y0 + total([b for _, b, _ in tableaus])
    if isinstance(solver, dfx.ImplicitEuler):
        return y1, dt / 2 * (slopes[0][0] - f(y0))
    return y1, total([e for _, _, e in tableaus])


def _loss_step(solver, args, steps=1, y=START, **kwargs):
    for _ in range(steps):
        y, _ = _numpy_step(solver, y, args, **kwargs)
    return np.sum(y**2)


def _slope(solver, **kwargs):
    """The derivative of `_loss_step`."""
    fn = lambda t: _loss_step(solver, DIFFUSION + t, **kwargs)
    return directional(fn, 1e-3)


def _one_step(solver, term=_allen_cahn, forward=False):
    """y, its error, and the derivative of Σ y²: what compiles is little."""
    terms = dfx.ODETerm(term) if callable(term) else term

    def fn(args):
        y0, t0, t1 = map(jnp.asarray, (START, np.array(0.0), np.array(DT)))
        state = solver.init(terms, t0, t1, y0, args)
        y1, error, *_ = solver.step(terms, t0, t1, y0, args, state, False)
        return jnp.sum(y1**2), (y1, error)

    def jvp(args):
        _, slope, aux = jax.jvp(fn, (args,), (jnp.ones_like(args),), has_aux=True)
        return slope, aux

    derivative = jvp if forward else jax.grad(fn, has_aux=True)
    return jax.jit(derivative)(np.array(DIFFUSION))


def _assert_step(
    plain,
    linear_solver=None,
    term=_allen_cahn,
    forward=False,
    dense_fails=True,
    **kwargs,
):
    linear_solver = linear_solver or lxe.AutoStructuredLinearSolver()
    solver = lxe.structured(plain, linear_solver)
    with dense_path_fails() if dense_fails else contextlib.nullcontext():
        slope, (y, error) = _one_step(solver, term, forward)
    expected, expected_error = _numpy_step(plain, START, DIFFUSION, **kwargs)
    assert_close(y, expected, 1e-11)
    np.testing.assert_allclose(error, expected_error, rtol=1e-6, atol=1e-11)
    assert_close(slope, _slope(plain, **kwargs), 1e-8)


#
# Whole solves
#


def _solve(solver, y0=START, args=DIFFUSION, term=_allen_cahn, t1=0.05, **kwargs):
    options: dict[str, Any] = dict(max_steps=64)
    options["stepsize_controller"] = dfx.PIDController(rtol=1e-4, atol=1e-6)
    terms = dfx.ODETerm(term) if callable(term) else term
    return dfx.diffeqsolve(terms, solver, 0.0, t1, 1e-2, y0, args, **(options | kwargs))


def _loss(solver, args=DIFFUSION, **kwargs):
    solution = _solve(solver, args=args, **kwargs)
    y = jax.tree.map(lambda x: x[-1], solution.ys)
    loss = jnp.sum(jnp.abs(flatten(y)) ** 2)
    return loss, (flatten(y), solution.stats["num_steps"])


def _gradient(solver, **kwargs):
    fn = jax.grad(lambda args: _loss(solver, args, **kwargs), has_aux=True)
    return jax.jit(fn)(DIFFUSION)


def _value(solver, **kwargs):
    return jax.jit(lambda args: _loss(solver, args, **kwargs))(DIFFUSION)


def _assert_as_plain(plain, run, **kwargs):
    """Same steps, results and derivatives, without the dense path."""
    with dense_path_fails():
        found = run(lxe.structured(plain), **kwargs)
    expected = run(plain, **kwargs)
    for actual, reference in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert_close(actual, reference, 1e-10)


# Four steps, so that NumPy can follow.
FOUR: dict[str, Any] = dict(stepsize_controller=dfx.ConstantStepSize(), max_steps=4)
EULER = dfx.ImplicitEuler(root_finder=VERY_CHORD)


def _four_steps(solver, args=DIFFUSION, y0=START, term=_allen_cahn, **kwargs):
    solution = dfx.diffeqsolve(
        dfx.ODETerm(term), solver, 0.0, 4 * DT, DT, y0, args, **FOUR | kwargs
    )
    return jnp.sum(flatten(jax.tree.map(lambda x: x[-1], solution.ys)) ** 2)


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


@pytest.mark.parametrize("method", METHODS + IMEX)
def test_one_step(method):
    # One loop over the stages, if it has a derivative in forward mode alone.
    if method is dfx.ImplicitEuler:
        _assert_step(EULER)
    elif method in IMEX:
        plain = method(root_finder=VERY_CHORD, scan_kind="lax")
        _assert_step(plain, term=SPLIT, forward=True, explicit=_coupling)
    else:
        plain = method(root_finder=VERY_CHORD, scan_kind="lax")
        _assert_step(plain, forward=True)


def test_as_plain():
    """The whole of it: adaptive steps, and the default adjoint."""
    _assert_as_plain(dfx.Kvaerno5(), _gradient)


@pytest.mark.slow
def test_half_solver():
    # Plain diffrax 0.7.2 cannot ask a `HalfSolver` for its root finder.
    solver = lxe.structured(dfx.HalfSolver(EULER))
    assert isinstance(solver, dfx.HalfSolver)

    def fn(args):
        solution = dfx.diffeqsolve(
            dfx.ODETerm(_allen_cahn), solver, 0.0, 4 * DT, 2 * DT, START, args,
            adjoint=dfx.ForwardMode(), **FOUR,
        )  # fmt: skip
        assert solution.ys is not None
        return jnp.sum(solution.ys[-1] ** 2)

    with dense_path_fails():
        found, slope = jax.jit(lambda d: jax.jvp(fn, (d,), (1.0,)))(DIFFUSION)
    assert_close(found, _loss_step(EULER, DIFFUSION, steps=4), 1e-11)
    assert_close(slope, _slope(EULER, steps=4), 1e-8)


#
# Root finders and linear solvers
#


ROOT_FINDERS = (
    dfx.VeryChord(1e-12, 1e-12, optx.rms_norm),
    optx.Chord(1e-12, 1e-12),
    # That of `test_as_plain` has the tolerances of the controller, too.
    dfx.with_stepsize_controller_tols(optx.Newton)(cauchy_termination=False),
)


@pytest.mark.parametrize("root_finder", ROOT_FINDERS, ids=lambda x: type(x).__name__)
def test_root_finder(root_finder):
    plain = dfx.ImplicitEuler(root_finder, root_find_max_steps=9)
    solver = lxe.structured(plain)
    assert type(solver.root_finder) is type(root_finder)
    assert solver.root_find_max_steps == 9
    settings = {k: x for k, x in vars(root_finder).items() if k != "linear_solver"}
    assert settings.items() <= vars(solver.root_finder).items()
    if isinstance(root_finder, optx.Newton):
        _assert_as_plain(plain, _value)
    else:
        _assert_step(plain)


def test_tags():
    linear_solver = lxe.TaggedLinearSolver(lx.Tridiagonal(), lx.tridiagonal_tag)
    _assert_step(EULER, linear_solver)


def test_pattern():
    # That of ∂f/∂y: the diagonal of I − γ Δt ∂f/∂y is nobody's concern.
    matrix = np.eye(N, k=1) - np.eye(N, k=-1) / 2
    rows, cols = np.nonzero(matrix)
    pattern = lxe.Pattern(rows, cols, (N, N))
    linear_solver = lxe.AutoStructuredLinearSolver(pattern=pattern)
    term = lambda t, u, args: (
        args * (jnp.pad(u[1:], (0, 1)) - jnp.pad(u[:-1], (1, 0)) / 2)
    )
    _assert_step(EULER, linear_solver, term, matrix=matrix, reaction=lambda u: 0 * u)


#
# What is known of the vector field
#


STIFFNESS = np.diag(np.full(N, -2.0)) + np.eye(N, k=1) + np.eye(N, k=-1)
RIGHT, LEFT = np.clip(np.arange(N) + 1, 0, N - 1), np.clip(np.arange(N) - 1, 0, N - 1)


def _product(stiffness):
    return lambda t, u, args: args * N**2 * (stiffness @ u) - u**3


def _gather(right, left):
    return lambda t, u, args: args * N**2 * (u[right] - 2 * u + u[left]) - u**3


@pytest.mark.parametrize(
    "term, matrix, root_finder",
    (
        (_product(STIFFNESS), STIFFNESS, VERY_CHORD),
        (_product(jnp.asarray(STIFFNESS)), STIFFNESS, VERY_CHORD),
        (_product(jnp.asarray(STIFFNESS)), STIFFNESS, optx.Newton(1e-12, 1e-12)),
        (_gather(jnp.asarray(RIGHT), jnp.asarray(LEFT)), LAPLACE / N**2, VERY_CHORD),
    ),
    ids=("numpy", "jax", "jax-newton", "gather"),
)
def test_constants(term, matrix, root_finder):
    plain = dfx.ImplicitEuler(root_finder=root_finder)
    _assert_step(plain, None, term, matrix=N**2 * matrix, reaction=lambda u: -(u**3))


def test_root_find_in_the_vector_field():
    """It has nothing to do with the stages, and keeps its own adjoint: a dense one."""

    def vector_field(t, u, args):
        newton = optx.Newton(1e-12, 1e-12)
        cube = lambda z, s: z**3 + z - s
        z = optx.root_find(cube, newton, jnp.zeros(2), u[:2]).value
        return args * _laplacian(u) - jnp.pad(z, (0, N - 2))

    def reaction(u):
        z = u[:2]
        for _ in range(20):
            z = z - (z**3 + z - u[:2]) / (3 * z**2 + 1)
        return np.pad(-z, (0, N - 2))

    _assert_step(EULER, None, vector_field, dense_fails=False, reaction=reaction)


#
# Adjoints, and whatever else goes through diffrax
#


def test_forward_mode():
    # `dfx.ForwardMode` is that of `test_half_solver`.
    fn = ft.partial(_four_steps, lxe.structured(EULER), adjoint=dfx.DirectAdjoint())
    with dense_path_fails():
        loss, slope = jax.jit(lambda d: jax.jvp(fn, (d,), (1.0,)))(DIFFUSION)
    assert_close(loss, _loss_step(EULER, DIFFUSION, steps=4), 1e-11)
    assert_close(slope, _slope(EULER, steps=4), 1e-8)


def test_direct_adjoint():
    adjoint = dfx.DirectAdjoint()
    fn = ft.partial(_four_steps, lxe.structured(EULER), adjoint=adjoint)
    with dense_path_fails():
        slope = jax.jit(jax.grad(fn))(DIFFUSION)
    assert_close(slope, _slope(EULER, steps=4), 1e-8)


@pytest.mark.slow
def test_backsolve_adjoint():
    """An equation for y, its adjoint a and the gradient so far, with its own terms."""
    fn = ft.partial(_four_steps, lxe.structured(EULER), adjoint=dfx.BacksolveAdjoint())
    found = jax.jit(jax.grad(fn))(DIFFUSION)
    y = START
    for _ in range(4):
        y, _ = _numpy_step(EULER, y, DIFFUSION)
    a, expected = 2 * y, 0.0
    for _ in range(4):
        y, _ = _numpy_step(EULER, y, DIFFUSION, dt=-DT)
        jacobian = DIFFUSION * LAPLACE + np.diag(1 - 3 * y**2)
        a = np.linalg.solve(EYE - DT * jacobian.T, a)
        expected += DT * a @ LAPLACE @ y
    assert_close(found, expected, 1e-8)


def test_implicit_adjoint():
    """A steady state: the solution of a linear equation."""
    kwargs: dict[str, Any] = dict(
        adjoint=dfx.ImplicitAdjoint(lxe.AutoStructuredLinearSolver()),
        event=dfx.Event(dfx.steady_state_event(1e-9, 1e-9)),
        t1=100.0,
        term=lambda t, u, args: args * _laplacian(u) + START - u,
        max_steps=4096,
    )
    # diffrax multiplies times with a strongly typed direction there.
    with dense_path_fails(), jax.numpy_dtype_promotion("standard"):
        slope, (y, _) = _gradient(lxe.structured(dfx.ImplicitEuler()), **kwargs)
    matrix = EYE - DIFFUSION * LAPLACE
    expected = np.linalg.solve(matrix, START)
    assert_close(y, expected, 1e-6)
    assert_close(slope, 2 * y @ np.linalg.solve(matrix, LAPLACE @ expected), 1e-6)


def test_dense_output_and_event():
    """Lines between the steps; the third one is where y[0] reaches `level`."""

    def numpy_run(args, level=None):
        y = [START]
        for _ in range(3):
            y.append(_numpy_step(EULER, y[-1], args)[0])
        level = (y[2][0] + y[3][0]) / 2 if level is None else level
        time = 2 + (level - y[2][0]) / (y[3][0] - y[2][0])
        return np.array([np.sum((y[1] + y[2]) ** 2) / 4, DT * time]), level

    expected, level = numpy_run(DIFFUSION)

    def crossing(t, y, args, **kwargs):
        return y[0] - level

    def fn(args):
        solution = dfx.diffeqsolve(
            dfx.ODETerm(_allen_cahn), lxe.structured(EULER), 0.0, 4 * DT, DT, START,
            args, saveat=dfx.SaveAt(dense=True, t1=True),
            event=dfx.Event(crossing, optx.Newton(1e-10, 1e-10)), **FOUR,
        )  # fmt: skip
        assert solution.ts is not None
        value = jnp.sum(solution.evaluate(1.5 * DT) ** 2)
        return value + solution.ts[-1], jnp.stack([value, solution.ts[-1]])

    with dense_path_fails():
        slope, found = jax.jit(jax.grad(fn, has_aux=True))(DIFFUSION)
    assert_close(found, expected, 1e-9)
    run = lambda t: np.sum(numpy_run(DIFFUSION + t, level)[0])
    assert_close(slope, directional(run, 1e-4), 1e-7)


def test_vmap_over_trees():
    solver = lxe.structured(EULER)

    def field(t, y, args):
        out = _allen_cahn(t, flatten(y), args)
        return {"a": out[:4].reshape(2, 2), "b": out[4:]}

    def fn(y0, args):
        y0 = {"a": y0[:4].reshape(2, 2), "b": y0[4:]}
        t0, t1 = map(jnp.asarray, (np.array(0.0), np.array(DT)))
        y1, *_ = solver.step(dfx.ODETerm(field), t0, t1, y0, args, None, False)
        return jnp.sum(flatten(y1) ** 2)

    args, y0 = np.array([0.01, 0.02]), np.stack([START / 2, START])
    with dense_path_fails():
        run = jax.jit(jax.vmap(jax.value_and_grad(fn, argnums=(0, 1))))
        losses, (by_y0, by_args) = run(y0, args)
    numpy_loss = lambda y, d: _loss_step(EULER, d, y=y)
    for y, d, *found in zip(y0, args, losses, by_y0, by_args, strict=True):
        expected = (
            numpy_loss(y, d),
            gradient(ft.partial(numpy_loss, d=d), y),
            directional(lambda t, y=y, d=d: numpy_loss(y, d + t), 1e-3),
        )
        for actual, reference in zip(found, expected, strict=True):
            assert_close(actual, reference, 1e-8)


@pytest.mark.parametrize("dtype", (np.float32, np.complex128))
@pytest.mark.filterwarnings("ignore:Complex")
def test_dtype(dtype):
    """y' = args · Δy − y: a step is the solution of a linear equation."""
    y0 = (START * (1 + 1j) if dtype is np.complex128 else START).astype(dtype)
    real = y0.real.dtype
    tolerance = 1e-6 if dtype is np.float32 else 1e-12
    solver = lxe.structured(
        dfx.ImplicitEuler(root_finder=dfx.VeryChord(tolerance, tolerance))
    )

    def fn(args):
        term = lambda t, u, args: args.astype(u.dtype) * _laplacian(u) - u
        t0, t1 = jnp.zeros((), real), jnp.asarray(DT, real)
        y, *_ = solver.step(
            dfx.ODETerm(term), t0, t1, jnp.asarray(y0), args, None, False
        )
        assert y.dtype == dtype
        return jnp.sum(jnp.abs(y) ** 2), y

    with dense_path_fails():
        derivative = jax.jit(jax.grad(fn, has_aux=True))
        slope, y = derivative(jnp.asarray(DIFFUSION, real))
    matrix = EYE - DT * (DIFFUSION * LAPLACE - EYE)
    expected = np.linalg.solve(matrix, y0.astype(np.complex128))
    tangent = np.linalg.solve(matrix, DT * LAPLACE @ expected)
    rtol = 1e-5 if dtype is np.float32 else 1e-10
    assert_close(y, expected if dtype is np.complex128 else expected.real, rtol)
    assert_close(slope, 2 * np.real(np.vdot(expected, tangent)), 10 * rtol)


@pytest.mark.parametrize("dtype", (np.float32, np.complex128))
@pytest.mark.filterwarnings("ignore:Complex")
def test_dtype_of_runge_kutta(dtype):
    """The first stage of the first step is explicit, and has the identity."""
    y0, real = jnp.asarray(START, dtype), np.zeros((), dtype).real.dtype
    solver = lxe.structured(dfx.Kvaerno3(root_finder=dfx.VeryChord(1e-6, 1e-6)))
    terms = dfx.ODETerm(lambda t, u, args: -u)
    t0, t1 = jnp.zeros((), real), jnp.asarray(DT, real)

    @jax.jit
    def step(y0):
        state = solver.init(terms, t0, t1, y0, None)
        return solver.step(terms, t0, t1, y0, None, state, False)[0]

    y1 = step(y0)
    assert y1.dtype == dtype
    assert_close(y1, START * np.exp(-DT), 1e-6)


#
# A genuine solver of diffrax, and nothing of diffrax changed
#


def test_time_is_unknown():
    """Stepping by hand, at a time that is known and at which an entry is zero."""
    shift = np.eye(N, k=3)
    term = lambda t, u, args: args * _laplacian(u) + 1e3 * t * (shift @ u)
    solver = lxe.structured(EULER)
    y1, *_, result = solver.step(
        dfx.ODETerm(term), 0.0, DT, jnp.asarray(START), 0.0, None, False
    )
    assert_close(y1, np.linalg.solve(EYE - DT * 1e3 * DT * shift, START), 1e-11)
    assert result == dfx.RESULTS.successful


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


@pytest.mark.parametrize("method", (dfx.Kvaerno3, dfx.KenCarp4, dfx.ImplicitEuler))
def test_pickled(method):
    solver = lxe.structured(dfx.HalfSolver(method(root_finder=VERY_CHORD)))
    again = pickle.loads(pickle.dumps(solver))
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


def test_threads():
    """Traced at the same time, with and without."""
    solvers = [EULER, lxe.structured(EULER)] * 2
    with concurrent.futures.ThreadPoolExecutor(len(solvers)) as pool:
        found = list(pool.map(_one_step, solvers))
    expected, _ = _numpy_step(EULER, START, DIFFUSION)
    for slope, (y, _) in found:
        assert_close(y, expected, 1e-11)
        assert_close(slope, _slope(EULER), 1e-8)


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


@pytest.mark.parametrize(
    "method, term", (slow(dfx.Kvaerno3, None), (dfx.KenCarp3, SPLIT))
)
def test_traced_no_more_often_than_by_diffrax(method, term):
    """A vector field may take seconds to trace."""

    def traces(solver):
        count = 0

        def field(t, u, args):
            nonlocal count
            count += 1
            return _allen_cahn(t, u, args)

        implicit = dfx.ODETerm(field)
        terms = implicit if term is None else dfx.MultiTerm(term.terms[0], implicit)
        jax.eval_shape(lambda: _solve(solver, term=terms).ys)
        return count

    assert traces(lxe.structured(method())) <= traces(method())


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
