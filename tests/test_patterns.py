"""Patterns: no entry is missed, whatever the program, and few are too many."""

import os
import warnings

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, HealthCheck, settings
from jax.ad_checkpoint import checkpoint_name
from programs import PROGRAMS, run, SHAPE
from referee import nonzeros

import lineax_ext as lxe
from lineax_ext._structure import detect as detection, loops
from lineax_ext._structure.colour import colour
from lineax_ext._structure.dataflow import Flow
from lineax_ext._structure.rules import RULES


COUNT = int(os.environ.get("LINEAX_EXT_PROGRAMS", "200"))
over_programs = settings(
    max_examples=COUNT // 2,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True, scope="module")
def _strict():
    # A rule that fails would pass for a primitive without one.
    Flow.strict = True
    yield
    Flow.strict = False


def dense(pattern):
    return pattern.to_scipy().toarray() != 0


def inferred(fn, y):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return dense(lxe.infer_pattern(lambda y, _: fn(y), y))


def missed(program, points=2):
    """What the Jacobian has, and the pattern has not."""
    fn, rng = lambda x: run(program, x), np.random.default_rng(0)
    found = dense(lxe.infer_pattern(lambda x, _: fn(x), jnp.ones(SHAPE)))
    return nonzeros(fn, rng.uniform(-1, 1, (points, *SHAPE))) & ~found


@over_programs
@given(PROGRAMS)
def test_random_programs(program):
    assert not missed(program).any()


@pytest.mark.slow
@over_programs
@given(PROGRAMS)
def test_other_random_programs(program):
    """As each test draws its own."""
    assert not missed(program).any()


@settings(over_programs, max_examples=COUNT // 8)
@given(PROGRAMS)
def test_random_programs_with_loops_summed_up(program):
    most = loops._most_equations
    loops._most_equations = 0
    detection._cache.clear()
    try:
        assert not missed(program).any()
    finally:
        loops._most_equations = most
        detection._cache.clear()


def test_referee():
    """The referee, against JAX's own Jacobian."""

    def fn(x):
        y = lax.fori_loop(0, 2, lambda i, y: y.at[i].multiply(jnp.sin(y[2, i])), x)
        y = lax.cond(x[0, 0] > 0, lambda y: jnp.flip(y), lambda y: y, y)
        return jnp.where(y > 0.3, y, 0.0)[:, ::2] ** 2

    x = np.random.default_rng(0).uniform(0.1, 1, (3, 3))
    expected = np.asarray(jax.jacfwd(fn)(x)).reshape(-1, 9) != 0
    np.testing.assert_array_equal(nonzeros(fn, [x]), expected)


#
# Known patterns: not an entry too many
#

N = 12
INDEX = np.random.default_rng(0).permutation(N)
FACTOR = np.triu(np.tril(np.ones((N, N)), 1), -2)
EYE = np.eye(N, dtype=bool)
LOWER = np.tril(np.ones((N, N), bool))
BLOCKS = np.kron(np.eye(3, dtype=bool), np.ones((4, 4), bool))
COLUMNS = np.kron(np.ones((4, 4), bool), np.eye(3, dtype=bool))


def outside(y):
    """A primitive without a rule."""
    out = jax.ShapeDtypeStruct(y.shape, y.dtype)
    return jax.pure_callback(lambda y: y, out, y, vmap_method="sequential")


KNOWN = {
    "stencil": (lambda y: jnp.diff(y, append=0.0), EYE | np.eye(N, k=1, dtype=bool)),
    "cumsum": (lambda y: jnp.cumsum(y) + y, LOWER),
    "reversed": (lambda y: lax.cumsum(y, reverse=True), LOWER.T),
    "matrix": (lambda y: FACTOR @ y, FACTOR != 0),
    "from the right": (lambda y: y @ FACTOR, FACTOR.T != 0),
    "gather": (lambda y: y[INDEX], EYE[INDEX]),
    "batched fft": (lambda y: jnp.fft.fft(y.reshape(3, 4)).real.reshape(-1), BLOCKS),
    "substitution": (
        lambda y: lax.linalg.triangular_solve(
            np.eye(4), y.reshape(4, 3), left_side=True, lower=True
        ).reshape(-1),
        np.kron(np.tril(np.ones((4, 4), bool)), np.eye(3, dtype=bool)),
    ),
    "named": (lambda y: checkpoint_name(2 * y, "twice"), EYE),
    "what does not reach it": (
        lambda y: jnp.concatenate([outside(y[:4]), y[4:]]),
        EYE | (np.arange(N)[:, None] < 4) & (np.arange(N) < 4),
    ),
    "sorted columns": (lambda y: jnp.sort(y.reshape(4, 3), 0).reshape(-1), COLUMNS),
    "any step": (
        lambda y: lax.map(lambda z: z * z.sum(), y.reshape(3, 4)).reshape(-1),
        BLOCKS,
    ),
}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("summed_up", (False, True))
def test_exact(name, summed_up, monkeypatch):
    fn, expected = KNOWN[name]
    if summed_up:
        monkeypatch.setattr(loops, "_most_equations", 0)
    detection._cache.clear()
    structure = jax.ShapeDtypeStruct((N,), np.float64)
    operator = lx.FunctionLinearOperator(fn, structure, closure_convert=False)
    found = dense(detection.detect(operator))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("m, n", ((0, 0), (0, 3), (3, 0), (1, 1)))
def test_sizes(m, n):
    found = lxe.infer_pattern(lambda y, _: jnp.zeros(m) + jnp.sum(y), jnp.ones(n))
    assert found.shape == (m, n) and len(found) == m * n


def test_zero_times_infinity():
    """A zero takes an entry out, infinity does not."""
    factor = np.array([0.0, np.inf, np.nan, 1.0])
    found = inferred(lambda y: factor * y, jnp.ones(4))
    np.testing.assert_array_equal(np.diag(found), [False, True, True, True])


def cancelling(n):
    """The Hessian of DIAGIQB (CUTEst): its seventh entry is zero in exact arithmetic,
    and in NumPy's, but not where a division is compiled to a product."""
    return jnp.arange(1.0, n + 1) ** 2 / n + (1 / n - n / 2)


SURE = {
    "a sum that cancels": (lambda: cancelling(10), np.ones(10)),
    "integers": (lambda: 1.0 - jnp.arange(10.0) % 2, np.arange(10) % 2 == 0),
    "a product": (lambda: 0.1 * jnp.repeat(jnp.arange(2.0), 5) / 3, np.arange(10) > 4),
    "a decision": (lambda: jnp.where(cancelling(10) == 0, 0.0, 1.0), np.ones(10)),
}


@pytest.mark.parametrize("name", SURE)
def test_zeros_that_are_sure(name):
    """A constant factor is zero if rounding errors have no part in it."""
    factor, expected = SURE[name]
    found = inferred(lambda y: factor() * y, jnp.ones(10))
    np.testing.assert_array_equal(found, np.diag(expected != 0))


#
# Windows, against XLA: what only moves or sums entries is found exactly
#


def random_gather(rng):
    """Of an operand (2, 3, 4), some of whose axes are indexed, some batched."""
    batched = rng.integers(2)
    indexed = tuple(int(d) for d in rng.permutation([1, 2])[: rng.integers(1, 3)])
    collapsed = tuple(d for d in sorted(indexed) if rng.integers(2))
    gone = {*collapsed, *([0] if batched else [])}
    offsets = [d for d in range(3) if d not in gone]
    sizes = [
        1 if d in gone else int(rng.integers(1, n + 1)) for d, n in enumerate((2, 3, 4))
    ]
    rank = 2 + len(offsets)
    where = sorted(int(d) for d in rng.permutation(rank)[: len(offsets)])
    dims = lax.GatherDimensionNumbers(
        tuple(where),
        collapsed,
        indexed,
        (0,) if batched else (),
        (0,) if batched else (),
    )
    modes = lax.GatherScatterMode.CLIP, lax.GatherScatterMode.FILL_OR_DROP
    index = rng.integers(-1, 5, (2, 2, len(indexed)))
    mode = modes[rng.integers(2)]
    return lambda x: lax.gather(x, index, dims, sizes, mode=mode, fill_value=0.0)


def random_windows(rng):
    pick = lambda low, high: tuple(int(i) for i in rng.integers(low, high, 2))
    window, padding = pick(1, 3), (pick(0, 2), pick(0, 2))
    arguments = window, pick(1, 3), padding, pick(1, 3), pick(1, 3)
    return lambda x: lax.reduce_window(x[0], 0.0, lax.add, *arguments)


def random_convolution(rng):
    pick = lambda low, high: tuple(int(i) for i in rng.integers(low, high, 2))
    groups, batches = ((1, 1), (2, 1), (1, 2))[rng.integers(3)]
    kernel = np.ones((2, 2 // groups, *pick(1, 3)))
    kernel *= rng.integers(0, 2, kernel.shape)
    kernel[0, 0, 0, 0] = 1.0
    arguments = pick(1, 3), (pick(-1, 2), pick(0, 2)), pick(1, 3), pick(1, 3)
    layout = ("NCHW", "OIHW", "NCHW") if rng.integers(2) else ("HWNC", "OIHW", "NHWC")
    order = (0, 1, 2, 3) if layout[0] == "NCHW" else (2, 3, 0, 1)
    return lambda x: lax.conv_general_dilated(
        jnp.stack([x, x])[: batches + 1].reshape(2, 2, 3, 4).transpose(order)
        if batches == 2 else x[None].transpose(order),
        kernel,
        *arguments,
        dimension_numbers=layout,
        feature_group_count=groups,
        batch_group_count=batches,
    )  # fmt: skip


@pytest.mark.parametrize("make", (random_gather, random_windows, random_convolution))
def test_windows_are_those_of_xla(make):
    x = np.random.default_rng(1).uniform(1, 2, (2, 3, 4))
    for seed in range(12):
        fn = make(np.random.default_rng(seed))
        np.testing.assert_array_equal(inferred(fn, x), nonzeros(fn, [x]), str(seed))


def spd(x):
    return x @ x.mT + 3 * jnp.broadcast_to(jnp.eye(3), x.shape)


def symmetrised(x):
    return x + x.mT


def products(x):
    return jnp.prod(x, 0)  # JAX's JVP reshapes with dimensions


def in_place(y):
    ref = jax.new_ref(jnp.zeros(3))
    ref[...] = y * 2
    return ref[...] + jnp.array([1.0, 0.0, 0.0])


@jax.custom_jvp
def rounded(y):
    return jnp.round(y)


rounded.defjvp(lambda p, t: (rounded(*p), t[0][::-1]))


def cube_roots(x):
    derivative = lambda fn: jax.jvp(fn, (jnp.ones_like(x),), (jnp.ones_like(x),))[1]
    return lax.custom_root(
        lambda y: y**3 - x,
        jnp.ones_like(x),
        lambda fn, y: jnp.cbrt(x),
        lambda fn, b: b / derivative(fn),
    )


FAMILIES = {
    "roots": (cube_roots, (3,)),
    "means": (
        jax.vmap(jax.vmap(lambda x: x - lax.pmean(x, "line"), axis_name="line")),
        (2, 3),
    ),
    "products of columns": (products, (2, 3)),
    "cholesky": (lambda x: jnp.linalg.cholesky(spd(x)), (2, 3, 3)),
    "lu": (lambda x: lax.linalg.lu(x)[0], (2, 3, 3)),
    "qr": (lambda x: jnp.linalg.qr(x)[1], (2, 3, 3)),
    "eigh": (lambda x: jnp.linalg.eigh(symmetrised(x))[1], (2, 3, 3)),
    "svd": (lambda x: jnp.linalg.svd(x, full_matrices=False)[1], (2, 3, 3)),
    "solve": (lambda x: jnp.linalg.solve(x, x[..., :1]), (2, 3, 3)),
    "substitution": (
        lambda x: lax.linalg.triangular_solve(x, 1 + x[..., :1], left_side=True),
        (2, 3, 3),
    ),
    "rfft": (lambda x: jnp.abs(jnp.fft.rfft(x)) + x[:, :3], (2, 5)),
    "rule": (lambda x: rounded(x) * x, (3,)),
    "vjp inside": (jax.grad(lambda x: jnp.sum(jnp.prod(jnp.sin(x), 1))), (3, 2)),
    "pooling inside": (
        jax.grad(
            lambda x: jnp.sum(
                lax.reduce_window(x, -jnp.inf, lax.max, (2,), (2,), "VALID") ** 2
            )
        ),
        (7,),
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name):
    fn, shape = FAMILIES[name]
    x = np.random.default_rng(3).normal(size=(2, *shape))
    found = inferred(fn, x[0])
    assert not np.any(nonzeros(fn, x) & ~found)
    if name == "products of columns":
        np.testing.assert_array_equal(found, np.kron(np.ones((1, 2)), np.eye(3)) != 0)
    if len(shape) == 3:  # and nothing of the other batch element
        assert not found.reshape(2, -1, 2, 9)[[0, 1], :, [1, 0]].any()


#
# Defects that were found
#


def linear_pattern(fn, shape):
    structure = jax.ShapeDtypeStruct(shape, np.float64)
    operator = lx.FunctionLinearOperator(fn, structure, closure_convert=False)
    found = detection.detect(operator)
    basis = jnp.eye(int(np.prod(shape))).reshape(-1, *shape)
    expected = np.stack([np.ravel(fn(v)) for v in basis], 1) != 0
    return np.ones_like(expected) if found is None else dense(found), expected


LOST = {
    "a function applied in place": (
        lambda v: v.at[np.array([1])].apply(lambda x: 2 * x),
        (3,),
    ),
    "reshape, transposed first": (
        lambda v: lax.reshape(v, (6,), dimensions=(1, 0)),
        (2, 3),
    ),
    "approximate maxima": (
        lambda v: lax.approx_max_k(v, 2, reduction_dimension=0)[0],
        (3, 2),
    ),
}


@pytest.mark.parametrize("name", LOST)
def test_lost(name):
    found, expected = linear_pattern(*LOST[name])
    assert expected.any() and not np.any(expected & ~found)
    assert not found.all()


@pytest.mark.skipif(not hasattr(jax, "new_ref"), reason="JAX has no arrays in place")
def test_arrays_in_place():
    with pytest.warns(UserWarning, match="'ref'"):
        found = lxe.infer_pattern(lambda y, _: in_place(y), jnp.ones(3))
    assert dense(found).all()


def test_which_update_stays_is_left_open():
    """Where a scatter writes twice, no device says which one stays: both count."""
    index = np.array([0, 0, 1])
    mask = lambda: jnp.zeros(3).at[index].set(jnp.array([0.0, 1.0, 1.0]))
    found = inferred(lambda y: mask() * y, jnp.ones(3))
    np.testing.assert_array_equal(found, np.eye(3, dtype=bool))
    unique = lambda: jnp.zeros(3).at[index[1:]].set(jnp.array([0.0, 1.0]))
    found = inferred(lambda y: unique() * y, jnp.ones(3))
    np.testing.assert_array_equal(found, np.diag([False, True, False]))


def test_weak_types_stay_weak():
    weak = []

    @jax.jit
    def look(t):
        weak.append(detection._struct(t).weak_type)
        return t

    look(2.0), look(np.ones(2))
    assert weak == [True, False]


def test_a_callback_is_told_of_once():
    detection._cache.clear()

    def fn(y, _):
        plain = jax.custom_jvp(lambda y: y)
        plain.defjvp(lambda p, t: (p[0], outside(t[0])))
        return plain(y)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            lxe.infer_pattern(fn, jnp.ones(3))
    assert len([x for x in caught if "pure_callback" in str(x.message)]) == 1


def test_other_parameters_of_a_later_release(monkeypatch):
    monkeypatch.setattr(Flow, "strict", False)
    detection._cache.clear()
    monkeypatch.setitem(RULES, "cumsum", lambda eqn, ins: eqn.params["nothing"])
    with pytest.warns(UserWarning, match="'cumsum'"):
        found = lxe.infer_pattern(lambda y, _: jnp.cumsum(y), jnp.ones(3))
    assert dense(found).all()
    detection._cache.clear()


@pytest.mark.parametrize("value", (np.nan, np.inf))
def test_no_value_removes_an_entry(value):
    weights = np.array([value, 1.0, 0.0])

    def fn(y, args):
        picked = jnp.where(weights > 0.5, y, 2 * y)
        return args * picked + weights * y[::-1] + jnp.diag(weights) @ y

    found = dense(lxe.infer_pattern(fn, jnp.full(3, value), jnp.full(3, value)))
    expected = np.eye(3, dtype=bool) | np.diag([True, True, False])[:, ::-1]
    np.testing.assert_array_equal(found, expected)


class _Holds(eqx.Module):
    weights: jax.Array

    def __call__(self, y, args):
        return args * y + self.weights * y[::-1]


@pytest.mark.parametrize("jac", (None, "bwd"))
def test_what_is_held_and_handed_over(jac):
    """An array that is an argument, too, is no constant: it may be another one."""
    weights = jnp.array([0.0, 1.0, 2.0])
    operator = lx.JacobianLinearOperator(
        _Holds(weights), weights, weights, jac=jac, closure_convert=False
    )
    found = detection.detect(operator)
    assert found is not None
    expected = np.eye(3, dtype=bool) | np.eye(3, dtype=bool)[:, ::-1]
    np.testing.assert_array_equal(dense(found), expected)


#
# Colours
#


@pytest.mark.parametrize("by", ("columns", "rows"))
def test_colours(by):
    rng = np.random.default_rng(0)
    for shape in ((30, 20), (20, 30), (1, 5), (5, 1), (7, 0), (0, 7)):
        matrix = rng.uniform(size=shape) < 0.1
        pattern = lxe.Pattern.from_scipy(scipy.sparse.coo_array(matrix))
        found = colour(pattern, by)
        lines = matrix if by == "columns" else matrix.T
        for number in range(found.count):
            own = lines[:, found.colours == number]
            assert own.sum(axis=1).max(initial=0) <= 1
        assert found.colours.max(initial=-1) < found.count or lines.shape[1] == 0
        assert np.all((found.colours >= 0) | ~lines.any(axis=0))


def test_what_another_thread_takes_out_of_the_cache(monkeypatch):
    monkeypatch.setattr(detection, "_cache_size", 0)
    assert len(lxe.infer_pattern(lambda y, _: jnp.cumsum(y), jnp.ones(5))) == 15


#
# check_pattern
#


def test_check_pattern():
    fn = lambda y: jnp.diff(y, append=0.0) + 3 * y**2
    right, diagonal = KNOWN["stencil"][1], EYE
    key, b = jax.random.key(0), np.ones(N)

    @eqx.filter_jit
    def solve(y, jac, pattern):
        operator = lx.JacobianLinearOperator(lambda y, _: fn(y), y, jac=jac)
        operator = lxe.check_pattern(operator, pattern, key=key)
        return lx.linear_solve(operator, b, lx.LU()).value

    y = np.linspace(1, 2, N)
    expected = np.linalg.solve(np.asarray(jax.jacfwd(fn)(y)), b)
    for jac in ("fwd", "bwd"):
        to_pattern = lambda x: lxe.Pattern.from_scipy(scipy.sparse.coo_array(x))
        found = solve(y, jac, to_pattern(right))
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        with pytest.raises(Exception, match="outside of the pattern"):
            solve(y, jac, to_pattern(diagonal)).block_until_ready()
    with pytest.raises(ValueError, match="`check_pattern`.*shape"):
        solve(y, "fwd", lxe.Pattern([0], [0], (N, N - 1)))
