"""Every row of the support table, under every transform it names, in every dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, directional, double, normal, slow, well_conditioned
from support import DTYPES, ROWS


def _cases():
    for row in ROWS:
        for dtype in row.dtypes:
            # Single precision, and complex where there is that, without `--slow`.
            cheap = dtype == [x for x in DTYPES[::2] if x in row.dtypes][-1]
            mark = pytest.param if cheap and not row.expensive else slow
            yield mark(row, dtype, id=f"{row.name.replace('`', '')}-{dtype}")


@pytest.mark.parametrize("row, dtype", list(_cases()))
def test_support(row, dtype):
    dtype = np.dtype(dtype)
    m, n = row.shape
    a = np.stack([well_conditioned((m, n), dtype, seed) for seed in (0, 3)])
    b = np.stack([normal((m,), dtype, seed) for seed in (0, 3)])
    t_a, t_b = normal((m, n), dtype, 1), normal((m,), dtype, 1)

    @jax.jit
    def transformed(a, b, t_a, t_b):
        many = jax.vmap(row.fn)(a, b)
        out, t_out = jax.jvp(row.fn, (a[0], b[0]), (t_a, t_b))
        _, vjp = jax.vjp(row.fn, a[0], b[0])
        return many, out, t_out, vjp(jnp.ones_like(out))

    many, out, t_out, grads = transformed(a, b, t_a, t_b)
    expected = np.stack([row.referee(*map(double, x)) for x in zip(a, b)])
    moved = lambda t: (double(a[0]) + t * double(t_a), double(b[0]) + t * double(t_b))
    t_expected = directional(lambda t: row.referee(*moved(t)))
    g_expected = np.sum(t_expected).real
    g = sum(np.sum(double(x) * double(t)) for x, t in zip(grads, (t_a, t_b))).real

    share = 0.4 if dtype.itemsize // (1 + (dtype.kind == "c")) == 4 else 1
    rtol, t_rtol = 10 ** (-row.digits * share), 10 ** (-min(row.digits, 8) * share)
    assert many.dtype == out.dtype
    assert_close(many, expected, rtol)
    assert_close(out, expected[0], rtol)
    assert_close(t_out, t_expected, t_rtol)
    scale = np.sum(np.abs(t_expected))
    assert abs(g - g_expected) <= t_rtol * scale, (g, g_expected)
