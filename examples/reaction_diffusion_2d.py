"""The Brusselator in the plane: stiff, 2048 unknowns, and a Jacobian that is sparse.

The benchmark problem of SciML (Hairer, Wanner, *Solving Ordinary Differential Equations
II*, §IV.10), on the unit square with periodic ends, in dimensionless time and length:

    ∂u/∂t = 1 + u²v − 4.4 u + α Δu + f(x, y, t),    ∂v/∂t = 3.4 u − u²v + α Δv,

with α = 10, and a source f = 5 in a disc from t = 1.1 on. Cut into 32 × 32 cells it is
an ordinary differential equation whose Jacobian has no narrow band in any order.
diffrax solves it through `lineax_ext.structured`, which finds the pattern and
factorises it as a sparse matrix; SciPy's `BDF` solves it beside that, with the pattern
that `lineax_ext.infer_pattern` finds.

Prints steps and times, draws u at four times into `reaction_diffusion_2d.png`, and
exits with an error if the two do not agree.

Run it as `python examples/reaction_diffusion_2d.py`.
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
import scipy.integrate as integrate  # noqa: E402
from jaxtyping import Array, Float  # noqa: E402

import lineax_ext as lxe  # noqa: E402


jax.config.update("jax_enable_x64", True)

CELLS, ALPHA, SOURCE = 32, 10.0, 5.0
END, TOLERANCE = 11.5, 1e-5
TIMES = jnp.array([0.0, 0.001, 0.004, END])
X = jnp.linspace(0, 1, CELLS)[:, None]
Y = jnp.linspace(0, 1, CELLS)[None, :]
DISC = (X - 0.3) ** 2 + (Y - 0.6) ** 2 <= 0.1**2


def laplacian(u: Float[Array, "x y"]) -> Float[Array, "x y"]:
    spread = jnp.roll(u, 1, 0) + jnp.roll(u, -1, 0) + jnp.roll(u, 1, 1)
    return (spread + jnp.roll(u, -1, 1) - 4 * u) * (CELLS - 1) ** 2


def brusselator(t, y, args):
    del args
    u, v = y
    source = jnp.where(DISC & (t >= 1.1), SOURCE, 0.0)
    reaction = u**2 * v
    return jnp.stack(
        [
            1 + reaction - 4.4 * u + ALPHA * laplacian(u) + source,
            3.4 * u - reaction + ALPHA * laplacian(v),
        ]
    )


def start() -> Float[Array, "2 x y"]:
    u, v = 22 * (Y * (1 - Y)) ** 1.5, 27 * (X * (1 - X)) ** 1.5
    return jnp.stack(jnp.broadcast_arrays(u, v))


def by_diffrax():
    """The solution at `TIMES`, and how long compiling and the run took."""

    @jax.jit
    def run(y0):
        return dfx.diffeqsolve(
            dfx.ODETerm(brusselator),
            lxe.structured(dfx.Kvaerno5()),
            0.0,
            END,
            1e-4,
            y0,
            saveat=dfx.SaveAt(ts=TIMES),
            stepsize_controller=dfx.PIDController(rtol=TOLERANCE, atol=TOLERANCE),
            progress_meter=dfx.TextProgressMeter(),
        )

    begin = time.perf_counter()
    compiled = run.lower(start()).compile()
    compiling = time.perf_counter() - begin
    begin = time.perf_counter()
    solution = jax.block_until_ready(compiled(start()))
    return solution, compiling, time.perf_counter() - begin


def by_scipy(pattern: lxe.Pattern):
    field = jax.jit(lambda t, y: brusselator(t, y.reshape(2, CELLS, CELLS), None))
    flat = lambda t, y: np.asarray(field(t, y)).reshape(-1)
    y0 = np.asarray(start()).reshape(-1)
    flat(0.0, y0)  # compiles
    begin = time.perf_counter()
    solution = integrate.solve_ivp(
        flat,
        (0, END),
        y0,
        method="BDF",
        t_eval=TIMES,
        rtol=TOLERANCE,
        atol=TOLERANCE,
        jac_sparsity=pattern.to_scipy(),
    )
    return solution, time.perf_counter() - begin


def draw(fields: np.ndarray, path: str) -> None:
    plt.rcParams.update({"font.size": 14})
    figure, axes = plt.subplots(2, 2, figsize=(9, 8), layout="constrained")
    for axis, t, u in zip(axes.flat, TIMES, fields):
        image = axis.imshow(u.T, origin="lower", extent=(0, 1, 0, 1), cmap="viridis")
        axis.set(title=f"t = {t:.4g}", xlabel="x", ylabel="y")
        figure.colorbar(image, ax=axis, shrink=0.9, label="u")
    figure.suptitle("u(x, y, t) of the Brusselator, 32 × 32 cells, dimensionless")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> int:
    field = lambda y, t: brusselator(t, y, None)
    begin = time.perf_counter()
    pattern = lxe.infer_pattern(field, start(), 0.0)
    finding = time.perf_counter() - begin
    n = pattern.shape[0]
    print(f"{n} unknowns, {len(pattern)} entries, found in {finding:.2f} s", flush=True)

    solution, compiling, running = by_diffrax()
    referee, scipy_time = by_scipy(pattern)
    print(f"\n{'':32}{'steps':>7}{'compiling':>13}{'run':>10}")
    steps = int(solution.stats["num_steps"])
    print(f"{'structured(Kvaerno5())':32}{steps:7}{compiling:11.1f} s{running:8.2f} s")
    print(f"{'SciPy, BDF, with the pattern':32}{'':20}{scipy_time:8.2f} s")

    fields = np.asarray(solution.ys)[:, 0]
    expected = referee.y.T.reshape(-1, 2, CELLS, CELLS)[:, 0]
    difference = np.max(np.abs(fields - expected)) / np.max(np.abs(expected))
    print(f"\nlargest difference of u, relative: {difference:.1e}")
    draw(fields, "reaction_diffusion_2d.png")
    print("drawn: reaction_diffusion_2d.png")
    if difference > 1e-2:
        print("The two disagree.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
