"""The examples of the README and of the docstrings run, and their asserts hold."""

import importlib
import inspect
import pathlib
import pkgutil
import re
import textwrap
import tomllib

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import optimistix as optx
import pytest
from helpers import slow

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


def _run(blocks, namespace):
    """In order and in one namespace, as a reader would type them; under the defaults of
    a reader's JAX, not under the strict promotion of the test suite."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks:
            exec(block, namespace)


def test_readme():
    blocks = _blocks((_root / "README.md").read_text())
    assert len(blocks) >= 3
    _run(blocks, {})


def test_version():
    project = tomllib.loads((_root / "pyproject.toml").read_text())["project"]
    version = project["version"]
    citation = (_root / "CITATION.cff").read_text()
    (date,) = re.findall(r"^date-released: (.*)$", citation, re.M)
    assert re.findall(r"^version: (.*)$", citation, re.M) == [version]
    newest, *_ = re.findall(r"^## (.*)$", (_root / "CHANGELOG.md").read_text(), re.M)
    assert newest in (f"{version} ({date})", "Unreleased")


# What a page leaves to the reader.
_READERS = {
    "past_one_device": dict(
        data=jnp.linspace(1.0, 2.0, 12),
        residuals=lambda y, data: y[0] * data + y[1] - jnp.sin(data),
        matrices=jnp.asarray(np.ones((3, 2, 2)) + np.eye(2)),
        vectors=jnp.ones((3, 2)),
        solve=lambda a, b: lx.linear_solve(lx.MatrixLinearOperator(a), b).value,
    )
}
# They compile the longest, half a minute for gradients through diffrax.
_LONG = (
    "gram",
    "many_small_problems",
    "sparse",
    "sparse_fits",
    "stiff_systems",
    "writing_your_own",
)
_PAGES = [
    slow(path.stem) if path.stem in _LONG else path.stem
    for path in sorted((_root / "docs").glob("*.md"))
    if "```python" in path.read_text()
]


@pytest.mark.parametrize("page", _PAGES)
def test_page(page):
    text = (_root / "docs" / f"{page}.md").read_text()
    # As many devices as there are.
    first, *others = _blocks(text.replace("make_mesh((8,)", "make_mesh((1,)"))
    namespace = dict(_READERS.get(page, {}))
    _run([first], namespace)
    if page == "past_one_device":
        data = np.linspace(1.0, 2.0, 12)
        fitted = namespace["fit"](jnp.zeros(2), namespace["data"])
        np.testing.assert_allclose(fitted, np.polyfit(data, np.sin(data), 1), 1e-6)
    _run(others, namespace)
    if page == "past_one_device":
        np.testing.assert_allclose(namespace["solutions"], 1 / 3)


def _slugs(text):
    for heading in re.findall(r"^#+ (.*)$", text, re.M):
        words = re.sub(r"[^\w\s-]", "", heading.lower()).strip()
        yield re.sub(r"[\s-]+", "-", words)


def test_links():
    results = _root / "benchmarks" / "results"
    drawn = [*results.glob("*.png"), *(_root / "examples").glob("*.py")]
    drawn = {f"pictures/{path.stem}.png" for path in drawn}
    written = [_root / name for name in ("README.md", "CONTRIBUTING.md")]
    for path in [*written, *(_root / "docs").glob("*.md")]:
        text = re.sub(r"```.*?```|`[^`]*`", "", path.read_text(), flags=re.S)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            target, _, anchor = link.partition("#")
            page = path.parent / target if target else path
            if "://" in link or target in drawn:
                continue
            assert page.exists(), f"{path.name}: {link}"
            assert not anchor or anchor in _slugs(page.read_text()), link
    # Each has a place on the page of figures.
    assert {x.stem for x in results.glob("*.json")} <= {
        x.stem for x in results.glob("*.png")
    }


def test_every_public_name_is_on_one_page():
    pages = "\n".join(path.read_text() for path in (_root / "docs").glob("*.md"))
    found = re.findall(r"^::: lineax_ext\.(\w+)$", pages, re.M)
    ours = lambda x: getattr(x, "__module__", "").startswith("lineax_ext")
    public = [name for name, value in vars(lxe).items() if ours(value)]
    assert sorted(found) == sorted(public)
    for name in public:
        assert inspect.getdoc(getattr(lxe, name)), name


@pytest.mark.slow
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
