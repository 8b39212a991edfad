"""A Gaussian process of the monthly CO₂ record of Mauna Loa, 1958–2001.

The kernel is that of Rasmussen and Williams (*Gaussian Processes for Machine Learning*,
§5.4.3, 2006): a smooth trend, a season that slowly changes, irregularities of some
years, and noise. Eleven hyperparameters are fitted to the record, which statsmodels
ships, by optimistix's BFGS on the log-likelihood

    log p(y) = −½ (yᵀ K⁻¹ y + log det K + n log 2π),

which is `lineax_ext.inv_quad_logdet`. Prints the likelihood next to scikit-learn's, and
the time of value and gradient next to that of differentiating through
`jnp.linalg.cholesky`; draws ten years of prediction with error bands into
`gaussian_process.png`; and exits with an error if the likelihoods disagree.

Run it as `python examples/gaussian_process.py`.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import matplotlib


matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import optimistix as optx  # noqa: E402
import statsmodels.api as sm  # noqa: E402
from jaxtyping import Array, Float, Scalar  # noqa: E402
from sklearn.gaussian_process import (  # noqa: E402
    GaussianProcessRegressor,
    kernels as sk,
)

import lineax_ext as lxe  # noqa: E402


jax.config.update("jax_enable_x64", True)

# Sizes in ppm, lengths in years.
START = {
    "trend size": 50.0,
    "trend length": 50.0,
    "season size": 2.5,
    "season decay": 90.0,
    "season smoothness": 1.5,
    "irregular size": 0.5,
    "irregular length": 1.0,
    "irregular mixture": 1.0,
    "noise size": 0.2,
    "noise length": 0.1,
    "white noise": 0.2,
}


def record() -> tuple[np.ndarray, np.ndarray]:
    """Years, and ppm: means of the weeks of each month."""
    data: Any = sm.datasets.co2.load_pandas().data
    monthly = data["co2"].resample("MS").mean().dropna()
    years = monthly.index.year + (monthly.index.month - 0.5) / 12
    return np.asarray(years, float), np.asarray(monthly, float)


def kernel(log: dict[str, Scalar], s: Float[Array, " m"], t: Float[Array, " n"]):
    """The covariance of the function without white noise, of shape (m, n)."""
    p = jax.tree.map(jnp.exp, log)
    apart = s[:, None] - t[None, :]
    square = apart**2
    gauss = lambda length: jnp.exp(-square / (2 * length**2))
    periodic = -2 * jnp.sin(jnp.pi * apart) ** 2 / p["season smoothness"] ** 2
    mixture, length = p["irregular mixture"], p["irregular length"]
    rational = jnp.exp(-mixture * jnp.log1p(square / (2 * mixture * length**2)))
    return (
        p["trend size"] ** 2 * gauss(p["trend length"])
        + p["season size"] ** 2 * gauss(p["season decay"]) * jnp.exp(periodic)
        + p["irregular size"] ** 2 * rational
        + p["noise size"] ** 2 * gauss(p["noise length"])
    )


def covariance(log, t):
    noise = jnp.exp(2 * log["white noise"])
    return kernel(log, t, t) + noise * jnp.eye(t.size)


def loss(log, data) -> Scalar:
    """−log p(y), by one Cholesky factorisation."""
    t, y = data
    operator = lx.MatrixLinearOperator(covariance(log, t), lx.positive_semidefinite_tag)
    quad, logdet = lxe.inv_quad_logdet(operator, y, throw=False)
    return (quad + logdet + t.size * jnp.log(2 * jnp.pi)) / 2


def naive_loss(log, data) -> Scalar:
    """The same, to be differentiated through the factorisation."""
    t, y = data
    factor = jnp.linalg.cholesky(covariance(log, t))
    z = jax.scipy.linalg.solve_triangular(factor, y, lower=True)
    logdet = 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))
    return (z @ z + logdet + t.size * jnp.log(2 * jnp.pi)) / 2


def scikit_learn(log, data) -> float:
    """log p(y) of the same kernel."""
    p = {name: float(jnp.exp(value)) for name, value in log.items()}
    kernel: Any = (
        p["trend size"] ** 2 * sk.RBF(p["trend length"])
        + p["season size"] ** 2
        * sk.RBF(p["season decay"])
        * sk.ExpSineSquared(p["season smoothness"], 1.0)
        + p["irregular size"] ** 2
        * sk.RationalQuadratic(p["irregular length"], p["irregular mixture"])
        + p["noise size"] ** 2 * sk.RBF(p["noise length"])
        + sk.WhiteKernel(p["white noise"] ** 2)
    )
    t, y = data
    model = GaussianProcessRegressor(kernel, alpha=0).set_params(optimizer=None)
    fitted: Any = model.fit(t[:, None], y)
    return float(fitted.log_marginal_likelihood(fitted.kernel_.theta))


def predict(log, data, new):
    """Mean and standard deviation of the function at new times."""
    t, y = data
    operator = lx.MatrixLinearOperator(covariance(log, t), lx.positive_semidefinite_tag)
    cross = kernel(log, new, t)
    solve = lambda b: lx.linear_solve(operator, b, lx.Cholesky()).value
    mean = cross @ solve(y)
    explained = jnp.sum(cross * jax.vmap(solve)(cross), axis=1)
    prior = jax.vmap(lambda s: kernel(log, s[None], s[None])[0, 0])(new)
    return mean, jnp.sqrt(prior - explained)


def least_time(fn, *args, repeats: int = 7) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(fn(*args))
        times.append(time.perf_counter() - start)
    return min(times)


def draw(t, co2, new, mean, deviation, path: str) -> None:
    plt.rcParams.update({"font.size": 14})
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(9, 7), height_ratios=(3, 2), layout="constrained"
    )
    for axes in (top, bottom):
        axes.plot(t, co2, ".", markersize=3, color="0.5", label="monthly mean")
        axes.plot(new, mean, linewidth=0.8, color="C0", label="mean of the process")
        axes.fill_between(
            new,
            mean - 2 * deviation,
            mean + 2 * deviation,
            color="C0",
            alpha=0.25,
            linewidth=0,
            label="± 2 standard deviations",
        )
        axes.set(ylabel="CO₂ in ppm")
    top.legend(frameon=False, markerscale=3)
    top.set(title="CO₂ at Mauna Loa, and ten years of prediction")
    last = new > t[-1] - 2
    bottom.set(
        xlim=(t[-1] - 2, new[-1]),
        ylim=(
            np.min((mean - 3 * deviation)[last]),
            np.max((mean + 3 * deviation)[last]),
        ),
        xlabel="year",
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def progress(loss_this_step, step_size, **others) -> None:
    """What BFGS tells of each step that it tries: `(what it is, value)`."""
    del others
    template = "  −log p = {:.4f}, step size {:.3g}"
    jax.debug.print(template, loss_this_step[1], step_size[1])


def main() -> None:
    years, co2 = record()
    data = jnp.asarray(years - years.mean()), jnp.asarray(co2 - co2.mean())
    log = {name: jnp.log(value) for name, value in START.items()}
    print(f"{years.size} months, {len(log)} hyperparameters; compiling …", flush=True)

    start = time.perf_counter()
    solver = optx.BFGS(rtol=1e-5, atol=1e-5, verbose=progress)
    solution = optx.minimise(loss, solver, log, data, max_steps=300, throw=False)
    log = jax.block_until_ready(solution.value)
    steps, seconds = int(solution.stats["num_steps"]), time.perf_counter() - start
    for name, value in log.items():
        print(f"  {name:<18} {START[name]:8.3f} → {float(jnp.exp(value)):8.3f}")

    ours, theirs = -float(loss(log, data)), scikit_learn(log, data)
    print(f"\nlog-likelihood after {steps} steps, {seconds:.1f} s with compiling:")
    print(f"  lineax_ext     {ours:.8f}\n  scikit-learn   {theirs:.8f}")

    fns = {"lxe.inv_quad_logdet": loss, "jnp.linalg.cholesky": naive_loss}
    compiled = {name: jax.jit(jax.value_and_grad(fn)) for name, fn in fns.items()}
    gradients = {name: fn(log, data)[1] for name, fn in compiled.items()}
    print("\nvalue and gradient:")
    for name, fn in compiled.items():
        print(f"  {name:<20} {least_time(fn, log, data) * 1e3:7.2f} ms")

    new = jnp.asarray(np.arange(years[0], years[-1] + 10, 1 / 24) - years.mean())
    mean, deviation = jax.jit(predict)(log, data, new)
    mean, deviation = np.asarray(mean) + co2.mean(), np.asarray(deviation)
    path = "gaussian_process.png"
    draw(years, co2, np.asarray(new) + years.mean(), mean, deviation, path)
    print(f"\nDrawn into {path}")

    first, second = (jnp.stack(list(g.values())) for g in gradients.values())
    if not abs(ours - theirs) < 1e-6 * abs(theirs):
        raise SystemExit("The likelihoods disagree.")
    if not np.allclose(first, second, rtol=1e-4, atol=1e-4):
        raise SystemExit("The gradients disagree.")


if __name__ == "__main__":
    main()
