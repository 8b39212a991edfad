"""The pattern of a Jacobian is found in less time than by asdex, and of more functions.

A stencil, two species on a grid, a triangle; and all residuals and Hessians of sif2jax,
CUTEst's problems, with up to 120 unknowns. Beside it what JAX takes to trace the
same functions, which is part of the time, and `asdex` where it can be imported, for
sif2jax called only once. Nothing is cached from one call to the next.

The error is the number of entries that the pattern lacks: of the dense Jacobian at a
random point for one in four of sif2jax, of the pattern that is known for the others.
The steps are the number of colours, by columns, for the first two; the number of
entries for the others.
"""

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jax.flatten_util import ravel_pytree

import lineax_ext as lxe
from lineax_ext._structure import detect as detection, differential
from lineax_ext._structure.colour import colour

from .harness import absent, Case, peer, Side


Function = Callable[[Any], Any]


def stencil(y):
    return jnp.roll(y, 1) + jnp.roll(y, -1) - (4 + y**2) * y


def grid(y):
    u, v = y
    laplacian = lambda u: (
        sum(jnp.roll(u, s, a) for s in (1, -1) for a in (0, 1)) - 4 * u
    )
    rate = u**2 * v
    return jnp.stack([1 + rate - 4 * u + laplacian(u), 3 * u - rate + laplacian(v)])


def triangle(y):
    return jnp.cumsum(y**2) + y


def known_stencil(n: int) -> sp.csr_array:
    at, ones = np.arange(n), np.ones(n, bool)
    one = lambda k: sp.csr_array((ones, (at, (at + k) % n)), (n, n))
    return one(-1) + one(0) + one(1)


def known_grid(g: int) -> sp.csr_array:
    line = known_stencil(g)
    cell = sp.kron(sp.eye_array(g), line) + sp.kron(line, sp.eye_array(g))
    return sp.kron(sp.eye_array(2), cell) + sp.kron(
        np.ones((2, 2)), sp.eye_array(g * g)
    )


def lacking(found: sp.csr_array, expected: Any) -> int:
    expected = sp.csr_array(expected).astype(bool)
    return int((expected.astype(int) - expected.multiply(found).astype(int)).nnz)


def found_by_us(functions: list[tuple[Function, Any]]) -> list[sp.csr_array]:
    detection._cache.clear()
    differential._programs.clear()
    found = [lxe.infer_pattern(lambda y, _, fn=fn: fn(y), y) for fn, y in functions]
    return [pattern.to_scipy() for pattern in found]


def found_by_asdex(asdex: Any, functions: list[tuple[Function, Any]]):
    found = []
    for fn, y in functions:
        flat, unravel = ravel_pytree(y)
        flat_fn = lambda y, fn=fn, unravel=unravel: ravel_pytree(fn(unravel(y)))[0]
        try:
            p = asdex.jacobian_sparsity(flat_fn, flat)
        except Exception:  # for a primitive that it does not know
            found.append(sp.csr_array(np.ones((size(flat_fn, flat), flat.size), bool)))
            continue
        entries = np.ones(len(p.rows), bool), (p.rows, p.cols)
        found.append(sp.coo_array(entries, p.shape))
    return found


def size(fn: Function, y: Any) -> int:
    return jax.eval_shape(fn, y).size


def traced(functions: list[tuple[Function, Any]]) -> list[Any]:
    """What nobody can do without: JAX's own part. It finds nothing."""
    for fn, y in functions:
        jax.make_jaxpr(lambda y, fn=fn: fn(y))(y)
    return []


def problems(most: int) -> Iterator[tuple[str, Function, Any]]:
    """Residuals of all nonlinear equations, and gradients of other objectives: their
    Jacobians are the Hessians."""
    try:
        sif2jax = importlib.import_module("sif2jax")
    except ImportError:
        return
    equations = sif2jax.nonlinear_equations_problems
    groups = {
        "residuals": equations,
        "Hessians, no constraint": sif2jax.unconstrained_minimisation_problems,
        "Hessians, bounds": sif2jax.bounded_minimisation_problems,
        "Hessians, constraints": sif2jax.constrained_minimisation_problems,
    }
    for group, problem in ((k, p) for k, own in groups.items() for p in own):
        start, unravel = ravel_pytree(problem.y0)
        if start.size > most:
            continue
        if group == "residuals":
            fn = lambda y, p=problem, u=unravel: ravel_pytree(p.constraint(u(y))[0])[0]
        else:
            objective = lambda y, p=problem, u=unravel: p.objective(u(y), p.args)
            fn = jax.grad(objective)
        try:
            out = jax.eval_shape(fn, start)
        except Exception:
            continue  # of another release of JAX
        if jnp.issubdtype(out.dtype, jnp.inexact):
            yield group, fn, start.astype(float)


def is_nonzero(fn: Function, y: Any, rng: np.random.Generator) -> np.ndarray:
    """Near y, where a square root may be taken of it; what is not a number says
    nothing."""
    point = y + 0.1 * rng.uniform(size=y.shape)
    jacobian = np.asarray(jax.jit(jax.jacfwd(fn))(point))
    return (jacobian != 0) & ~np.isnan(jacobian)


def cases(quick: bool) -> Iterator[Case]:
    def case(panel, x, functions, expected, colours, seconds):
        def error(found) -> float:
            return float(sum(map(lacking, found, expected)))

        def steps(found) -> int | None:
            entries = [lxe.Pattern.from_scipy(p) for p in found]
            if colours:
                return colour(entries[0], "columns").count if entries else None
            return sum(map(len, entries)) if entries else None

        by_asdex = lambda asdex: lambda: found_by_asdex(asdex, functions)
        sides = {
            "lineax_ext": Side(lambda: found_by_us(functions), host=True),
            "tracing alone": Side(lambda: traced(functions), host=True),
            "asdex": peer("asdex", by_asdex)._replace(
                may_fail=True, once=panel == "sif2jax"
            ),
        }
        if "constraints" in str(x) or "bounds" in str(x):
            sides["asdex"] = absent("two of four take it minutes")
        return Case(
            panel=panel,
            x=x,
            sides=sides,
            args=(),
            error=error,
            tolerance=0.0,
            steps=steps,
            seconds=seconds,
        )

    for n in (100,) if quick else (1000, 10_000, 100_000):
        expected = [known_stencil(n)]
        yield case("a stencil", n, [(stencil, jnp.ones(n))], expected, True, 2.0)
    for g in (10,) if quick else (100, 300):
        functions = [(grid, jnp.ones((2, g, g)))]
        panel = "two species on a grid"
        yield case(panel, 2 * g * g, functions, [known_grid(g)], True, 2.0)
    for n in (30,) if quick else (1000, 3000):
        expected = [np.tril(np.ones((n, n), bool))]
        functions = [(triangle, jnp.ones(n))]
        yield case("a triangle", n, functions, expected, False, 1.0)

    if quick:  # to import sif2jax takes longer than all the rest
        return
    found, rng = list(problems(120)), np.random.default_rng(0)
    for group in dict.fromkeys(group for group, _, _ in found):
        functions = [(fn, y) for own, fn, y in found if own == group]
        # The dense Jacobians take minutes to compile: one problem in four.
        expected = [
            is_nonzero(fn, y, rng)
            if i % 4 == 0
            else sp.csr_array((size(fn, y), y.size))
            for i, (fn, y) in enumerate(functions)
        ]
        name = f"{len(functions)} {group}"
        yield case("sif2jax", name, functions, expected, False, 1.0)
