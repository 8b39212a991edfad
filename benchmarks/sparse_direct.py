"""A sparse matrix is factorised by XLA operations alone, as by SuperLU.

SuperLU (SciPy) and, where `klujax` is installed, KLU are beside it, in one process. A
panel each for a factorisation, a solve from its result, and a batch of matrices; and
one for Newton's method by optimistix. Names of cases tell the entries of the factors,
too: ours, padding included, and SuperLU's by its two orderings; and METIS's, where
`pymetis` is installed, with SuperLU's pivots on the diagonal.
"""

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import scipy.sparse as sp
import scipy.sparse.linalg as spl

from lineax_ext import AutoStructuredLinearSolver, Pattern
from lineax_ext._factor.sparse import factor, plan, Scalar, ScalarFactors, solve

from .harness import absent, Case, Goal, peer, Side


_BATCH = 32


def cases(quick: bool, only: str = "") -> Iterator[Case]:
    problems = {"grid 12×12": lambda: _grid(12, 12)} if quick else _PROBLEMS
    for name, make in problems.items():
        if only in name:
            yield from _cases(name, make(), batched=quick or name == "grid 32×32×2")
    if only in "Bratu":
        yield from (_bratu(side) for side in ((12,) if quick else (30, 50, 100)))


def _bratu(side: int) -> Case:
    """Five points, by Newton's method."""
    h = 1 / (side + 1)

    def fn(u: Any, rate: Any) -> Any:
        u = jnp.pad(u.reshape(side, side), 1)
        inside = u[1:-1, 1:-1]
        around = u[2:, 1:-1] + u[:-2, 1:-1] + u[1:-1, 2:] + u[1:-1, :-2]
        return (around - 4 * inside + h**2 * rate * jnp.exp(inside)).reshape(-1)

    def by(linear_solver: lx.AbstractLinearSolver) -> Callable[..., Any]:
        newton = optx.Newton(rtol=1e-8, atol=1e-8, linear_solver=linear_solver)
        return lambda u, rate: optx.root_find(fn, newton, u, rate).value

    dense = by(lx.LU()) if side <= 50 else absent("800 MB, and 64 times those of 50×50")
    return Case(
        panel="Bratu, optx.Newton",
        x=f"{side}×{side}",
        sides={
            "LU": dense,
            "AutoStructuredLinearSolver": by(AutoStructuredLinearSolver()),
        },
        args=(jnp.zeros(side**2), jnp.asarray(6.0)),
        error=lambda u: float(jnp.abs(fn(u, 6.0)).max()),
    )


def _cases(name: str, matrix: Any, batched: bool) -> Iterator[Case]:
    n = matrix.shape[0]
    pattern = Pattern.from_scipy(matrix)
    symbolic = plan(pattern)
    definite = plan(pattern, symmetric=True)
    values = jnp.asarray(matrix.data)
    b = jnp.asarray(np.random.default_rng(0).normal(size=(n, 1)))
    label = f"{name}, n = {n}, {_fill(matrix, symbolic.fill)}"

    def residual(x: Any) -> float:
        left = matrix @ np.asarray(x).reshape(n, -1) - np.asarray(b)
        return float(np.abs(left).max() / np.abs(x).max())

    def of_factors(answer: Any) -> float:
        if isinstance(answer, spl.SuperLU):
            return residual(answer.solve(np.asarray(b)))
        # Those of LU and of Cholesky are applied alike, in the same order here, unless
        # only one of the two goes entry by entry.
        entries = isinstance(answer, ScalarFactors)
        own = symbolic if entries == isinstance(symbolic, Scalar) else definite
        return residual(jax.jit(lambda f, b: solve(own, f, b)[0])(answer, b))

    def superlu(values: np.ndarray) -> spl.SuperLU:
        return _superlu(sp.csr_array((values, matrix.indices, matrix.indptr)))

    large = n >= 4000
    yield Case(
        panel="factor",
        x=label,
        sides={
            "SuperLU": Side(superlu, host=True),
            "factor": lambda v: factor(symbolic, v),
            "factor, symmetric": lambda v: factor(definite, v),
        },
        args=(values,),
        error=of_factors,
        goals=(
            Goal("factor", "SuperLU", 1 / 1.2 if large else 1 / 2),
            Goal("factor, symmetric", "factor", 1 / 0.7),
        ),
    )
    state = jax.jit(lambda v: factor(symbolic, v))(values)
    reference = superlu(np.asarray(values))
    yield Case(
        panel="solve from a factorisation",
        x=label,
        sides={
            "SuperLU": Side(lambda state, b: reference.solve(b), host=True),
            "solve": lambda state, b: solve(symbolic, state, b)[0],
        },
        args=(state, b),
        error=residual,
        goals=(Goal("solve", "SuperLU", 1 / 1.5),),
    )

    def klu(module: Any) -> Callable[..., Any]:
        rows, cols = pattern.rows, pattern.cols
        return lambda v, b: np.asarray(module.solve(rows, cols, v, b))

    yield Case(
        panel="factor and solve",
        x=label,
        sides={
            "SuperLU": Side(lambda v, b: superlu(v).solve(b), host=True),
            "KLU": peer("klujax", klu),
            "factor and solve": lambda v, b: solve(symbolic, factor(symbolic, v), b)[0],
        },
        args=(values, b),
        error=residual,
    )
    if batched:
        many = values * (1 + 0.01 * jnp.arange(_BATCH)[:, None])
        ours = jax.vmap(
            lambda v, b: solve(symbolic, factor(symbolic, v), b)[0], (0, None)
        )
        theirs = lambda many, b: np.stack([superlu(v).solve(b) for v in many])
        yield Case(
            panel=f"{_BATCH} matrices",
            x=label,
            sides={"SuperLU": Side(theirs, host=True), "vmap": ours},
            args=(many, b),
            error=lambda x: residual(np.asarray(x)[0]),
            goals=(Goal("vmap", "SuperLU", 1),),
        )


def _superlu(matrix: Any, order: str = "MMD_AT_PLUS_A") -> spl.SuperLU:
    return spl.splu(
        matrix.tocsc(),
        permc_spec=order,
        diag_pivot_thresh=0.01,
        options={"SymmetricMode": True},
    )


def _fill(matrix: Any, ours: int) -> str:
    """Thousands of entries of the factors, by ordering."""
    fill = {"ours": ours}
    for order in ("MMD_AT_PLUS_A", "COLAMD"):
        fill[order] = _superlu(matrix, order).nnz
    try:
        pymetis: Any = importlib.import_module("pymetis")
    except ImportError:
        pass
    else:
        off = sp.csr_array(matrix - sp.diags_array(matrix.diagonal()))
        off.eliminate_zeros()
        order, _ = pymetis.nested_dissection(xadj=off.indptr, adjncy=off.indices)
        fill["METIS"] = _superlu(sp.csr_array(matrix[order][:, order]), "NATURAL").nnz
    return "fill " + ", ".join(f"{k} {v // 1000}k" for k, v in fill.items())


def _definite(rows: np.ndarray, cols: np.ndarray, n: int) -> sp.csr_array:
    """A random symmetric matrix, diagonally dominant, with these entries."""
    off = rows != cols
    upper = np.random.default_rng(0).normal(size=int(off.sum()))
    half = sp.csr_array((upper, (rows[off], cols[off])), shape=(n, n))
    matrix = half + half.T
    matrix = sp.csr_array(matrix + sp.diags_array(1 + abs(matrix).sum(axis=1)))
    matrix.sort_indices()
    return matrix


def _grid(*shape: int, species: int = 1) -> sp.csr_array:
    index = np.arange(np.prod(shape)).reshape(shape)
    pairs = [
        (np.delete(index, -1, axis).ravel(), np.delete(index, 0, axis).ravel())
        for axis in range(len(shape))
    ]
    rows, cols = (np.concatenate(x) for x in zip(*pairs))
    every = np.arange(index.size)
    rows, cols = np.append(rows, every), np.append(cols, every)
    # All species of a point depend on all of it and of its neighbours.
    kind = np.arange(species)
    rows, cols = np.broadcast_arrays(
        rows[:, None, None] * species + kind[:, None],
        cols[:, None, None] * species + kind,
    )
    return _definite(rows.ravel(), cols.ravel(), index.size * species)


def _triangulation(n: int) -> sp.csr_array:
    from scipy.spatial import Delaunay

    corners = Delaunay(np.random.default_rng(0).uniform(size=(n, 2))).simplices
    edges = np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [2, 0]]])
    return _definite(edges[:, 0], edges[:, 1], n)


def _tree(n: int) -> sp.csr_array:
    rng = np.random.default_rng(0)
    return _definite(np.arange(1, n), rng.integers(0, np.arange(1, n)), n)


def _circuit(n: int, hubs: int = 5) -> sp.csr_array:
    """Mostly neighbours, some far apart, and a few nodes that are joined to many."""
    rng = np.random.default_rng(0)
    ends = rng.integers(0, n, size=3 * n // 2)
    others = (ends + 1 + (3 * rng.pareto(1.0, size=ends.size)).astype(int)) % n
    centres = np.repeat(rng.choice(n, hubs, replace=False), n // 10)
    rows = np.append(ends, centres)
    return _definite(rows, np.append(others, rng.integers(0, n, centres.size)), n)


_PROBLEMS: dict[str, Callable[[], sp.csr_array]] = {
    "grid 32×32×2": lambda: _grid(32, 32, species=2),
    "grid 100×100": lambda: _grid(100, 100),
    "grid 100×100×2": lambda: _grid(100, 100, species=2),
    "grid 16³": lambda: _grid(16, 16, 16),
    "triangulation": lambda: _triangulation(10_000),
    "tree": lambda: _tree(10_000),
    "circuit": lambda: _circuit(5000),
}
