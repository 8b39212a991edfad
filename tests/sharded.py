"""Checks on eight devices: a program, which `test_sharded.py` runs once.

Prints a JSON object, from the name of each check to its traceback, or to `null`. As
`sharded.py --process INDEX PORT` it is one of two processes, with two devices each.
"""

import json
import math
import os
import re
import sys
import time
import traceback


if __name__ == "__main__":
    # What lineax checks of a solve inside a derivative, it would gather on one device.
    os.environ.setdefault("EQX_ON_ERROR", "nan")
    # Those of `conftest.py` are inherited.
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={2 if '--process' in sys.argv else 8} "
        + os.environ.get("XLA_FLAGS", "")
    )

import diffrax as dfx  # noqa: E402
import jax  # noqa: E402
import jax.lax as lax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import lineax as lx  # noqa: E402
import numpy as np  # noqa: E402
import optimistix as optx  # noqa: E402
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P  # noqa: E402

import lineax_ext as lxe  # noqa: E402


CHECKS = {}
HEARTBEAT_SECONDS = 5


def check(fn):
    CHECKS[fn.__name__] = fn
    return fn


def mesh_of(shape=(8,), names=("rows",), kind=AxisType.Auto):
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape))


def line():
    return NamedSharding(mesh_of(), P("rows"))


def tree():
    mesh = mesh_of((2, 4), ("hosts", "devices"))
    return NamedSharding(mesh, P(("hosts", "devices")))


def assert_close(found, expected, tolerance=1e-12):
    found, expected = np.asarray(found), np.asarray(expected)
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


#
# What a compiled program does
#

_COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    r"|collective-broadcast|ragged-all-to-all)(?:-start)?\("
)
_SHAPE = re.compile(r"\b(?:pred|[a-z]+\d+\w*)\[([\d,]*)\]")


def entries(shape: str) -> int:
    sizes = [
        math.prod(map(int, filter(None, x.split(",")))) for x in _SHAPE.findall(shape)
    ]
    return max(sizes, default=0)


def collectives(text: str) -> list[tuple[str, int]]:
    """The collectives of a program, with the number of entries of each."""
    found = [_COLLECTIVE.search(line) for line in text.splitlines()]
    return [(x.group(2), entries(x.group(1))) for x in found if x is not None]


def _size(moved: tuple[str, int]) -> int:
    return moved[1]


def largest_buffer(text: str) -> int:
    """In entries, on one device."""
    return max(map(entries, text.splitlines()))


#
# Operators
#


def waves(y, t):
    """Residuals of one model at any times: a sum of damped waves."""
    t = t.astype(y.dtype)
    terms = [y[k] * jnp.sin((k + 1) * t) for k in range(y.size)]
    return sum(terms[1:], terms[0]) * jnp.exp(-jnp.sum(y**2) * t / 10)


def ragged(y, t):
    """A pytree of outputs, of sizes that eight does not divide."""
    a, b, c = t[:61], t[61:181].reshape(40, 3), t[181]
    return {"a": waves(y, a), "b": [waves(y, b).astype(y.dtype)], "c": waves(y, c)}


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def dense(fn, y, t):
    jac = jax.jit(jax.jacfwd(fn, holomorphic=jnp.iscomplexobj(y)))(y, t)
    return np.concatenate(
        [np.reshape(x, (-1, y.size)) for x in jax.tree.leaves(jac)]
    ).astype(np.promote_types(y.dtype, np.float64))


def solvers(rows):
    return {
        "QRMultiply": lxe.QRMultiply(rows=rows),
        "pivoting": lxe.QRMultiply(pivoting=True, rows=rows),
        "DampedQR": lxe.DampedQR(rows=rows),
        "DampedSVD": lxe.DampedSVD(rows=rows),
    }


def solve_all(fn, y, t, vector, rows):
    """x = J⁺ b, and the same of the transpose and of the conjugate."""
    operator = lx.JacobianLinearOperator(fn, y, t)

    def solve(solver):
        state = solver.init(operator, {})
        x, *_ = solver.compute(state, vector, {})
        transpose, _ = solver.transpose(state, {})
        b, *_ = solver.compute(transpose, y, {})
        conj, _ = solver.conj(state, {})
        z, *_ = solver.compute(conj, vector, {})
        return x, b, z

    return {name: solve(solver) for name, solver in solvers(rows).items()}


def check_all(fn, dtype, t, rows, tolerance, n=5):
    rng = np.random.default_rng(0)
    y = rng.standard_normal(n)
    y = y + 1j * rng.standard_normal(n) if np.dtype(dtype).kind == "c" else y
    y = jnp.asarray(y, dtype)
    t = jnp.asarray(t, jnp.finfo(dtype).dtype)
    vector = jax.tree.map(lambda x: jnp.cos(7 * x + 1), jax.jit(fn)(y, t))
    found = jax.jit(solve_all, static_argnums=(0, 4))(fn, y, t, vector, rows)
    matrix, b = dense(fn, y, t), flat(vector)
    inverse = np.linalg.pinv(matrix)
    for x, transposed, conjugate in found.values():
        assert_close(x, inverse @ b, tolerance)
        assert_close(flat(transposed), inverse.T @ np.asarray(y), tolerance)
        assert_close(conjugate, inverse.conj() @ b, tolerance)


@check
def along_one_axis():
    t = jax.device_put(np.linspace(0.1, 3, 320), line())
    check_all(waves, np.float64, t, line(), 1e-11)


@check
def tree_along_two_axes_of_complex_rows_that_do_not_divide():
    check_all(ragged, np.complex128, np.linspace(0.1, 3, 182), tree(), 1e-10)


@check
def fewer_rows_on_a_device_than_columns():
    check_all(waves, np.float32, np.linspace(0.1, 3, 11), line(), 2e-3, n=3)


@check
def matrices():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((83, 4)), rng.standard_normal((3, 83))

    def fn(a, b):
        operator = lx.MatrixLinearOperator(a)
        solve = lambda v: lx.linear_solve(
            operator, v, lxe.QRMultiply(rows=tree()), throw=False
        )
        return jax.vmap(solve)(b).value

    found = jax.jit(fn)(a, b)
    assert_close(found, np.linalg.lstsq(a, b.T, rcond=None)[0].T)
    # What fills 83 rows up to 88 are zeros: to the last bit.
    filled = jax.jit(fn)(np.pad(a, ((0, 5), (0, 0))), np.pad(b, ((0, 0), (0, 5))))
    np.testing.assert_array_equal(found, filled)


@check
def rank_deficient():
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((80, 3)), rng.standard_normal(80)
    a = np.concatenate([a, a[:, :1]], axis=1)

    def fn(a, b, solver):
        solution = lx.linear_solve(lx.MatrixLinearOperator(a), b, solver, throw=False)
        return solution.value, solution.result == lx.RESULTS.successful

    names = solvers(line())
    expected = np.linalg.pinv(a) @ b
    for name, regular in (
        ("pivoting", True),
        ("DampedSVD", True),
        ("QRMultiply", False),
    ):
        value, successful = jax.jit(fn, static_argnums=2)(a, b, names[name])
        assert successful == regular
        if regular:
            assert_close(value, expected)


def derivatives_of(solve, *args):
    tangents = tuple(jnp.cos(x) for x in args)
    loss = lambda *args: jnp.sum(solve(*args) ** 2)
    grads = tuple(range(len(args)))

    def fn(*args):
        return jax.jvp(solve, args, tangents), jax.grad(loss, grads)(*args)

    return jax.tree.leaves(jax.jit(fn)(*args))


@check
def derivatives():
    t = jnp.linspace(0.1, 3, 83)
    y, b = jnp.array([0.5, -0.3, 0.2, 0.7]), jnp.cos(3 * jnp.linspace(0.1, 3, 83))

    def solved(solver):
        def solve(y, b):
            operator = lx.JacobianLinearOperator(waves, y, t)
            return lx.linear_solve(operator, b, solver, throw=False).value

        return derivatives_of(solve, y, b)

    plain = solved(lx.QR())
    for x, expected in zip(solved(lxe.QRMultiply(rows=tree())), plain):
        assert_close(x, expected, 1e-10)


@check
def damped():
    t, scale = jnp.linspace(0.1, 3, 83), jnp.array([1.0, 2.0, 0.5, 3.0])
    y, b = jnp.array([0.5, -0.3, 0.2, 0.7]), jnp.cos(3 * jnp.linspace(0.1, 3, 83))
    damping = jnp.array(0.3)

    def solved(solver):
        def solve(y, b, damping):
            operator = lx.JacobianLinearOperator(waves, y, t)
            state = solver.init(operator, {})
            return lxe.damped_solve(
                operator, b, damping, solver, scale=scale, state=state, throw=False
            ).value

        def loss(*args):
            x = solve(*args)
            return jnp.sum(x**2), x

        grads = jax.grad(loss, (0, 1, 2), has_aux=True)
        return jax.tree.leaves(jax.jit(grads)(y, b, damping))

    matrix = dense(waves, y, t)
    lhs = matrix.T @ matrix + 0.3 * np.diag(np.asarray(scale) ** 2)
    plain = solved(lxe.DampedQR())
    assert_close(plain[-1], np.linalg.solve(lhs, matrix.T @ np.asarray(b)), 1e-11)
    for x, expected in zip(solved(lxe.DampedQR(rows=line())), plain):
        assert_close(x, expected, 1e-10)


#
# Fits
#


def decay(y, args):
    t, data = args
    model = y["height"] * jnp.exp(-t * y["rate"]) + y["floor"]
    return {"near": (model - data)[:200], "far": (model - data)[200:]}


def fit(solver, t, data):
    """The solution, its derivative in the direction of ones, and the steps."""
    y0 = {"height": jnp.array(1.0), "rate": jnp.array(1.0), "floor": jnp.array(0.0)}

    def minimum(data):
        sol = optx.least_squares(decay, solver, y0, (t, data), throw=False)
        return sol.value["rate"], (sol.value, sol.stats["num_steps"])

    (_, (value, steps)), grad = jax.jit(jax.value_and_grad(minimum, has_aux=True))(data)
    return flat(value), grad, steps


@check
def levenberg_marquardt():
    rows, times = line(), np.linspace(0, 3, 401)
    noise = 0.01 * np.random.default_rng(0).standard_normal(401)
    t, data = jnp.asarray(times), jnp.asarray(3 * np.exp(-2 * times) + 0.5 + noise)

    def scaled(rows):
        return lxe.LevenbergMarquardt(
            1e-10, 1e-10, linear_solver=lxe.DampedSVD(rows=rows), scale="jacobian"
        )

    def indirect(rows):
        return lxe.IndirectLevenbergMarquardt(
            1e-10, 1e-10, linear_solver=lxe.DampedQR(rows=rows)
        )

    for make in (scaled, indirect):
        value, grad, steps = fit(make(rows), t, data)
        one, one_grad, one_steps = fit(make(None), t, data)
        assert steps == one_steps
        assert_close(value, one, 1e-9)
        assert_close(grad, one_grad, 1e-9)


@check
def complex_residuals_of_real_parameters():
    rows, t = line(), jnp.linspace(0, 3, 81)

    def wave(height, frequency, t):
        angle = frequency * t
        height = height * jnp.exp(-t / 2)
        return lax.complex(height * jnp.cos(angle), height * jnp.sin(angle))

    def residuals(y, t):
        return wave(y[0], y[1], t) - wave(2.0, 0.7, t)

    def fn(t):
        solver = lxe.LevenbergMarquardt(
            1e-12, 1e-12, linear_solver=lxe.DampedQR(rows=rows)
        )
        y0 = jnp.array([1.5, 0.5])
        return optx.least_squares(residuals, solver, y0, t, throw=False).value

    assert_close(jax.jit(fn)(t), [2.0, 0.7], 1e-9)


#
# What is moved and what is held
#


def traffic(m, n, rows, solver):
    t = jax.ShapeDtypeStruct((m,), jnp.float64, sharding=rows)
    b = {"u": t, "v": t}

    def fn(y, t, b):
        both = lambda y, t: {"u": waves(y, t), "v": waves(2 * y, t)}
        operator = lx.JacobianLinearOperator(both, y, t)
        return lx.linear_solve(operator, b, solver, throw=False).value

    y = jax.ShapeDtypeStruct((n,), jnp.float64)
    compiled = jax.jit(fn).lower(y, t, b).compile()
    return compiled.as_text(), compiled.memory_analysis()


@check
def nothing_of_the_size_of_the_matrix():
    m, n, p = 8000, 6, 8
    for name, solver in solvers(line()).items():
        text, memory = traffic(m // 2, n, line(), solver)
        moved = collectives(text)
        assert moved, name
        assert {kind for kind, _ in moved} == {"all-gather"}, (name, moved)
        # A gather of triangles, and one of the first entries of Qᴴ b.
        assert sorted(size for _, size in moved) == [p * n, p * n * n], (name, moved)
        assert largest_buffer(text) <= 1.1 * m * n / p + 2 * p * n * n, name
    # Of the last solver: memory in proportion to the rows of one device.
    _, twice = traffic(m, n, line(), solver)
    growth = twice.temp_size_in_bytes - memory.temp_size_in_bytes
    assert growth < 8 * 5 * m * n / p, growth


@check
def memory_falls_as_one_over_the_devices():
    n = 6

    def parts(p, m):
        """The program, and its memory in units of what a device has of the matrix."""
        mesh = jax.make_mesh(
            (p,), ("rows",), axis_types=(AxisType.Auto,), devices=jax.devices()[:p]
        )
        rows = NamedSharding(mesh, P("rows"))
        text, memory = traffic(m // 2, n, rows, lxe.QRMultiply(rows=rows))
        held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        return text, held / (8 * m * n / p)

    # The data, the matrix, its QR, and n columns of one leaf.
    first, *others = (parts(p, 8000)[1] for p in (2, 4, 8))
    assert first < 3 and all(abs(x / first - 1) < 0.02 for x in others)
    # So many rows are made a chunk of columns at a time, which takes no more.
    text, many = parts(2, 2**21)
    assert text.count(" while(") == 1 and many < 1.1 * first, (first, many)


@check
def derivatives_move_triangles():
    rows, m, n = line(), 800, 3
    t = jax.ShapeDtypeStruct((m,), jnp.float64, sharding=rows)

    def loss(y, t, b):
        operator, solver = (
            lx.JacobianLinearOperator(waves, y, t),
            lxe.QRMultiply(rows=rows),
        )
        return jnp.sum(lx.linear_solve(operator, b, solver, throw=False).value ** 2)

    y = jax.ShapeDtypeStruct((n,), jnp.float64)
    moved = collectives(
        jax.jit(jax.grad(loss, (0, 2))).lower(y, t, t).compile().as_text()
    )
    assert max(size for _, size in moved) <= 8 * n * n, moved


@check
def checked_derivatives_move_more_only_where_they_fail():
    # With EQX_ON_ERROR=raise; `test_sharded.py` sets it.
    rows, m, n = line(), 800, 3
    t = jax.ShapeDtypeStruct((m,), jnp.float64, sharding=rows)
    y = jax.ShapeDtypeStruct((n,), jnp.float64)

    def loss(y, t, b):
        operator = lx.JacobianLinearOperator(waves, y, t)
        solver = lxe.QRMultiply(rows=rows)
        return jnp.sum(lx.linear_solve(operator, b, solver, throw=False).value ** 2)

    where = (NamedSharding(rows.mesh, P()), rows)
    fn = jax.jit(jax.grad(loss, (0, 2)), out_shardings=where)
    text = fn.lower(y, t, t).compile().as_text()
    assert text is not None
    computations = [x for x in text.split("\n\n") if collectives(x)]
    entry = [x for x in computations if "ENTRY " in x]
    large = [x for x in computations if max(collectives(x), key=_size)[1] > 8 * n * n]
    assert len(entry) == 1 and len(large) == 1, list(map(collectives, computations))
    # One branch: that in which Python is called to raise the error.
    assert large != entry and "conditional(" in large[0], large[0]
    assert collectives(large[0])[0][1] == m


@check
def a_fit_moves_triangles():
    rows, m, n = line(), 8000, 3
    truth = jnp.array([0.6, -0.2, 0.4])
    t = jax.device_put(np.linspace(0.1, 3, m), rows)
    data = jax.jit(waves)(truth, t)

    def fn(t, data):
        solver = lxe.LevenbergMarquardt(
            1e-10, 1e-10, linear_solver=lxe.DampedQR(rows=rows)
        )
        residuals = lambda y, args: waves(y, args[0]) - args[1]
        y0 = jnp.full(n, 0.3)
        return optx.least_squares(residuals, solver, y0, (t, data), throw=False).value

    compiled = jax.jit(fn).lower(t, data).compile()
    text = compiled.as_text()
    moved = collectives(text)
    assert max(size for _, size in moved) <= 8 * n * (n + 1), moved
    assert largest_buffer(text) <= 2 * m * n // 8
    assert_close(compiled(t, data), truth, 1e-8)


@check
def gram_operators_reduce():
    rng = np.random.default_rng(0)
    rows, m, n = line(), 1600, 10
    samples = jax.device_put(rng.standard_normal((m, n)), rows)
    weights = jax.device_put(np.full(m, 1 / m), rows)
    params, vector = jnp.asarray(rng.standard_normal(n)), jnp.ones(n)
    network = lambda p, x: jnp.tanh(x @ p)

    def fn(params, samples, weights, chunk_size):
        gram = lxe.GramLinearOperator.from_samples(
            network, params, samples, weights=weights, centre=True, shift=0.1,
            chunk_size=chunk_size,
        )  # fmt: skip
        cg = lx.CG(rtol=1e-12, atol=1e-12)
        return lx.linear_solve(gram, vector, cg, throw=False).value

    jac = np.asarray(jax.jit(jax.vmap(jax.grad(network), (None, 0)))(params, samples))
    jac = jac - jac.mean(0)
    expected = np.linalg.solve(jac.T @ jac / m + 0.1 * np.eye(n), np.ones(n))

    # In chunks, too, each device goes through its own samples.
    for chunk_size in (None, 400):
        whole = jax.jit(fn, static_argnums=3)
        compiled = whole.lower(params, samples, weights, chunk_size).compile()
        moved = collectives(compiled.as_text())
        assert {kind for kind, _ in moved} == {"all-reduce"}, moved
        assert max(size for _, size in moved) <= n, moved
        assert_close(compiled(params, samples, weights), expected, 1e-9)


#
# Ensembles
#


def ensemble_members():
    """For each solver one problem, made of a 12×5 and a vector of 12 for each lane.

    Yields its name, whether there is a loop in it that ends by the values, the solver,
    the operator, and what it is to solve, for NumPy.
    """
    square = lambda a: lx.MatrixLinearOperator(a[:5, :5])
    tridiagonal = lambda a: lx.TridiagonalLinearOperator(a[0, :5], a[1, :4], a[2, :4])
    blocks = lambda a: lxe.BlockTridiagonalLinearOperator(
        a[:, 0, None, None], a[:-1, 1, None, None], a[:-1, 2, None, None]
    )
    jacobian = lambda a: lx.JacobianLinearOperator(
        lambda y, d: d * y**2 + jnp.pad(y[1:], (0, 1)), a[0, :5], a[1, :5]
    )
    # Rows 0 to 11 on the diagonal, and an arrow.
    arrow = np.r_[np.arange(12), np.zeros(11), np.arange(1, 12)].astype(int)
    cross = np.r_[np.arange(12), np.arange(1, 12), np.zeros(11)].astype(int)

    def sparse(a, definite=False):
        values = jnp.concatenate([a[:, 0] + 9, a[1:, 1], a[1:, 1 if definite else 2]])
        # (in the order of the pattern)
        pattern = lxe.Pattern(arrow, cross, (12, 12))
        order = np.lexsort((cross, arrow))
        operator = lxe.SparseMatrixLinearOperator(values[order], pattern)
        tag = lx.positive_semidefinite_tag
        return lx.TaggedLinearOperator(operator, tag) if definite else operator

    def definite(a):
        return sparse(a, definite=True)

    def cornered(a):
        whole = np.diag(a[:, 0] + 9)
        whole[1:, 0] = a[1:, 2]
        whole[0, 1:] = a[1:, 1]
        return whole

    def mirrored(a):
        whole = cornered(a)
        whole[1:, 0] = a[1:, 1]
        return whole

    banded = lambda a: np.diag(a[:, 0]) + np.diag(a[:-1, 1], -1) + np.diag(a[:-1, 2], 1)
    narrow = lambda a: np.diag(a[0, :5]) + np.diag(a[1, :4], -1) + np.diag(a[2, :4], 1)
    powers = lambda a: np.diag(2 * a[1, :5] * a[0, :5]) + np.eye(5, k=1)
    auto = lxe.AutoStructuredLinearSolver()
    yield "AutoStructured", False, auto, jacobian, powers
    yield "tridiagonal", False, auto, tridiagonal, narrow
    tagged = lxe.TaggedLinearSolver(lx.LU(), ())
    yield "Tagged", False, tagged, square, lambda a: a[:5, :5]
    for name, solver in solvers(None).items():
        yield name, False, solver, lx.MatrixLinearOperator, lambda a: a
    yield "BlockTridiagonal", True, lxe.BlockTridiagonal(), blocks, banded
    yield "SparseLU", True, lxe.SparseLU(), sparse, cornered
    yield "SparseCholesky", True, lxe.SparseCholesky(), definite, mirrored
    yield "DampedSparse", True, lxe.DampedSparse(), sparse, cornered


@check
def ensembles_do_not_communicate():
    rng = np.random.default_rng(0)
    lanes = line()
    whole = rng.standard_normal((16, 12, 5)) + 3 * np.eye(12, 5)
    right = rng.standard_normal((16, 12))
    a, b = jax.device_put((whole, right), lanes)
    for name, loops, solver, make, referee in ensemble_members():

        def solve(a, b, make=make, solver=solver):
            operator = make(a)
            b = b[: operator.out_size()]
            if isinstance(solver, lxe.DampedSparse):
                return lxe.damped_solve(operator, b, 0.1, solver, throw=False).value
            return lx.linear_solve(operator, b, solver, throw=False).value

        if not loops:
            compiled = jax.jit(jax.vmap(solve)).lower(a, b).compile()
        else:
            # Under `vmap` alone, one Boolean of all lanes in each round.
            compiled = jax.jit(jax.vmap(solve)).lower(a, b).compile()
            moved = collectives(compiled.as_text())
            assert set(moved) == {("all-reduce", 1)}, (name, moved)
            compiled = jax.jit(lxe.sharded_vmap(solve, lanes)).lower(a, b).compile()
        assert collectives(compiled.as_text()) == [], name
        x = compiled(a, b)
        assert x.sharding.is_equivalent_to(lanes, 2), name
        for found, matrix, vector in zip(np.asarray(x), whole, right):
            matrix = referee(matrix)
            vector = vector[: len(matrix)]
            if name == "DampedSparse":
                inverse = np.linalg.inv(matrix.T @ matrix + 0.1 * np.eye(12))
                expected = inverse @ matrix.T @ vector
            else:
                expected = np.linalg.lstsq(matrix, vector, rcond=None)[0]
            assert_close(found, expected, 1e-9)


@check
def ensembles_of_fits_do_not_communicate():
    t, lanes = jnp.linspace(0, 3, 20), line()
    rates = np.r_[np.full(14, 1.1), 2.0, 2.0]  # the last device starts far off
    data = jax.device_put(2 * np.exp(-rates[:, None] * np.asarray(t)), lanes)
    lane = jax.device_put(np.arange(16), lanes)
    calls = np.zeros(16, int)

    def count(lane):
        calls[lane] += 1

    def fit(start, data, lane=None, throw=False):
        def residuals(y, args):
            data, lane = args
            if lane is not None:
                jax.debug.callback(count, lane)
            return y[0] * jnp.exp(-y[1] * t) - data

        solver = lxe.LevenbergMarquardt(1e-10, 1e-10, scale="jacobian")
        sol = optx.least_squares(residuals, solver, start, (data, lane), throw=throw)
        return sol.value, sol.stats["num_steps"]

    start, expected = jnp.array([2.0, 1.0]), np.stack([np.full(16, 2.0), rates], 1)
    # A loop under `vmap` alone ends when it ends for all: a Boolean each step.
    compiled = jax.jit(jax.vmap(fit, (None, 0))).lower(start, data).compile()
    moved = collectives(compiled.as_text())
    assert set(moved) == {("all-reduce", 1)}, moved
    mapped = jax.jit(lxe.sharded_vmap(fit, lanes, (None, 0, 0)))
    compiled = mapped.lower(start, data, lane).compile()
    assert collectives(compiled.as_text()) == []
    value, steps = compiled(start, data, lane)
    jax.effects_barrier()
    assert_close(value, expected, 1e-8)
    # Each device stops when its own lanes are done.
    steps = np.asarray(steps)
    assert steps[0] < steps[-1]
    np.testing.assert_array_equal(calls, steps)

    # With `throw`, whose check is one of all lanes, and the derivative of a lane.
    def loss(data):
        return jnp.sum(fit(start, data, throw=True)[0] ** 2)

    compiled = jax.jit(lxe.sharded_vmap(jax.grad(loss), lanes)).lower(data).compile()
    assert collectives(compiled.as_text()) == []
    # y* = argmin |r|² has the derivative J⁺, and r = 0.
    for found, rate in zip(np.asarray(compiled(data)), rates):
        e = np.exp(-rate * np.asarray(t))
        jac = np.stack([e, -2 * np.asarray(t) * e], 1)
        assert_close(found, 2 * np.array([2.0, rate]) @ np.linalg.pinv(jac), 1e-6)


@check
def ensembles_by_any_axis():
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(s) for s in ((3, 8), (8, 3), (2, 8, 3)))
    fn = lambda a, b, c, d: d * jnp.sum(a * b * jnp.sum(c, axis=0))
    expected = [np.sum(a[:, i] * b[i] * c[:, i]) for i in range(8)]
    for axes in ((-1, 0, 1, None), (1, -2, -2, None)):
        mapped = jax.jit(lxe.sharded_vmap(fn, line(), axes))
        assert_close(mapped(a, b, c, 2.0), 2 * np.array(expected), 1e-12)


@check
def ensembles_of_differential_equations_do_not_communicate():
    lanes = line()
    decays = np.logspace(0, 3, 16)

    def solve(decay):
        return dfx.diffeqsolve(
            dfx.ODETerm(lambda t, y, args: -decay * (y - jnp.cos(t)) - jnp.sin(t)),
            lxe.structured(dfx.Kvaerno3()),
            t0=0.0,
            t1=1.0,
            dt0=None,
            y0=jnp.ones(3),
            stepsize_controller=dfx.PIDController(rtol=1e-6, atol=1e-8),
        ).ys[0]

    fn = jax.jit(lxe.sharded_vmap(solve, lanes))
    compiled = fn.lower(jax.device_put(decays, lanes)).compile()
    assert collectives(compiled.as_text()) == []
    # y = cos t, whatever the decay.
    found = compiled(jax.device_put(decays, lanes))
    assert_close(found, np.full((16, 3), np.cos(1.0)), 1e-5)


@check
def ensemble_of_sharded_problems():
    mesh = mesh_of((2, 4), ("members", "rows"))
    rows = NamedSharding(mesh, P("rows"))
    rng = np.random.default_rng(0)
    spread = NamedSharding(mesh, P("members", "rows"))
    a = jax.device_put(rng.standard_normal((4, 80, 5)), spread)
    b = jax.device_put(rng.standard_normal((4, 80)), spread)

    def solve(a, b):
        operator = lx.MatrixLinearOperator(a)
        return lx.linear_solve(
            operator, b, lxe.QRMultiply(rows=rows), throw=False
        ).value

    compiled = jax.jit(jax.vmap(solve)).lower(a, b).compile()
    expected = [np.linalg.lstsq(*ab, rcond=None)[0] for ab in zip(a, b)]
    assert_close(compiled(a, b), expected, 1e-11)
    moved = collectives(compiled.as_text())
    assert max(size for _, size in moved) <= 4 * 4 * 5 * 5, moved  # triangles of all


#
# Types that say how an array is sharded
#


_TIMES = np.linspace(0.1, 3, 320)
_START = np.array([0.5, -0.3, 0.2, 0.7])


def spread_out():
    """Parameters, times and data on a mesh whose types say so."""
    t = jax.device_put(_TIMES, P("rows"))
    return jnp.asarray(_START), t, jnp.cos(5 * t)


@check
def explicit_types_need_no_rows():
    matrix = dense(waves, jnp.asarray(_START), jnp.asarray(_TIMES))
    expected = np.linalg.lstsq(matrix, np.cos(5 * _TIMES), rcond=None)[0]
    with jax.set_mesh(mesh_of(kind=AxisType.Explicit)):
        y, t, b = spread_out()

        def direct(y, t, b):
            # (What closure conversion compares says nothing of a sharding.)
            operator = lx.JacobianLinearOperator(waves, y, t, closure_convert=False)
            solver = lxe.QRMultiply()
            return solver.compute(solver.init(operator, {}), b, {})[0]

        def solve(y, t, b):
            # (Nor does the structure of an operator whose function has `args`.)
            operator = lx.JacobianLinearOperator(
                lambda y, _: waves(y, t), y, closure_convert=False
            )
            return lx.linear_solve(operator, b, lxe.QRMultiply(), throw=False).value

        with_mesh = [jax.jit(fn).lower(y, t, b).compile() for fn in (direct, solve)]
    # By the types of the arrays alone.
    without_mesh = jax.jit(direct).lower(y, t, b).compile()
    for compiled in (*with_mesh, without_mesh):
        moved = collectives(compiled.as_text())
        assert sorted(size for _, size in moved) == [8 * 4, 8 * 16], moved
        assert_close(compiled(y, t, b), expected, 1e-11)

    def fit(y, t, b):
        residuals = lambda y, args: waves(y, args[0]) - args[1]
        solver = lxe.LevenbergMarquardt(1e-10, 1e-10)
        return optx.least_squares(residuals, solver, y, (t, b)).value

    assert "auto_axes" in message(lambda: jax.jit(fit).lower(y, t, b))


@check
def explicit_types_inside_of_auto_axes():
    times, start = jnp.asarray(_TIMES), jnp.asarray(_START)
    right = jnp.cos(5 * times)

    def one(y):
        operator = lx.JacobianLinearOperator(waves, y, times)
        x = lx.linear_solve(operator, right, lx.QR()).value
        return jnp.sum(x**2), x

    reference = jax.jit(jax.grad(one, has_aux=True))(start)
    solver = optx.LevenbergMarquardt(1e-10, 1e-10)
    sol = optx.least_squares(lambda y, _: waves(y, times) - right, solver, start)

    with jax.set_mesh(mesh_of(kind=AxisType.Explicit)):
        y, t, b = spread_out()

        def problem(y, t, b):
            rows = jax.typeof(t).sharding  # as the type has it

            def fn(y, t, b):
                def solve(y, b):
                    operator = lx.JacobianLinearOperator(waves, y, t)
                    solver = lxe.QRMultiply(rows=rows)
                    x = lx.linear_solve(operator, b, solver, throw=False).value
                    return jnp.sum(x**2), x

                solver = lxe.LevenbergMarquardt(
                    1e-10, 1e-10, linear_solver=lxe.DampedQR(rows=rows)
                )
                residuals = lambda y, args: waves(y, args[0]) - args[1]
                fit = optx.least_squares(residuals, solver, y, (t, b), throw=False)
                return jax.grad(solve, has_aux=True)(y, b), fit.value

            return jax.sharding.auto_axes(fn, out_sharding=P())(y, t, b)

        compiled = jax.jit(problem).lower(y, t, b).compile()
        moved = collectives(compiled.as_text())
        assert max(size for _, size in moved) <= 8 * 4 * 5, moved
        (grad, x), fit = compiled(y, t, b)
    assert_close(grad, reference[0], 1e-10)
    assert_close(x, reference[1], 1e-10)
    assert_close(fit, sol.value, 1e-8)


@check
def explicit_types_of_an_ensemble():
    mesh = mesh_of(kind=AxisType.Explicit)
    lanes = NamedSharding(mesh, P("rows"))
    rng = np.random.default_rng(0)
    whole, right = rng.standard_normal((16, 9, 3)), rng.standard_normal((16, 9))

    def solve(a, b):
        return lx.linear_solve(lx.MatrixLinearOperator(a), b, lxe.QRMultiply()).value

    with jax.set_mesh(mesh):
        a, b = jax.device_put((whole, right), lanes)
        x = jax.jit(lxe.sharded_vmap(solve, lanes))(a, b)
    expected = [np.linalg.lstsq(*ab, rcond=None)[0] for ab in zip(whole, right)]
    assert_close(x, expected, 1e-11)


#
# Errors
#


def message(fn):
    try:
        fn()
    except ValueError as error:
        return str(error)
    raise AssertionError("no `ValueError`")


@check
def errors():
    mesh, rows = mesh_of(), line()
    for solver in (lxe.QRMultiply, lxe.DampedQR, lxe.DampedSVD):
        name = solver.__name__
        assert name in message(lambda: solver(rows=P("rows")))  # noqa: B023
        assert name in message(
            lambda: solver(rows=NamedSharding(mesh, P()))  # noqa: B023
        )
        assert name in message(
            lambda: solver(rows=NamedSharding(mesh, P(None, "rows")))  # noqa: B023
        )
        wide = lx.MatrixLinearOperator(jnp.ones((3, 5)))
        assert "3×5" in message(lambda: solver(rows=rows).init(wide, {}))  # noqa: B023
    assert "sharded_vmap" in message(
        lambda: lxe.sharded_vmap(jnp.sum, NamedSharding(mesh, P()))
    )
    total = lambda x: jnp.sum(lxe.sharded_vmap(jnp.sum, rows)(x))
    assert "from outside" in message(lambda: jax.grad(total)(jnp.ones((8, 2))))
    assert "divisible" in message(lambda: total(jnp.ones((7, 2))))
    assert "no axis 0" in message(lambda: total(1.0))
    both = lxe.sharded_vmap(jnp.dot, rows, (0,))
    assert "1 axes, for 2" in message(lambda: both(jnp.ones(8), jnp.ones(8)))
    t = jnp.linspace(0, 1, 16)
    backward = lx.JacobianLinearOperator(waves, jnp.ones(2), t, jac="bwd")
    assert "'bwd'" in message(lambda: lxe.QRMultiply(rows=rows).init(backward, {}))
    # By value, in a state that software compares between traces.
    assert lxe.QRMultiply(rows=line()) == lxe.QRMultiply(rows=line())
    assert hash(lxe.QRMultiply(rows=line())) == hash(lxe.QRMultiply(rows=line()))


def one_of_two_processes(index, port, dies):
    jax.distributed.initialize(
        f"127.0.0.1:{port}", 2, index, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
    )
    mesh = mesh_of((2, 2), ("hosts", "devices"))
    rows = NamedSharding(mesh, P(("hosts", "devices")))
    times = np.linspace(0.1, 3, 320)
    right = np.cos(5 * times)
    y = np.array([0.5, -0.3, 0.2, 0.7])
    spread = lambda x: jax.make_array_from_callback(x.shape, rows, lambda i: x[i])

    def fn(y, t, b, rows):
        def loss(y, b):
            operator = lx.JacobianLinearOperator(waves, y, t)
            solver = lxe.QRMultiply(rows=rows)
            value = lx.linear_solve(operator, b, solver, throw=False).value
            return jnp.sum(value**2), value

        solver = lxe.LevenbergMarquardt(
            1e-10, 1e-10, linear_solver=lxe.DampedQR(rows=rows), scale="jacobian"
        )
        residuals = lambda y, args: waves(y, args[0]) - args[1]
        fit = optx.least_squares(residuals, solver, y, (t, b), throw=False).value
        return jax.grad(loss, (0, 1), has_aux=True)(y, b), fit

    fn = jax.jit(fn, static_argnums=3)
    compiled = fn.lower(y, spread(times), spread(right), rows).compile()
    if dies:
        os._exit(0)  # without a word
    found = compiled(y, spread(times), spread(right))
    expected = fn(y, times, right, None)
    for x, one in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        for shard in x.addressable_shards:
            assert_close(shard.data, np.asarray(one)[shard.index], 1e-9)
    jax.distributed.shutdown()


def main(names):
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    out = {}
    for name in names or CHECKS:
        start = time.process_time()  # several may share the cores
        try:
            CHECKS[name]()
            out[name] = None
        except Exception:
            out[name] = traceback.format_exc()
        seconds = time.process_time() - start
        print(
            f"{name}: {seconds:.1f} s, {'failed' if out[name] else 'passed'}",
            file=sys.stderr,
        )
    print(json.dumps(out))


if __name__ == "__main__":
    if "--process" in sys.argv:
        jax.config.update("jax_enable_x64", True)
        index, port = map(int, sys.argv[2:4])
        one_of_two_processes(index, port, dies="--dies" in sys.argv)
    else:
        main(sys.argv[1:])
