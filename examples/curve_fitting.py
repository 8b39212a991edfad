"""Fits a growing, breathing atmosphere: the weekly CO₂ record of Mauna Loa, 1958–2001.

The record, which statsmodels ships, is fitted by least squares with

    c(t) = c₀ + c₁ e^{t/τ} + (1 + g t) Σₖ aₖ cos 2πk t + bₖ sin 2πk t,    k = 1, …, 4,

t in years: twelve parameters, of which τ and g enter nonlinearly, and whose sizes go
over five orders of magnitude. `lineax_ext.LevenbergMarquardt` with `scale="jacobian"`,
optimistix's own and SciPy's `least_squares(method="lm", x_scale="jac")` start from the
same guess. Prints steps and times, draws data, fit and residuals into
`curve_fitting.png`, and exits with an error if the fits disagree.

Run it as `python examples/curve_fitting.py`.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib


matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import optimistix as optx  # noqa: E402
import scipy.optimize  # noqa: E402
import statsmodels.api as sm  # noqa: E402
from jaxtyping import Array, Float  # noqa: E402

import lineax_ext as lxe  # noqa: E402


jax.config.update("jax_enable_x64", True)

HARMONICS = 4


def record() -> tuple[np.ndarray, np.ndarray]:
    """Years since the first measurement, and ppm."""
    data: Any = sm.datasets.co2.load_pandas().data
    weekly = data["co2"].dropna()
    days = (weekly.index - weekly.index[0]).days
    return np.asarray(days, float) / 365.25, np.asarray(weekly, float)


def trend(y: Float[Array, " n"], t: Float[Array, " m"]) -> Float[Array, " m"]:
    return y[0] + y[1] * jnp.exp(t / y[2])


def model(y: Float[Array, " n"], t: Float[Array, " m"]) -> Float[Array, " m"]:
    angle = 2 * jnp.pi * jnp.arange(1, HARMONICS + 1)[:, None] * t[None, :]
    cosines, sines = y[4:].reshape(2, HARMONICS)
    season = cosines @ jnp.cos(angle) + sines @ jnp.sin(angle)
    return trend(y, t) + (1 + y[3] * t) * season


def residuals(y: Float[Array, " n"], data) -> Float[Array, " m"]:
    t, co2 = data
    return model(y, t) - co2


def least_time(run, repeats: int = 5):
    """What `run` returns, and the least time of a few calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        out = run()
        times.append(time.perf_counter() - start)
    return out, min(times)  # pyright: ignore


def fit(solver, y0, data):
    """The solution, its sum of squares, steps, and the time of a compiled call."""

    def solve(y0, data):
        sol = optx.least_squares(
            residuals, solver, y0, data, max_steps=5000, throw=False
        )
        return sol.value, sol.stats["num_steps"]

    compiled = jax.jit(solve).lower(y0, data).compile()
    (y, steps), seconds = least_time(lambda: jax.block_until_ready(compiled(y0, data)))
    return np.asarray(y), int(steps), seconds


def fit_scipy(y0, data):
    residual = jax.jit(residuals)
    jacobian = jax.jit(jax.jacfwd(residuals))
    run = lambda: scipy.optimize.least_squares(
        lambda y: np.asarray(residual(y, data)),
        np.asarray(y0),
        lambda y: np.asarray(jacobian(y, data)),  # pyright: ignore
        method="lm",
        x_scale="jac",
        xtol=1e-10,
        ftol=1e-10,
        gtol=1e-10,
    )
    out, seconds = least_time(run)
    return out.x, out.nfev, seconds


def draw(t, co2, y, path: str) -> None:
    fitted = np.asarray(model(y, t))
    plt.rcParams.update({"font.size": 14})
    figure, (top, middle, bottom) = plt.subplots(
        3, 1, figsize=(9, 9), height_ratios=(3, 2, 1), layout="constrained"
    )
    years = 1958.24 + t
    top.plot(years, co2, ".", markersize=2, color="0.6", label="weekly mean")
    top.plot(years, fitted, linewidth=0.7, color="C0", label="fit")
    top.plot(years, trend(y, t), linewidth=1.2, color="C1", label="trend")
    top.set(ylabel="CO₂ in ppm", title="CO₂ at Mauna Loa, fitted with 12 parameters")
    top.legend(frameon=False, markerscale=4)
    last = years > years[-1] - 5
    middle.plot(years[last], co2[last], ".", markersize=4, color="0.6")
    middle.plot(years[last], fitted[last], color="C0")
    middle.set(ylabel="CO₂ in ppm,\nthe last five years")
    bottom.plot(years, co2 - fitted, ".", markersize=2, color="C3")
    bottom.axhline(0, linewidth=0.5, color="black")
    bottom.set(xlabel="year", ylabel="data − fit\nin ppm")
    figure.align_ylabels()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    t, co2 = record()
    data = jnp.asarray(t), jnp.asarray(co2)
    # From the level before industry, e-fold in fifty years; a season of one ppm.
    y0 = jnp.zeros(4 + 2 * HARMONICS)
    y0 = y0.at[:5].set(jnp.array([280.0, co2[0] - 280.0, 50.0, 0.0, 1.0]))
    print(f"{t.size} weeks, {y0.size} parameters\n")

    solvers = {
        "lineax_ext": lxe.LevenbergMarquardt(1e-10, 1e-10, scale="jacobian"),
        "optimistix": optx.LevenbergMarquardt(1e-10, 1e-10),
    }
    fits = {name: fit(solver, y0, data) for name, solver in solvers.items()}
    fits["SciPy lm"] = fit_scipy(y0, data)
    squares = {
        name: float(np.sum(np.asarray(residuals(jnp.asarray(y), data)) ** 2))
        for name, (y, _, _) in fits.items()
    }
    for name, (_, steps, seconds) in fits.items():
        print(
            f"  {name:<11} {steps:4d} steps   {seconds * 1e3:8.2f} ms   sum of squares "
            f"{squares[name]:.8f}"
        )

    y = fits["lineax_ext"][0]
    spread = np.sqrt(squares["lineax_ext"] / (t.size - y.size))
    print(
        f"\nThe trend doubles its distance from {y[0]:.1f} ppm every "
        f"{y[2] * np.log(2):.1f} years; the season grows by {100 * y[3]:.2f} % of 1958 "
        f"a year.\nWhat is left has a standard deviation of {spread:.2f} ppm."
    )
    draw(t, co2, y, "curve_fitting.png")
    print("Drawn into curve_fitting.png")

    least = min(squares.values())
    for name in ("lineax_ext", "SciPy lm"):
        if squares[name] > least * (1 + 1e-9):
            raise SystemExit(f"{name} stopped short of the least sum of squares")
    if not np.allclose(y, fits["SciPy lm"][0], rtol=1e-5):
        raise SystemExit("the parameters differ from SciPy's")


if __name__ == "__main__":
    main()
