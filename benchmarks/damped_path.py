"""A path of dampings costs one factorisation of the operator.

A path of dampings, min ‖A x − b‖² + λ ‖x‖² for each λ in turn by `jax.lax.map`:

- `lx.QR` of the stack [A; √λ I], for each λ anew: what lineax can do;
- `lxe.DampedQR`: one QR of A, then the QR of [R; √λ I] for each λ;
- `lxe.DampedSVD`: one SVD of R, then two products with a vector for each λ;
- scikit-learn's `Ridge`, a peer outside of JAX, that forms the normal equations.

The factorisation is part of the time of each side. Then that second QR on its own, as
`damped_solve` uses it on a state: the one that knows of the two triangles, against
LAPACK on the dense 2n×n stack. Here the compile time matters, too: that of up to three
loops over panels.

Every solution is compared with NumPy's SVD: ‖x − x_ref‖ / ‖x_ref‖, the largest over the
path. `throw=False` on both sides.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float

import lineax_ext as lxe

from .harness import Case, Goal, peer


def stacked(
    matrix: Float[Array, "m n"],
    vector: Float[Array, " m"],
    dampings: Float[Array, " d"],
) -> Float[Array, "d n"]:
    """The dense stack [A; √λ I] by `lx.QR`."""
    n = matrix.shape[1]

    def solve(damping):
        stack = jnp.concatenate([matrix, jnp.sqrt(damping) * jnp.eye(n)])
        operator = lx.MatrixLinearOperator(stack)
        padded = jnp.concatenate([vector, jnp.zeros(n)])
        return lx.linear_solve(operator, padded, lx.QR(), throw=False).value

    return jax.lax.map(solve, dampings)


def damped(solver: lxe.AbstractDampedSolver):
    """One state, and `lxe.damped_solve` from it."""

    def path(matrix, vector, dampings):
        operator = lx.MatrixLinearOperator(matrix)
        state = solver.init(operator, options={})

        def solve(damping):
            return lxe.damped_solve(
                operator, vector, damping, solver, state=state, throw=False
            ).value

        return jax.lax.map(solve, dampings)

    return path


def ridge(linear_model):
    def path(matrix, vector, dampings):
        fit = lambda alpha: linear_model.Ridge(alpha, fit_intercept=False).fit
        return np.stack([fit(alpha)(matrix, vector).coef_ for alpha in dampings])

    return path


def dense_small(operator, vector, damping, state, r, c):
    """QR of the dense [R; √λ I], with c the top of Qᴴ b: LAPACK by hand."""
    n = r.shape[0]
    stack = jnp.concatenate([r, jnp.sqrt(damping) * jnp.eye(n)])
    transposed, taus = jnp.linalg.qr(stack, mode="raw")  # pyright: ignore
    padded = jnp.concatenate([c, jnp.zeros(n)])[:, None]
    top = jax.lax.linalg.ormqr(transposed.mT, taus, padded, transpose=True)[:n]
    return jax.lax.linalg.triangular_solve(transposed.mT[:n], top, left_side=True)[:, 0]


def structured_small(operator, vector, damping, state, r, c):
    """The same from the state of A, with Qᴴ b computed as well."""
    return lxe.damped_solve(operator, vector, damping, state=state, throw=False).value


def relative_to(
    matrix: np.ndarray, vector: np.ndarray, dampings: np.ndarray
) -> Callable[[Array], float]:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    filters = s / (s**2 + dampings[:, None])
    reference = (filters * (u.T @ vector)) @ vt

    def error(found):
        distances = np.linalg.norm(np.asarray(found) - reference, axis=-1)
        return np.max(distances / np.linalg.norm(reference, axis=-1))

    return error


def cases(quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(0)

    m, n = (200, 20) if quick else (4000, 100)
    matrix, vector = rng.standard_normal((m, n)), rng.standard_normal(m)
    for count in (1, 20) if quick else (1, 2, 5, 10, 20, 50, 100):
        dampings = np.logspace(-4, 4, count)
        yield Case(
            panel=f"path of dampings, {m}×{n}",
            x=count,
            xlabel="dampings",
            sides={
                "lx.QR of the stack": stacked,
                "lxe.DampedQR": damped(lxe.DampedQR()),
                "lxe.DampedSVD": damped(lxe.DampedSVD()),
                "scikit-learn Ridge": peer("sklearn.linear_model", ridge),
            },
            args=(jnp.asarray(matrix), jnp.asarray(vector), jnp.asarray(dampings)),
            error=relative_to(matrix, vector, dampings),
            goals=(Goal("lxe.DampedQR", "lx.QR of the stack", 6),) * (count == 20),
        )

    for n in (40, 80) if quick else (100, 300, 600, 1000, 2000):
        matrix, vector = rng.standard_normal((n, n)), rng.standard_normal(n)
        damping = 1e-2
        q, r = np.linalg.qr(matrix)
        operator = lx.MatrixLinearOperator(jnp.asarray(matrix))
        state = lxe.DampedQR().init(operator, options={})
        yield Case(
            panel="one more damping, n×n",
            x=n,
            sides={"dense [R; √λ I]": dense_small, "lxe.DampedQR": structured_small},
            args=(
                operator,
                jnp.asarray(vector),
                jnp.asarray(damping),
                state,
                jnp.asarray(r),
                jnp.asarray(q.T @ vector),
            ),
            error=relative_to(matrix, vector, np.array([damping])),
            goals=(Goal("lxe.DampedQR", "dense [R; √λ I]", 1.5),) * (n in (300, 600)),
        )
