"""lineax_ext reads a diagonal or three in O(n), wherever the tag stands.

`lx.diagonal` and `lx.tridiagonal` of the Jacobian of a nonlinear diffusion: the rules
that lineax_ext registers against lineax's own. "lineax" here is lineax where lineax_ext
was never imported: the harness kept its rules and puts them back while that side is
compiled. What they do in lineax 0.1.1:

- tag on the `JacobianLinearOperator` itself: three applications, as here. No gain is
  claimed there, only that nothing is lost;
- tag on a `TaggedLinearOperator` around it: the tag is dropped and the dense matrix
  built;
- `lx.diagonal` without a tag: the dense matrix is built. Ours reads the same columns, a
  chunk at a time: time is O(n²) for both, memory O(n) for ours.

The last panel is what it comes to for a caller: `optx.Newton` for a boundary-value
problem.

Errors are relative: to the closed form of the diagonals; for Newton, to the solution by
a Newton iteration on SciPy's `solve_banded`.
"""

from collections.abc import Iterator

import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import scipy.linalg
from jaxtyping import Array, Float

import lineax_ext as lxe

from .harness import absent, Case, Goal, plain


assert lxe.__version__  # imported for its rules


TRIDIAGONAL = frozenset({lx.tridiagonal_tag})
DIAGONAL = frozenset({lx.diagonal_tag})


def bratu(u: Float[Array, " n"], strength: float = 1.0) -> Float[Array, " n"]:
    """u'' + λ exp(u) = 0 on (0, 1), u(0) = u(1) = 0, times h²."""
    h = 1 / (u.size + 1)
    padded = jnp.pad(u, 1)
    neighbours = padded[:-2] + padded[2:]
    return neighbours - 2 * u + h**2 * strength * jnp.exp(u)


def pointwise(u: Float[Array, " n"], args: None = None) -> Float[Array, " n"]:
    return jnp.sin(u) * jnp.exp(u)


# What is read


def tagged(u):
    """The tag on the operator itself."""
    return lx.tridiagonal(lx.JacobianLinearOperator(bratu, u, 1.0, tags=TRIDIAGONAL))


def wrapped(u):
    """The tag put on from outside, by someone who is handed an operator."""
    operator = lx.JacobianLinearOperator(bratu, u, 1.0)
    return lx.tridiagonal(lx.TaggedLinearOperator(operator, lx.tridiagonal_tag))


def pointwise_tagged(u):
    return (lx.diagonal(lx.JacobianLinearOperator(pointwise, u, tags=DIAGONAL)),)


def untagged(u):
    return (lx.diagonal(lx.JacobianLinearOperator(bratu, u, 1.0)),)


def newton(tags: frozenset[object]):
    def solve(u0):
        solver = optx.Newton(rtol=1e-9, atol=1e-9)
        solution = optx.root_find(bratu, solver, u0, 1.0, tags=tags, throw=False)
        return solution.value, solution.stats["num_steps"]

    return solve


# What it should be


def diagonals(u: np.ndarray) -> tuple[np.ndarray, ...]:
    """The diagonal, the lower and the upper one, of the Jacobian of `bratu`."""
    h = 1 / (u.size + 1)
    return -2 + h**2 * np.exp(u), np.ones(u.size - 1), np.ones(u.size - 1)


def main_diagonal(u: np.ndarray) -> tuple[np.ndarray, ...]:
    return diagonals(u)[:1]


def exact_slope(u: np.ndarray) -> tuple[np.ndarray, ...]:
    return (np.exp(u) * (np.sin(u) + np.cos(u)),)


def newton_by_scipy(u: np.ndarray) -> np.ndarray:
    for _ in range(20):
        diagonal, lower, upper = diagonals(u)
        band = np.stack([np.append(0, upper), diagonal, np.append(lower, 0)])
        residual = np.asarray(bratu(jnp.asarray(u)))
        u = u - scipy.linalg.solve_banded((1, 1), band, residual)
    return u


def relative_to(*reference: np.ndarray):
    def relative(x, y):
        return np.max(np.abs(np.asarray(x) - y)) / np.max(np.abs(y))

    # `np.max`, unlike `max`, does not overlook a NaN.
    return lambda found: np.max(list(map(relative, found, reference)))


# Panel, what is read, its closed form, whether lineax does so by the dense matrix, the
# largest n, and how many times as fast it is to be at the largest n that lineax can do.
PANELS = (
    ("tridiagonal, tag on the Jacobian", tagged, diagonals, False, 200_000, 0.9),
    ("tridiagonal, TaggedLinearOperator", wrapped, diagonals, True, 200_000, 100),
    (
        "diagonal, tag on the Jacobian",
        pointwise_tagged,
        exact_slope,
        False,
        200_000,
        0.9,
    ),
    ("diagonal, no tag", untagged, main_diagonal, True, 10_000, 1),
)


def cases(quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    sizes = (100, 300, 1000) if quick else (300, 1000, 3000, 10_000, 100_000, 200_000)
    largest_dense = 300 if quick else 3000
    for panel, read, reference, by_dense, largest, factor in PANELS:
        largest_lineax = largest_dense if by_dense else sizes[-1]
        for n in (n for n in sizes if n <= largest):
            u = rng.standard_normal(n)
            too_large = absent(f"the dense matrix, {8 * n**2 / 1e6:,.0f} MB")
            yield Case(
                panel=panel,
                x=n,
                sides={
                    "lineax": plain(read) if n <= largest_lineax else too_large,
                    "lineax_ext": read,
                },
                args=(jnp.asarray(u),),
                error=relative_to(*reference(u)),
                tolerance=1e-14,
                goals=(Goal("lineax_ext", "lineax", factor),) * (n == largest_lineax),
            )

    for n in (200,) if quick else (500, 1000, 2000):
        by_newton = relative_to(newton_by_scipy(np.zeros(n)))
        yield Case(
            panel="optx.Newton",
            x=n,
            sides={
                "lineax, no tag": plain(newton(frozenset())),
                "lineax, tag": plain(newton(TRIDIAGONAL)),
                "lineax_ext, tag": newton(TRIDIAGONAL),
            },
            args=(jnp.zeros(n),),
            error=lambda found, error=by_newton: error(found[:1]),
            steps=lambda found: found[1],
            goals=(Goal("lineax_ext, tag", "lineax, tag", 0.9),),
        )
