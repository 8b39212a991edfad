"""Two parameters of a partial differential equation, from noisy pictures of it.

Bacteria v eat a nutrient u and spread over a square dish, both in g/L, length in mm and
time in h, with no flux across the rim:

    ∂u/∂t = D Δu − k u v,    ∂v/∂t = D/4 Δv + k u v.

Four snapshots of both fields, with noise of 0.03 g/L, are all that is known. The
diffusivity D and the rate k are found by BFGS. Its gradients go backward through an
implicit solver, which has a linear system to solve for every stage: once forward, once
for the derivative. `lineax_ext.structured` solves both with the sparsity of the
Jacobian.

Prints every step of the fit, what is found, and the time of a gradient next to the
dense one. Draws both fields into `parameter_estimation.png`. Exits with an error if the
parameters are not recovered, or if the two gradients do not agree.

Run it as `python examples/parameter_estimation.py`.
"""

import sys
import time

import diffrax as dfx
import jax
import jax.flatten_util
import jax.numpy as jnp
import matplotlib


matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import scipy.optimize  # noqa: E402
from jaxtyping import Array, Float  # noqa: E402

import lineax_ext as lxe  # noqa: E402


jax.config.update("jax_enable_x64", True)

WIDTH = 10.0  # mm
CELLS = 12
TIMES = np.array([1.0, 2.0, 4.0, 6.0])  # h
NOISE = 0.03  # g/L
TRUTH = {"D": 0.6, "k": 1.5}  # mm²/h, L/(g h)
GUESS = {"D": 0.2, "k": 0.7}
SPOTS = ((2.5, 3.0), (7.0, 6.5), (3.0, 8.0))  # mm, where the bacteria start

Fields = Float[Array, "2 x y"]


def laplacian(u: Float[Array, "x y"]) -> Float[Array, "x y"]:
    padded = jnp.pad(u, 1, mode="edge")
    sides = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    return (sides - 4 * u) * (len(u) / WIDTH) ** 2


def reaction_diffusion(t, y, parameters):
    del t
    u, v = y
    growth = parameters["k"] * u * v
    diffusion = parameters["D"]
    return jnp.stack(
        [diffusion * laplacian(u) - growth, diffusion / 4 * laplacian(v) + growth]
    )


def start(cells: int) -> Fields:
    x = (jnp.arange(cells) + 0.5) * WIDTH / cells
    squares = [(x[:, None] - a) ** 2 + (x[None] - b) ** 2 for a, b in SPOTS]
    v = sum(jnp.exp(-square / 0.5) for square in squares)
    return jnp.stack([jnp.ones_like(v), 0.5 * v])


def snapshots(solver: dfx.AbstractSolver, y0: Fields, parameters):
    solution = dfx.diffeqsolve(
        dfx.ODETerm(reaction_diffusion),
        solver,
        0.0,
        float(TIMES[-1]),
        None,
        y0,
        parameters,
        saveat=dfx.SaveAt(ts=jnp.asarray(TIMES)),
        stepsize_controller=dfx.PIDController(rtol=1e-4, atol=1e-6),
        max_steps=256,
    )
    return solution.ys


def loss_of(solver: dfx.AbstractSolver):
    def loss(log_parameters, args):
        y0, measured = args
        parameters = jax.tree_util.tree_map(jnp.exp, log_parameters)
        fields = snapshots(solver, y0, parameters)
        # Not in units of the noise: the first step of BFGS is the gradient itself.
        return jnp.mean((fields - measured) ** 2), fields

    return loss


PLAIN, STRUCTURED = dfx.Kvaerno3(), lxe.structured(dfx.Kvaerno3())
LOG_GUESS, LOG_TRUTH = (
    jax.tree_util.tree_map(lambda x: jnp.log(jnp.asarray(x)), parameters)
    for parameters in (GUESS, TRUTH)
)


def compiled(solver: dfx.AbstractSolver, args):
    """The loss, the fields and the gradient; and how long compiling took."""
    begin = time.perf_counter()
    fn = jax.jit(jax.value_and_grad(loss_of(solver), has_aux=True))
    fn = fn.lower(LOG_GUESS, args).compile()
    return fn, time.perf_counter() - begin


def gradient(fn, args):
    """At the guess, and the time of a call. It was compiled before."""
    begin = time.perf_counter()
    _, out = jax.block_until_ready(fn(LOG_GUESS, args))
    return np.array([out["D"], out["k"]]), time.perf_counter() - begin


def fit(fn, args):
    """BFGS, which prints where it is."""
    guess, unravel = jax.flatten_util.ravel_pytree(LOG_GUESS)

    def loss(x):
        (value, _), slope = fn(unravel(jnp.asarray(x)), args)
        return float(value), np.asarray(jax.flatten_util.ravel_pytree(slope)[0])

    def show(intermediate_result):
        found = jax.tree_util.tree_map(jnp.exp, unravel(intermediate_result.x))
        values = ", ".join(f"{k} = {x:.4f}" for k, x in found.items())
        print(f"  loss {intermediate_result.fun:.6f}, {values}", flush=True)

    found = scipy.optimize.minimize(
        loss, guess, jac=True, method="BFGS", callback=show, options={"gtol": 1e-5}
    )
    return unravel(jnp.asarray(found.x)), found


def draw(seen: np.ndarray, fitted: np.ndarray, title: str, path: str) -> None:
    columns = [0, 2, 3]
    plt.rcParams.update({"font.size": 13})
    figure, axes = plt.subplots(
        4, 3, figsize=(8, 9.4), sharex=True, sharey=True, layout="constrained"
    )
    names = ("nutrient u", "bacteria v")
    for k, (name, colours) in enumerate(zip(names, ("viridis", "magma"))):
        top = float(fitted[:, k].max())
        for row, (fields, what) in enumerate(((seen, "measured"), (fitted, "fitted"))):
            for axis, j in zip(axes[2 * k + row], columns):
                axis.imshow(
                    fields[j, k].T,
                    origin="lower",
                    extent=(0, WIDTH, 0, WIDTH),
                    vmin=0,
                    vmax=top,
                    cmap=colours,
                )
            axes[2 * k + row, 0].set_ylabel(f"{name},\n{what}\ny in mm")
        image = axes[2 * k, 0].images[0]
        bar = figure.colorbar(image, ax=axes[2 * k : 2 * k + 2], shrink=0.9)
        bar.set_label(f"{name} in g/L")
    for axis, j in zip(axes[0], columns):
        axis.set_title(f"t = {TIMES[j]:.0f} h", fontsize=14)
    for axis in axes[-1]:
        axis.set_xlabel("x in mm")
    figure.suptitle(title, fontsize=14)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> int:
    y0 = start(CELLS)
    nothing = jnp.zeros((len(TIMES), *y0.shape))
    print(f"{y0.size} unknowns, {len(TIMES)} snapshots; compiling …", flush=True)
    structured, compiling = compiled(STRUCTURED, (y0, nothing))
    (_, exact), _ = structured(LOG_TRUTH, (y0, nothing))
    args = y0, exact + NOISE * jax.random.normal(jax.random.key(0), exact.shape)
    begin = time.perf_counter()
    parameters, fitting = fit(structured, args)
    (_, fitted), _ = structured(parameters, args)
    found = {k: float(jnp.exp(x)) for k, x in parameters.items()}
    seconds = time.perf_counter() - begin
    print(f"BFGS: {fitting.nit} steps, {fitting.nfev} gradients, {seconds:.1f} s")
    units = {"D": "mm²/h", "k": "L/(g h)"}
    for k, true in TRUTH.items():
        print(f"  {k} = {found[k]:.4f} {units[k]}; guess {GUESS[k]}, truth {true}")

    title = (
        f"found: D = {found['D']:.3f} mm²/h, k = {found['k']:.3f} L/(g h)\n"
        f"truth: D = {TRUTH['D']} mm²/h, k = {TRUTH['k']} L/(g h)"
    )
    draw(np.asarray(args[1]), np.asarray(fitted), title, "parameter_estimation.png")
    print("drawn: parameter_estimation.png", flush=True)

    print(f"\n{'':30}{'compiling':>11}{'a gradient':>13}")
    gradients = []
    for name in ("structured(Kvaerno3())", "Kvaerno3()"):
        if name == "Kvaerno3()":
            fn, compiling = compiled(PLAIN, args)
        else:
            fn = structured
        out, calling = gradient(fn, args)
        print(f"{name:30}{compiling:9.1f} s{1e3 * calling:10.0f} ms", flush=True)
        gradients.append(out)
    difference = np.max(np.abs(gradients[0] / gradients[1] - 1))
    print(f"largest difference of the two, relative: {difference:.1e}")

    if any(abs(found[k] / true - 1) > 0.02 for k, true in TRUTH.items()):
        print("The parameters were not recovered.")
        return 1
    if difference > 1e-8:
        print("The two gradients disagree.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
