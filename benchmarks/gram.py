"""A Gram operator's solve costs no more than NetKet's, and knows of cheaper ways.

Stochastic reconfiguration of a restricted Boltzmann machine, log ψ(σ) = a·σ +
Σ log cosh(σ W + b), on 20 spins with 80 hidden units and 1024 uniform samples: the
solution of (quantum geometric tensor + 0.01) x = gradient of the energy of an Ising
chain, by conjugate gradients to 1e-8 and at most 100 steps. Linearising is part of the
time of each side.

- NetKet's `QGTOnTheFly`, a peer, compiled in one program as the others are;
- its `solve`, as a user of NetKet calls it: construction and two compiled calls;
- `lx.CG` of `lxe.GramLinearOperator`: plain, with the Jacobi preconditioner, and in
  chunks of samples;
- the m×m problem: `lxe.damped_solve` with the dense factor of the operator.

Then where these win. A network with 201,000 parameters and 64 samples near a surface,
whose problem is ill-conditioned if the shift is small: conjugate gradients need more
steps than the m×m problem costs. And a logistic model whose 300 inputs come in units
that go over four orders of magnitude, which the diagonal takes out. (With fewer samples
than parameters many eigenvalues equal the shift, which conjugate gradients deal with in
one step; the Jacobi preconditioner takes them apart.)

Every solution is compared with one by NumPy, of the dense n×n or m×m problem:
‖x − x_ref‖ / ‖x_ref‖.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Inexact, PyTree

import lineax_ext as lxe

from .harness import Case, Goal, peer, Side


SPINS, ALPHA, SHIFT = 20, 4, 1e-2


#
# The functions
#


def log_cosh(x: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
    """As NetKet writes it; its derivative costs more than the tanh that it is."""
    x = x * (1 - 2 * jnp.signbit(x.real))
    return x + jnp.log1p(jnp.exp(-2 * x)) - jnp.log(2.0)


def log_psi(params: PyTree[Array], spins: Array) -> Array:
    """As `netket.models.RBM`, with its names of the parameters."""
    kernel, bias = params["Dense"]["kernel"], params["Dense"]["bias"]
    spins = spins.astype(kernel.dtype)
    hidden = jnp.sum(log_cosh(spins @ kernel + bias))
    return hidden + spins @ params["visible_bias"]


def network(params: PyTree[Array], sample: Array) -> Array:
    w1, b1, w2 = params
    return w2 @ jnp.tanh(w1 @ sample + b1)


def logistic(params: Array, sample: Array) -> Array:
    return 2 * jnp.sqrt(jax.nn.sigmoid(jnp.stack([1.0, -1.0]) * (sample @ params)))


#
# The sides, of (params, samples, e), with e the outputs whose gradient is Aᴴ W C e
#


def gram_of(fn: Callable, shift: float, centre: bool, chunk_size: int | None = None):
    def make(params, samples):
        m = len(samples)
        return lxe.GramLinearOperator.from_samples(
            fn, params, samples, weights=jnp.full(m, 1 / m), centre=centre,
            shift=shift, chunk_size=chunk_size,
        )  # fmt: skip

    return make


def norm(tree: PyTree[Array]) -> Array:
    return jnp.linalg.norm(ravel_pytree(tree)[0])


def conjugate_gradients(make, *, steps: int, preconditioned: bool = False):
    """To a residual of 1e-8 of the right-hand side, as NetKet's below."""

    def solve(params, samples, gradient, e):
        gram, options = make(params, samples), {}
        if preconditioned:
            _, unravel = ravel_pytree(params)
            inverse = lx.DiagonalLinearOperator(unravel(1 / lx.diagonal(gram)))
            tag = lx.positive_semidefinite_tag
            options["preconditioner"] = lx.TaggedLinearOperator(inverse, tag)
        atol: Any = 1e-8 * norm(gradient)
        cg = lx.CG(rtol=1e-8, atol=atol, max_steps=steps, stabilise_every=None)
        solution = lx.linear_solve(gram, gradient, cg, options=options, throw=False)
        return solution.value, solution.stats["num_steps"]

    return solve


def by_samples(make):
    """The m×m problem, from e in place of its gradient."""

    def solve(params, samples, gradient, e):
        gram = make(params, samples)
        c = e / jnp.sqrt(len(samples))
        dense: Any = lx.materialise(gram)
        x = lxe.damped_solve(dense.factor(), c, gram.shift, throw=False).value
        return x, None

    return solve


def on_the_fly(model_dtype, *, as_called: bool):
    """NetKet's, with the conjugate gradients that its documentation suggests."""

    def make(netket):
        from netket.optimizer.qgt.qgt_onthefly import (  # pyright: ignore
            QGTOnTheFly_DefaultConstructor as QGTOnTheFly,
        )

        model = netket.models.RBM(alpha=ALPHA, param_dtype=model_dtype)
        holomorphic = {"holomorphic": True} if model_dtype is complex else {}

        def cg(operator, b, x0):
            return jax.scipy.sparse.linalg.cg(operator, b, x0=x0, tol=1e-8, maxiter=100)

        def solve(params, samples, gradient, e):
            if as_called:
                params, gradient = jtu.tree_map(jnp.asarray, (params, gradient))
            geometric = QGTOnTheFly(
                model.apply, params, {}, samples, diag_shift=SHIFT, **holomorphic
            )
            return jax.block_until_ready(geometric.solve(cg, gradient)[0]), None

        return solve

    side = peer("netket", make)
    return side if as_called else side._replace(host=False)


#
# The referee
#


def dense_rows(fn, params, samples, *, centre: bool) -> np.ndarray:
    """W^½ C A, (samples · outputs)×n, from JAX's own Jacobian."""
    is_complex = any(map(jnp.iscomplexobj, jtu.tree_leaves(params)))
    jacobian = jax.jacrev(fn, holomorphic=is_complex)
    tree = jax.jit(jax.vmap(jacobian, (None, 0)))(params, samples)
    m = len(samples)
    sizes = [x.size for x in jtu.tree_leaves(params)]
    leaves = zip(jtu.tree_leaves(tree), sizes, strict=True)
    rows = np.concatenate([np.reshape(x, (m, -1, size)) for x, size in leaves], -1)
    rows = rows - rows.mean(0) if centre else rows
    return rows.reshape(-1, rows.shape[-1]) / np.sqrt(m)


def problem(fn, params, samples, e, *, shift: float, centre: bool):
    """The arguments of the sides, and the error of what they return."""
    b, c = dense_rows(fn, params, samples, centre=centre), e.reshape(-1)
    c = c / np.sqrt(len(samples))
    m, n = b.shape
    rhs = b.conj().T @ c
    if m < n:
        x = b.conj().T @ np.linalg.solve(b @ b.conj().T + shift * np.eye(m), c)
    else:
        x = np.linalg.solve(b.conj().T @ b + shift * np.eye(n), rhs)

    def error(found) -> float:
        flat = np.asarray(ravel_pytree(found[0])[0])
        return float(np.linalg.norm(flat - x) / np.linalg.norm(x))

    gradient = ravel_pytree(params)[1](jnp.asarray(rhs))
    return (params, jnp.asarray(samples), gradient, jnp.asarray(e)), error


def local_energies(params, spins: np.ndarray) -> np.ndarray:
    """Of the Ising chain −Σ σᶻσᶻ − Σ σˣ."""
    psi = jax.jit(jax.vmap(log_psi, (None, 0)))
    here = np.asarray(psi(params, spins))
    energies = -np.sum(spins * np.roll(spins, 1, axis=1), axis=1).astype(here.dtype)
    for i in range(spins.shape[1]):
        flipped = spins.copy()
        flipped[:, i] *= -1
        energies -= np.exp(np.asarray(psi(params, flipped)) - here)
    return energies


def cases(quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(0)

    # Stochastic reconfiguration
    m, n = 64 if quick else 1024, SPINS + SPINS**2 * ALPHA + SPINS * ALPHA
    for dtype, name in ((float, "real parameters"), (complex, "complex parameters")):

        def normal(*shape, dtype=dtype):
            x = rng.standard_normal(shape)
            x = x + 1j * rng.standard_normal(shape) if dtype is complex else x
            return jnp.asarray(0.01 * x)

        hidden = SPINS * ALPHA
        params = {
            "Dense": {"kernel": normal(SPINS, hidden), "bias": normal(hidden)},
            "visible_bias": normal(SPINS),
        }
        spins = rng.choice([-1.0, 1.0], (m, SPINS))
        e = local_energies(params, spins)
        args, error = problem(log_psi, params, spins, e, shift=SHIFT, centre=True)
        make = gram_of(log_psi, SHIFT, centre=True)
        ours, theirs = "lx.CG", "NetKet QGTOnTheFly"
        netket = on_the_fly(dtype, as_called=False)
        chunked = gram_of(log_psi, SHIFT, centre=True, chunk_size=m // 8)
        yield Case(
            panel=f"stochastic reconfiguration, {m} samples, {n} parameters",
            x=name,
            sides={
                theirs: netket,
                "the same, as called": on_the_fly(dtype, as_called=True),
                ours: conjugate_gradients(make, steps=100),
                "lx.CG, Jacobi": conjugate_gradients(
                    make, steps=100, preconditioned=True
                ),
                "lx.CG, 8 chunks": conjugate_gradients(chunked, steps=100),
                "m×m, lxe.DampedQR": by_samples(make),
            },
            args=args,
            error=error,
            tolerance=1e-6,
            steps=lambda found: found[1],
            goals=() if netket.fn is None else (Goal(ours, theirs, 1.0),),
        )

    # Few samples
    m, width, inputs = (16, 20, 10) if quick else (64, 1000, 199)
    randn = lambda *shape: rng.standard_normal(shape)
    params = (randn(width, inputs) / inputs**0.5, randn(width), randn(width) / 10)
    params = jtu.tree_map(jnp.asarray, params)
    samples, e = np.tanh(randn(m, 2) @ randn(2, inputs)), randn(m)
    n = ravel_pytree(params)[0].size
    for shift in (1e-2, 1e-6):
        args, error = problem(network, params, samples, e, shift=shift, centre=True)
        make = gram_of(network, shift, centre=True)
        yield Case(
            panel=f"few samples, {m}, many parameters, {n}",
            x=f"shift {shift:.0e}",
            sides={
                "lx.CG": conjugate_gradients(make, steps=2000),
                "lx.CG, Jacobi": Side(
                    conjugate_gradients(make, steps=500, preconditioned=True),
                    may_fail=True,
                    note="500 steps at most",
                ),
                "m×m, lxe.DampedQR": by_samples(make),
            },
            args=args,
            error=error,
            tolerance=1e-5,
            steps=lambda found: found[1],
        )

    # Bad scales
    m, n = (60, 10) if quick else (3000, 300)
    units = 10 ** rng.uniform(-2, 2, n)
    samples, e = randn(m, n) * units, randn(m, 2)
    params = jnp.asarray(randn(n) / units / n**0.5)
    args, error = problem(logistic, params, samples, e, shift=1e-6, centre=False)
    make = gram_of(logistic, 1e-6, centre=False)
    yield Case(
        panel=f"logistic model, {m} samples, {n} inputs",
        x="inputs in their own units",
        sides={
            "lx.CG": Side(
                conjugate_gradients(make, steps=20 * n),
                may_fail=True,
                note="20 n steps",
            ),
            "lx.CG, Jacobi": conjugate_gradients(
                make, steps=20 * n, preconditioned=True
            ),
        },
        args=args,
        error=error,
        tolerance=1e-6,
        steps=lambda found: found[1],
    )
