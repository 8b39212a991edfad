"""A Gaussian's log-likelihood and its gradient cost one factorisation and one inverse.

Value and gradient of yᵀ K⁻¹ y + log det K with respect to y and to all of K, a dense
kernel matrix:

- JAX, differentiating through `jnp.linalg.cholesky`, as is usual;
- JAX, by LU: `jnp.linalg.slogdet` and `jnp.linalg.solve`;
- `lxe.inv_quad_logdet` of an operator tagged positive semidefinite;
- GPyTorch's `inv_quad_logdet`, exact (Cholesky), and PyTorch with the backward pass
  written by hand on `torch.cholesky_inverse`: peers outside of JAX.

And log|det| of a tridiagonal matrix and its gradient with respect to the three
diagonals, next to `jnp.linalg.slogdet` of the dense matrix.

The referee is SciPy: the largest error of the value and the gradients, each relative to
its largest entry.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import scipy.linalg

import lineax_ext as lxe

from .harness import absent, Case, Goal, peer


def through_cholesky(matrix, y):
    factor = jnp.linalg.cholesky(matrix)
    z = jax.scipy.linalg.solve_triangular(factor, y, lower=True)
    return z @ z + 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))


def through_lu(matrix, y):
    return y @ jnp.linalg.solve(matrix, y) + jnp.linalg.slogdet(matrix)[1]


def ours(matrix, y):
    operator = lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag)
    quad, logdet = lxe.inv_quad_logdet(operator, y, throw=False)
    return quad + logdet


def gpytorch_side(linear_operator):
    import torch  # pyright: ignore[reportMissingImports]

    def run(matrix, y):
        matrix = torch.tensor(matrix, requires_grad=True)
        y = torch.tensor(y, requires_grad=True)
        operator = linear_operator.to_linear_operator(matrix)
        with linear_operator.settings.max_cholesky_size(10**6):
            quad, logdet = operator.inv_quad_logdet(y[:, None], logdet=True)
            value = quad + logdet
            value.backward()
        return value.item(), (matrix.grad.numpy(), y.grad.numpy())

    return run


def torch_side(torch):
    def run(matrix, y):
        matrix, y = torch.tensor(matrix), torch.tensor(y)[:, None]
        factor = torch.linalg.cholesky(matrix)
        x = torch.cholesky_solve(y, factor)
        gradient = torch.cholesky_inverse(factor) - x @ x.T
        value = (y * x).sum() + 2 * factor.diagonal().log().sum()
        return value.item(), (gradient.numpy(), 2 * x[:, 0].numpy())

    return run


def kernel_matrix(n: int, rng: np.random.Generator) -> np.ndarray:
    points = rng.uniform(0, 10, (n, 3))
    squares = np.sum((points[:, None] - points[None]) ** 2, axis=-1)
    return np.exp(-squares / 2) + 0.1 * np.eye(n)


def relative_error(found, expected) -> float:
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in pairs)


def tridiagonal_logdet(diagonal, lower, upper):
    return lxe.slogdet(lx.TridiagonalLinearOperator(diagonal, lower, upper))[1]


def dense_logdet(diagonal, lower, upper):
    matrix = jnp.diag(diagonal) + jnp.diag(lower, -1) + jnp.diag(upper, 1)
    return jnp.linalg.slogdet(matrix)[1]


def cases(quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    targets = {300: (1.5, 0.9), 1000: (2.0, 1.1), 2000: (1.6, 1.0)}
    for n in (50,) if quick else targets:
        matrix, y = kernel_matrix(n, rng), rng.standard_normal(n)
        factor = scipy.linalg.cho_factor(matrix, lower=True)
        x = scipy.linalg.cho_solve(factor, y)
        value = y @ x + 2 * np.sum(np.log(np.diagonal(factor[0])))
        inverse = scipy.linalg.cho_solve(factor, np.eye(n))
        expected = value, (inverse - np.outer(x, x), 2 * x)
        gradient = lambda fn: jax.value_and_grad(fn, (0, 1))
        theirs, by_lu, mine = "jnp.linalg.cholesky", "LU", "lxe.inv_quad_logdet"
        cholesky_goal, lu_goal = targets.get(n, (1.0, 1.0))
        yield Case(
            panel="value and gradient, dense",
            x=n,
            sides={
                theirs: gradient(through_cholesky),
                by_lu: gradient(through_lu),
                mine: gradient(ours),
                "GPyTorch": peer("linear_operator", gpytorch_side),
                "PyTorch, by hand": peer("torch", torch_side),
            },
            args=(jnp.asarray(matrix), jnp.asarray(y)),
            error=lambda out, expected=expected: relative_error(out, expected),
            tolerance=1e-10,
            goals=(Goal(mine, theirs, cholesky_goal), Goal(mine, by_lu, lu_goal)),
            seconds=15.0,
        )

    for n in (50,) if quick else (1_000, 10_000, 100_000):
        diagonals = [rng.standard_normal(k) for k in (n, n - 1, n - 1)]
        gradient = lambda fn: jax.value_and_grad(fn, (0, 1, 2))
        dense = gradient(dense_logdet) if n <= 1_000 else absent("O(n²) memory")
        yield Case(
            panel="value and gradient, tridiagonal",
            x=n,
            sides={"dense": dense, "lxe.slogdet": gradient(tridiagonal_logdet)},
            args=tuple(map(jnp.asarray, diagonals)),
            error=tridiagonal_referee(*diagonals),
            tolerance=1e-8,
        )


def tridiagonal_referee(diagonal, lower, upper):
    """log|det| by LAPACK's `gttrf`; ten columns of the inverse by `gtsv`."""
    lapack: Any = scipy.linalg.lapack
    pivots = lapack.dgttrf(lower, diagonal, upper)[1]
    value = np.sum(np.log(np.abs(pivots)))
    columns = np.linspace(1, diagonal.size - 2, 10).astype(int)
    units = np.zeros((diagonal.size, columns.size))
    units[columns, np.arange(columns.size)] = 1
    solved = lapack.dgtsv(lower, diagonal, upper, units)[3]
    read = lambda offset: solved[columns + offset, np.arange(columns.size)]

    def error(out) -> float:
        found, gradients = out
        at = [np.asarray(g) for g in gradients]
        at = at[0][columns], at[1][columns - 1], at[2][columns]
        expected = read(0), read(-1), read(1)
        return relative_error((found, at), (value, expected))

    return error
