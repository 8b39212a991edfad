"""BlockTridiagonal solves block-tridiagonal systems within a small factor of LAPACK.

Random blocks, which are not dominant in any way, of size k, N·k = 4000. Against the
dense `jnp.linalg.solve` of the same matrix, made beforehand, and against LAPACK's
`gbsv` called through SciPy, on the band of 2k − 1 diagonals to each side that holds the
blocks, packed beforehand. Then a solve from factors that are there: `gbtrs` for LAPACK.

Every answer is judged by its backward error, ‖A x − b‖ / (c ‖x‖), with the length c of
the longest column, which is no more than ‖A‖. `throw=False`.
"""

from collections.abc import Callable, Iterator

import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array

import lineax_ext as lxe

from .harness import Case, Goal, peer, Side


SOLVER = lxe.BlockTridiagonal()


def factor_and_solve(blocks, vector, *others):
    operator = lxe.BlockTridiagonalLinearOperator(*blocks)
    return lx.linear_solve(operator, vector, SOLVER, throw=False).value


def from_state(blocks, vector, state):
    operator = lxe.BlockTridiagonalLinearOperator(*blocks)
    return lx.linear_solve(operator, vector, SOLVER, state=state, throw=False).value


def dense(blocks, vector, matrix):
    return jnp.linalg.solve(matrix, vector)


def lapack(band: np.ndarray, vector: np.ndarray, *, factorised: bool) -> Side:
    half = (len(band) - 1) // 3

    def make(module):
        factors, pivots, _ = module.dgbtrf(band, half, half)
        if factorised:
            return lambda *_: module.dgbtrs(factors, half, half, vector, pivots)[0]
        return lambda *_: module.dgbsv(half, half, band, vector)[2]

    return peer("scipy.linalg.lapack", make)


def in_band(matrix: np.ndarray, k: int) -> np.ndarray:
    """As `gbsv` wants it: one diagonal a row, under room for as many more."""
    n, half = len(matrix), 2 * k - 1
    band = np.zeros((3 * half + 1, n), order="F")
    for d in range(-half, half + 1):
        band[2 * half - d, max(0, d) : n + min(0, d)] = np.diagonal(matrix, d)
    return band


def backward_error(matrix: np.ndarray, vector: np.ndarray) -> Callable[[Array], float]:
    norm = np.max(np.linalg.norm(matrix, axis=0))

    def error(found: Array) -> float:
        x = np.asarray(found)
        residual = np.linalg.norm(matrix @ x - vector)
        return float(residual / (norm * np.linalg.norm(x)))

    return error


def cases(quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    n = 120 if quick else 4000
    ours = "lxe.BlockTridiagonal"
    within = {4: 8, 8: 3}  # times as long as `gbsv`
    for k in (4, 8) if quick else (2, 4, 8, 16):
        blocks = tuple(
            jnp.asarray(rng.standard_normal((n // k - off, k, k))) for off in (0, 1, 1)
        )
        operator = lxe.BlockTridiagonalLinearOperator(*blocks)
        matrix, vector = np.asarray(operator.as_matrix()), rng.standard_normal(n)
        band = in_band(matrix, k)
        error = backward_error(matrix, vector)
        goals = [Goal(ours, "jnp.linalg.solve", 60)]
        goals += [Goal(ours, "LAPACK gbsv", 1 / within[k])] if k in within else []
        yield Case(
            panel=f"factor and solve, N·k = {n}",
            x=k,
            xlabel="k",
            sides={
                ours: factor_and_solve,
                "LAPACK gbsv": lapack(band, vector, factorised=False),
                "jnp.linalg.solve": dense,
            },
            args=(blocks, jnp.asarray(vector), jnp.asarray(matrix)),
            error=error,
            tolerance=1e-13,
            goals=tuple(goals),
        )
        yield Case(
            panel=f"solve from factors, N·k = {n}",
            x=k,
            xlabel="k",
            sides={
                f"{ours}, from state": from_state,
                "LAPACK gbtrs": lapack(band, vector, factorised=True),
                f"{ours}, anew": factor_and_solve,
            },
            args=(blocks, jnp.asarray(vector), SOLVER.init(operator, {})),
            error=error,
            tolerance=1e-13,
            goals=(Goal(f"{ours}, from state", f"{ours}, anew", 6),),
        )
