"""QRMultiply solves for many right-hand sides at the price of one matrix product.

`vmap` over the vectors of one operator, factorisation included: `lx.QR` hands every
vector a copy of the factor; `lxe.QRMultiply` makes columns of the vectors. The bar to
reach is LAPACK called by hand: `geqrf`, `ormqr` and one triangular solve. For a single
vector there is nothing to fold, and it must cost nothing.

With `pivoting=True` it also does what `lx.SVD` does, on an operator that lacks rank.

Every answer is compared with NumPy's `lstsq`: ‖x − x_ref‖ / ‖x_ref‖ over all vectors.
`throw=False` on both sides.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float

import lineax_ext as lxe

from .harness import Case, Goal


def through(solver: lx.AbstractLinearSolver) -> Callable[[Array, Array], Array]:
    """`vmap` of `lx.linear_solve` over the rows of `vectors`."""

    def solve_all(matrix: Float[Array, "m n"], vectors: Float[Array, "count m"]):
        operator = lx.MatrixLinearOperator(matrix)

        def solve(vector):
            return lx.linear_solve(operator, vector, solver, throw=False).value

        return jax.vmap(solve)(vectors)

    return solve_all


def by_hand(
    matrix: Float[Array, "m n"], vectors: Float[Array, "count m"]
) -> Float[Array, "count n"]:
    """The three LAPACK calls that it takes."""
    n = matrix.shape[1]
    transposed, taus = jnp.linalg.qr(matrix, mode="raw")  # pyright: ignore
    factor = transposed.mT
    columns = jax.lax.linalg.ormqr(factor, taus, vectors.T, transpose=True)[:n]
    return jax.lax.linalg.triangular_solve(factor[:n], columns, left_side=True).T


def relative_to(reference: np.ndarray) -> Callable[[Array], float]:
    norm = np.linalg.norm(reference)
    return lambda found: float(np.linalg.norm(np.asarray(found) - reference) / norm)


def cases(quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(0)

    sizes = [(200, 200, 200, 12), (1000, 200, 200, 9), (500, 500, 100, 9)]
    # For one vector: never slower, but for the noise of the clock.
    sizes += [(200, 200, 1, 0.95), (1000, 200, 1, 0.95), (500, 500, 1, 0.95)]
    if quick:
        sizes = [(60, 60, 20, 0), (100, 30, 20, 0), (60, 60, 1, 0)]
    for m, n, count, factor in sizes:
        matrix, vectors = rng.standard_normal((m, n)), rng.standard_normal((count, m))
        reference = np.linalg.lstsq(matrix, vectors.T, rcond=None)[0].T
        yield Case(
            panel="vmap over vectors" if count > 1 else "one vector",
            x=f"{m}×{n}, {count} vector{'s' * (count > 1)}",
            sides={
                "lx.QR": through(lx.QR()),
                "lxe.QRMultiply": through(lxe.QRMultiply()),
                "LAPACK by hand": by_hand,
            },
            args=(jnp.asarray(matrix), jnp.asarray(vectors)),
            error=relative_to(reference),
            goals=(
                Goal("lxe.QRMultiply", "lx.QR", factor),
                Goal("lxe.QRMultiply", "LAPACK by hand", 1 / 1.3),
            ),
        )

    m, n, rank = (100, 30, 20) if quick else (1000, 200, 150)
    for columns in (n, rank):
        matrix = rng.standard_normal((m, columns)) @ rng.standard_normal((columns, n))
        vector = rng.standard_normal((1, m))
        reference = np.linalg.lstsq(matrix, vector.T, rcond=1e-10)[0].T
        yield Case(
            panel="pseudoinverse solution",
            x=f"{m}×{n}, rank {columns}",
            sides={
                "lx.SVD": through(lx.SVD()),
                "lxe.QRMultiply(pivoting)": through(lxe.QRMultiply(pivoting=True)),
            },
            args=(jnp.asarray(matrix), jnp.asarray(vector)),
            error=relative_to(reference),
            goals=(Goal("lxe.QRMultiply(pivoting)", "lx.SVD", 1.5),),
        )
