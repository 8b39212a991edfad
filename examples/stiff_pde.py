"""Turing patterns: two species on a line, stiff, with the structure found by itself.

The Gierer–Meinhardt system of an activator a and an inhibitor h,

    ∂a/∂t = D ∂²a/∂x² + a²/h − a,    ∂h/∂t = ∂²h/∂x² + μ (a² − h),

on an interval of length L between walls, in dimensionless time and length. Cut into n
cells it is an ordinary differential equation with 2n unknowns, a dictionary of two
arrays, whose Jacobian is a band only once a and h are interleaved. diffrax solves it
twice with the same method: as it is, with a dense matrix, and through
`lineax_ext.structured`, of which nothing else needs to be said.

Prints steps and times, draws the activator over space and time into `stiff_pde.png`,
and exits with an error if the two do not take the same steps to the same result.

Run it as `python examples/stiff_pde.py`.
"""

import sys
import time

import diffrax as dfx
import jax
import jax.numpy as jnp
import matplotlib


matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from jaxtyping import Array, Float  # noqa: E402

import lineax_ext as lxe  # noqa: E402


jax.config.update("jax_enable_x64", True)

CELLS, LENGTH = 200, 20.0  # a cell is a tenth of a diffusion length of the inhibitor
DIFFUSION, RATE = 0.02, 1.2  # D and μ
END = 60.0


def laplacian(x: Float[Array, " n"]) -> Float[Array, " n"]:
    """∂²x/∂x² with no flux through the ends."""
    spacing = LENGTH / CELLS
    return jnp.diff(jnp.pad(jnp.diff(x), 1)) / spacing**2


def gierer_meinhardt(t, y, args):
    del t, args
    a, h = y["activator"], y["inhibitor"]
    return {
        "activator": DIFFUSION * laplacian(a) + a**2 / h - a,
        "inhibitor": laplacian(h) + RATE * (a**2 - h),
    }


def start() -> dict[str, Float[Array, " n"]]:
    """The homogeneous state, a little disturbed."""
    noise = np.random.default_rng(0).uniform(-0.01, 0.01, CELLS)
    return {"activator": jnp.asarray(1 + noise), "inhibitor": jnp.ones(CELLS)}


def solve(solver: dfx.AbstractSolver):
    """The solution at 300 times, and how long compiling it and the run took."""

    @jax.jit
    def run(y0):
        return dfx.diffeqsolve(
            dfx.ODETerm(gierer_meinhardt),
            solver,
            0.0,
            END,
            1e-3,
            y0,
            saveat=dfx.SaveAt(ts=jnp.linspace(0, END, 300)),
            stepsize_controller=dfx.PIDController(rtol=1e-5, atol=1e-7),
            progress_meter=dfx.TextProgressMeter(),
        )

    begin = time.perf_counter()
    compiled = run.lower(start()).compile()
    compiling = time.perf_counter() - begin
    begin = time.perf_counter()
    solution = jax.block_until_ready(compiled(start()))
    return solution, compiling, time.perf_counter() - begin


def draw(ts: np.ndarray, activator: np.ndarray, path: str) -> None:
    plt.rcParams.update({"font.size": 14})
    figure, axis = plt.subplots(figsize=(9, 5.6), layout="constrained")
    image = axis.imshow(
        activator,
        origin="lower",
        aspect="auto",
        extent=(0, LENGTH, ts[0], ts[-1]),
        cmap="magma",
    )
    axis.set(xlabel="x", ylabel="t", title="Activator a of a Gierer–Meinhardt system")
    figure.colorbar(image, label="a(x, t), dimensionless")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> int:
    solvers = {
        "Kvaerno5()": dfx.Kvaerno5(),
        "structured(Kvaerno5())": lxe.structured(dfx.Kvaerno5()),
    }
    found = {}
    for name, solver in solvers.items():
        print(f"{name}, {2 * CELLS} unknowns", flush=True)
        found[name] = solve(solver)

    print(f"\n{'':28}{'steps':>7}{'compiling':>13}{'run':>11}")
    for name, (solution, compiling, running) in found.items():
        steps = int(solution.stats["num_steps"])
        print(f"{name:28}{steps:7}{compiling:11.2f} s{running:9.3f} s")
    (dense, _, slow), (auto, _, fast) = found.values()
    print(f"\n{slow / fast:.1f} times as fast")

    same_steps = dense.stats["num_steps"] == auto.stats["num_steps"]
    difference = np.max(np.abs(dense.ys["activator"] - auto.ys["activator"]))
    print(f"largest difference of the activators: {difference:.1e}")
    draw(np.asarray(auto.ts), np.asarray(auto.ys["activator"]), "stiff_pde.png")
    print("drawn: stiff_pde.png")
    if not same_steps or difference > 1e-8:
        print("The two disagree.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
