"""The examples of the README and of the docstrings run, and their asserts hold."""

import importlib
import inspect
import pathlib
import pkgutil
import re
import textwrap

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import optimistix as optx
import pytest

import lineax_ext as lxe


_root = pathlib.Path(__file__).parents[1]


def _blocks(text):
    return [
        textwrap.dedent(block)
        for block in re.findall(r"^ *```python\n(.*?)^ *```", text, re.M | re.S)
    ]


def _documented():
    for info in pkgutil.walk_packages(lxe.__path__, "lineax_ext."):
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            if getattr(value, "__module__", None) == info.name and value.__doc__:
                for block in _blocks(inspect.getdoc(value)):
                    yield pytest.param(block, id=f"{info.name}.{name}")


def test_readme():
    blocks = _blocks((_root / "README.md").read_text())
    assert len(blocks) >= 3
    # In order and in one namespace, as a reader would type them; under the defaults of
    # a reader's JAX, not under the strict promotion of the test suite.
    namespace = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks:
            exec(block, namespace)
    assert namespace["path"].shape == (100, 200)


@pytest.mark.parametrize("page", ("operators.md", "sparse.md"))
def test_page(page):
    blocks = _blocks((_root / "docs" / page).read_text())
    assert len(blocks) >= 1
    namespace = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks:
            exec(block, namespace)


@pytest.mark.parametrize("block", list(_documented()))
def test_docstring(block):
    matrix = jnp.abs(jr.normal(jr.key(0), (5, 5))) * jnp.eye(5)
    namespace = dict(
        # A fit, whose Jacobian is that matrix.
        residuals=lambda y, args: matrix @ y - 1,
        y0=jnp.zeros(5),
        args=None,
        optx=optx,
        jax=jax,
        jnp=jnp,
        jr=jr,
        lx=lx,
        lxe=lxe,
        operator=lx.MatrixLinearOperator(matrix, lx.tridiagonal_tag),
        vector=jnp.ones(5),
        dampings=jnp.array([0.1, 1.0]),
    )
    exec(block, namespace)
    d, rtol = np.diagonal(np.asarray(matrix)), 1e-10
    if "solutions" in namespace:
        found, expected = namespace["solutions"], [d / (d**2 + x) for x in (0.1, 1.0)]
    elif "sol" in namespace:
        found, expected = namespace["sol"].value, 1 / d
    elif "quad" in namespace:
        terms = np.sum(1 / d) + np.sum(np.log(2 * np.pi * d))
        found, expected = namespace["log_likelihood"], -terms / 2
    elif "lanes" in namespace:
        found = namespace["values"]
        expected, rtol = np.broadcast_to(1 / d, found.shape), 1e-6
    elif "dfx" in namespace:
        found, expected = namespace["solution"].ys[-1], -np.expm1(-d) / d
        rtol = 1e-6
    else:
        found, expected = namespace["solution"].value, 1 / d
    np.testing.assert_allclose(found, expected, rtol)
