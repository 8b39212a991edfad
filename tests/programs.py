"""Random programs, of which a pattern must not miss an entry.

A program is a list of steps, `(name, seed)` or `(name, seed, program)`. Every step maps
an array of shape (2, 3) to another one: few shapes, and so few compilations.
"""

import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st


SHAPE = (2, 3)
SIZE = 6


def sparse(rng, shape):
    """A constant with zeros."""
    return rng.uniform(0.5, 1.5, shape) * rng.integers(0, 2, shape)


def fit(x):
    """Back to (2, 3), by moving entries only."""
    x = x.reshape(-1)[:SIZE]
    return jnp.pad(x, (0, SIZE - x.size)).reshape(SHAPE)


def somewhere(x):
    """An index that depends on values, and not on derivatives."""
    return lax.stop_gradient(jnp.argmax(x.reshape(-1))).astype(np.int64)


LEAVES, WRAPS = {}, {}


def leaf(fn):
    LEAVES[fn.__name__] = fn
    return fn


def wrap(fn):
    WRAPS[fn.__name__] = fn
    return fn


#
# Elementwise, moving
#


@leaf
def elementwise(rng, x):
    fns = jnp.sin, jnp.exp, jnp.floor, jnp.abs, jnp.tanh, jnp.sign, jnp.square
    return fns[rng.integers(len(fns))](x / 4) + sparse(rng, SHAPE)


@leaf
def scaled(rng, x):
    return sparse(rng, SHAPE) * x


@leaf
def squared(rng, x):
    return x * jnp.flip(x, rng.integers(2))


@leaf
def clamped(rng, x):
    return lax.clamp(-0.5, x, jnp.flip(x) + 0.7)


@leaf
def chosen(rng, x):
    which = rng.integers(0, 2, SHAPE) == 1 if rng.integers(2) else x > 0.3
    return jnp.where(which, x, jnp.flip(x, 0))


@leaf
def moved(rng, x):
    moves = (
        lambda x: fit(x.T),
        lambda x: jnp.roll(x, 1, 1),
        lambda x: x[::-1, ::2],
        lambda x: lax.pad(x, 0.5, ((1, -1, 1), (-1, 1, 0))),
        lambda x: lax.pad(x[:1], x[1, 1], ((0, 1, 0), (2, -1, 1))),
        lambda x: jnp.concatenate([x[1:], 2 * x[:1], x[:, ::-1]]),
        lambda x: jnp.stack([x[0], x[1] ** 2], 1),
        lambda x: jnp.tile(x[:, 1:], (1, 2)),
        lambda x: jnp.broadcast_to(x[:, :1], SHAPE),
        lambda x: jnp.split(x, 3, axis=1)[rng.integers(3)],
    )
    return fit(moves[rng.integers(len(moves))](x))


@leaf
def gathered(rng, x):
    mode = ("fill", "clip", "promise_in_bounds")[rng.integers(3)]
    high = 3 if mode == "promise_in_bounds" else 5
    index = rng.integers(0 if high == 3 else -2, high, (2, 2))
    take = (
        lambda: x.at[:, index].get(mode=mode, fill_value=0.0),
        lambda: jnp.take_along_axis(x, jnp.asarray(index % 3), 1),
        lambda: x.reshape(-1).at[index].get(mode=mode, fill_value=0.0),
        lambda: x.at[index % 2, (index + somewhere(x)) % 3].get(),
        lambda: jnp.take(x, somewhere(x) % 3, 1),
        lambda: x[:, jnp.argsort(x[0])],
    )
    return fit(take[rng.integers(len(take))]())


@leaf
def scattered(rng, x):
    mode = ("drop", "clip")[rng.integers(2)]
    index = rng.integers(-1, 7, 4)
    index = (index + somewhere(x)) % 7 if rng.integers(4) == 0 else index
    flat, new = x.reshape(-1), 2 * jnp.flip(x).reshape(-1)[:4]
    at = flat.at[index]
    name = ("set", "add", "min", "max")[rng.integers(4)]
    return getattr(at, name)(new, mode=mode).reshape(SHAPE)


@leaf
def scattered_windows(rng, x):
    dims = lax.ScatterDimensionNumbers((1,), (0,), (0, 1))
    modes = lax.GatherScatterMode.CLIP, lax.GatherScatterMode.FILL_OR_DROP
    index = rng.integers(-1, 3, (2, 2))
    fn = (lax.scatter, lax.scatter_add)[rng.integers(2)]
    new = jnp.flip(x)[:, :2] * 3
    return fn(x, index, new, dims, mode=modes[rng.integers(2)])


@leaf
def slid(rng, x):
    start = [int(i) for i in rng.integers(-1, 4, 2)]
    if rng.integers(2):
        start[1] = somewhere(x)
    start = [jnp.asarray(i, np.int64) for i in start]
    if rng.integers(2):
        return fit(lax.dynamic_slice(x, start, (1, 2)))
    return lax.dynamic_update_slice(x, 3 * x[:1, 1:] ** 2, start)


#
# Summing
#


@leaf
def summed(rng, x):
    fns = jnp.sum, jnp.max, jnp.prod, jnp.min
    total = fns[rng.integers(len(fns))](x, rng.integers(2), keepdims=True)
    return jnp.broadcast_to(total, SHAPE)


@leaf
def cumulated(rng, x):
    fns = lax.cumsum, lax.cumprod, lax.cummax, lax.cummin, lax.cumlogsumexp
    fn = fns[rng.integers(len(fns))]
    return fn(x, int(rng.integers(2)), bool(rng.integers(2)))


@leaf
def multiplied(rng, x):
    products = (
        lambda: sparse(rng, (2, 2)) @ x,
        lambda: x @ sparse(rng, (3, 3)),
        lambda: x @ jnp.flip(x).T,
        lambda: jnp.einsum("bij,bj->bi", sparse(rng, (2, 3, 3)), x),
        lambda: jnp.einsum("bj,bji->bi", x, sparse(rng, (2, 3, 3))),
        lambda: jnp.tanh(x) @ rng.uniform(0.5, 1.5, (3, 3)),
    )
    return fit(products[rng.integers(len(products))]())


@leaf
def convolved(rng, x):
    groups = int(rng.integers(1, 3))
    batches = 2 if groups == 1 and rng.integers(2) else 1
    kernel = sparse(rng, (2, 2 // groups if batches == 1 else 1, 2))
    y = x.reshape(1, 2, 3) if batches == 1 else x.reshape(2, 1, 3)
    out = lax.conv_general_dilated(
        y,
        kernel,
        (int(rng.integers(1, 3)),),
        [tuple(int(i) for i in rng.integers(0, 3, 2))],
        lhs_dilation=(int(rng.integers(1, 3)),),
        rhs_dilation=(int(rng.integers(1, 3)),),
        feature_group_count=groups,
        batch_group_count=batches,
    )
    return fit(out)


@leaf
def windowed(rng, x):
    # Under a derivative only those that JAX has rules for.
    window, stride = (1, 2), (1, int(rng.integers(1, 3)))
    pads = ((0, 0), tuple(int(i) for i in rng.integers(0, 2, 2)))
    if rng.integers(2):
        return fit(lax.reduce_window(x, -np.inf, lax.max, window, stride, pads))
    return fit(lax.reduce_window(x, 0.0, lax.add, window, stride, pads))


#
# Lines and batches
#


@leaf
def ordered(rng, x):
    axis = int(rng.integers(2))
    if rng.integers(2):
        return jnp.sort(x, axis)
    if rng.integers(2):
        keys = jnp.asarray(rng.permutation(3) * np.ones((2, 1), int))
        return lax.sort((keys, x), dimension=1, num_keys=1)[1]
    return fit(lax.top_k(x, 2)[0])


@leaf
def transformed(rng, x):
    out = jnp.fft.fft(x, axis=int(rng.integers(2)))
    return out.real + out.imag


@leaf
def solved(rng, x):
    lower, left = bool(rng.integers(2)), bool(rng.integers(2))
    n = 2 if left else 3
    matrix = rng.uniform(0.5, 1, (n, n)) + 2 * np.eye(n)
    if rng.integers(2):
        return jnp.linalg.solve(matrix, x if left else x.T).reshape(SHAPE)
    return lax.linalg.triangular_solve(
        jnp.asarray(matrix),
        x,
        left_side=left,
        lower=lower,
        transpose_a=bool(rng.integers(2)),
    )


#
# Control flow: around a program
#


@wrap
def jitted(rng, x, fn):
    fn = (jax.jit, jax.checkpoint)[rng.integers(2)](fn)
    return fn(sparse(rng, SHAPE)) * x + fn(x)


@wrap
def ruled(rng, x, fn):
    custom = jax.custom_jvp(lambda x: jnp.round(fn(x)))
    custom.defjvp(lambda p, t: (custom(*p), jax.jvp(fn, p, t)[1]))
    return custom(x)


@wrap
def batched(rng, x, fn):
    many = jnp.stack([x, 2 * x[::-1], sparse(rng, SHAPE) + 0 * x])
    return jax.vmap(fn)(many)[rng.integers(3)] + many[1]


@wrap
def scanned(rng, x, fn):
    length = int(rng.integers(1, 5))
    xs = jnp.stack([x * (k + 1) for k in range(length)])
    kind = rng.integers(3)

    def step(carry, slice_and_number):
        slice_, number = slice_and_number
        out = fn(carry[0] * 0.5 + slice_ if kind else slice_)
        count = carry[1] + 1
        picked = lax.dynamic_slice(slice_, (number % 2, count % 3), (1, 1))
        new = carry[0] if kind == 2 else out
        return (new, count), out * picked + carry[0]

    numbers = jnp.arange(length)
    start = (jnp.flip(x, 1), 0)
    (carry, _), ys = lax.scan(step, start, (xs, numbers), reverse=bool(rng.integers(2)))
    return ys[rng.integers(length)] + carry


@wrap
def repeated(rng, x, fn):
    times = int(rng.integers(0, 4))
    step = lambda i, y: y.at[i % 2, i % 3].set(fn(y)[0, 0])
    return lax.fori_loop(0, times, step, x)


@wrap
def while_looped(rng, x, fn):
    stop = lax.stop_gradient(jnp.abs(x).sum() % 3) if rng.integers(2) else 2.0
    factor = sparse(rng, SHAPE)
    body = lambda c: (fn(c[0]) * factor, c[1] + 1.0)
    return lax.while_loop(lambda c: c[1] < stop, body, (x, 0.0))[0]


@wrap
def branched(rng, x, fn):
    other = lambda x: jnp.flip(x)
    if rng.integers(2):
        return lax.switch(int(rng.integers(2)), (fn, other), x)
    return lax.cond(x[0, 0] > 0.2, fn, other, x)


def run(program, x):
    for name, seed, *inner in program:
        rng = np.random.default_rng(seed)
        fixed = lambda seed=seed: np.random.default_rng(seed)
        if inner:
            fn = lambda x, p=inner[0]: run(p, x)
            new = WRAPS[name](fixed(), x, fn)
        else:
            new = LEAVES[name](fixed(), x)
        x = new + sparse(rng, SHAPE) * x if seed % 3 == 0 else new
    return x


_seeds = st.integers(0, 2**16)
_leaf = st.tuples(st.sampled_from(sorted(LEAVES)), _seeds)
PROGRAMS = st.recursive(
    st.lists(_leaf, min_size=1, max_size=3),
    lambda inner: st.lists(
        _leaf | st.tuples(st.sampled_from(sorted(WRAPS)), _seeds, inner),
        min_size=1,
        max_size=3,
    ),
    max_leaves=4,
)
