"""A Gaussian Markov random field on a map of heights, with its range and noise fitted.

The map is a part of the Jacksboro fault in Tennessee, which matplotlib ships. A tenth
of its points are given, with noise; the others are to be told. The model is a Matérn
field, by the stochastic partial differential equation (Lindgren, Rue, Lindström, *An
explicit link between Gaussian fields and Gaussian Markov random fields*, J. R. Stat.
Soc. B 73 (2011), doi:10.1111/j.1467-9868.2011.00777.x)

    (κ² − Δ) x = white noise,    so that its precision is Q = τ (κ² − Δ)ᵀ (κ² − Δ),

a sparse matrix of 13 entries a row. With observations y = P x + noise of size σ, and
the precision A = Q + Pᵀ P / σ² of x given y,

    log p(y) = ½ (log det Q − log det A + yᵀ P A⁻¹ Pᵀ y / σ⁴ − yᵀ y / σ²) − m log σ + …

κ, τ and σ are found by BFGS on that. Both determinants and their gradients come from
sparse Cholesky factorisations, and so do the standard deviations: (A⁻¹)ᵢᵢ is the
derivative of log det A with respect to Aᵢᵢ.

Prints what is found, and the likelihood and its gradient next to the dense ones on a
small map; draws heights, mean and standard deviation into `markov_field.png`; and exits
with an error if the likelihoods disagree.

Run it as `python examples/markov_field.py`.
"""

import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import matplotlib


matplotlib.use("Agg")

import matplotlib.cbook as cbook  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import optimistix as optx  # noqa: E402
import scipy.sparse as sp  # noqa: E402
from jaxtyping import Array, Float, Scalar  # noqa: E402

import lineax_ext as lxe  # noqa: E402


jax.config.update("jax_enable_x64", True)

NOISE = 0.05  # of what is given, in standard deviations of the map
SPACING = 0.43  # km between points of the grid, about


class Problem(NamedTuple):
    """A grid, and heights at some of its points."""

    pattern: lxe.Pattern
    # The entries of 1, −Δ and Δ² in the order of the pattern.
    identity: Float[Array, " entries"]
    stiffness: Float[Array, " entries"]
    squared: Float[Array, " entries"]
    observed: Float[Array, " n"]  # 1 or 0
    heights: Float[Array, " n"]  # 0 where nothing is observed


def heights(step: int) -> np.ndarray:
    """Every `step`-th point of the map, with mean zero and variance one."""
    data: Any = cbook.get_sample_data("jacksboro_fault_dem.npz")
    map_ = np.asarray(data["elevation"], np.float64)[::step, ::step]
    return (map_ - map_.mean()) / map_.std()


def problem(map_: np.ndarray, share: float) -> Problem:
    rng = np.random.default_rng(0)
    difference = lambda k: np.diff(sp.eye_array(k).toarray(), axis=0)
    line = lambda k: sp.csr_array(difference(k).T @ difference(k))
    rows, columns = map_.shape
    laplacian = sp.kronsum(line(columns), line(rows), format="csr")
    squared = sp.csr_array(laplacian @ laplacian)
    pattern = lxe.Pattern.from_scipy(squared)
    entries = lambda a: jnp.asarray(sp.csr_array(a)[pattern.rows, pattern.cols])
    observed = rng.random(map_.size) < share
    noisy = map_.reshape(-1) + NOISE * rng.standard_normal(map_.size)
    return Problem(
        pattern,
        entries(sp.eye_array(map_.size)),
        entries(laplacian),
        entries(squared),
        jnp.asarray(observed.astype(np.float64)),
        jnp.asarray(np.where(observed, noisy, 0)),
    )


def precisions(parameters: Float[Array, "3"], given: Problem):
    """The values of Q and of A, and σ."""
    kappa2, tau, sigma = jnp.exp(parameters) ** jnp.array([2.0, 1.0, 1.0])
    prior = kappa2**2 * given.identity + 2 * kappa2 * given.stiffness + given.squared
    prior = tau * prior
    diagonal = given.observed[given.pattern.rows] * given.identity
    return prior, prior + diagonal / sigma**2, sigma


def matrix(values: Array, given: Problem) -> lxe.SparseMatrixLinearOperator:
    tag = lx.positive_semidefinite_tag
    return lxe.SparseMatrixLinearOperator(values, given.pattern, tag)


def log_likelihood(parameters: Float[Array, "3"], given: Problem) -> Scalar:
    prior, posterior, sigma = precisions(parameters, given)
    y, m = given.heights, jnp.sum(given.observed)
    quad, log_posterior = lxe.inv_quad_logdet(
        matrix(posterior, given), y / sigma**2, throw=False
    )
    log_prior = lxe.logdet(matrix(prior, given), throw=False)
    quad = quad - jnp.vdot(y, y) / sigma**2
    out = (log_prior - log_posterior + quad) / 2 - m * jnp.log(sigma)
    return out - m * jnp.log(2 * jnp.pi) / 2


def dense_log_likelihood(parameters: Float[Array, "3"], given: Problem) -> Scalar:
    """The density of N(0, P Q⁻¹ Pᵀ + σ²), of the observed points."""
    prior, _, sigma = precisions(parameters, given)
    (at,) = np.nonzero(given.observed)
    covariance = jnp.linalg.inv(matrix(prior, given).as_matrix())[at][:, at]
    covariance = covariance + sigma**2 * jnp.eye(at.size)
    y = given.heights[at]
    _, log = jnp.linalg.slogdet(covariance)
    quad = jnp.vdot(y, jnp.linalg.solve(covariance, y))
    return -(quad + log + at.size * jnp.log(2 * jnp.pi)) / 2


def progress(loss_this_step, step_size, **others) -> None:
    """What BFGS tells of each step that it tries: `(what it is, value)`."""
    del others
    template = "  −log p = {:.4f}, step size {:.3g}"
    jax.debug.print(template, loss_this_step[1], step_size[1])


def fit(given: Problem, start: Float[Array, "3"]):
    loss = lambda parameters, given: -log_likelihood(parameters, given)
    solver = optx.BFGS(rtol=1e-4, atol=1e-3, verbose=progress)
    run = jax.jit(
        lambda start: optx.minimise(loss, solver, start, given, max_steps=100)
    )
    return run(start)


def mean_and_deviation(parameters: Float[Array, "3"], given: Problem):
    """Of the field, given what is observed."""
    _, posterior, sigma = precisions(parameters, given)
    log_det = lambda values: lxe.logdet(matrix(values, given), throw=False)
    inverse = jax.grad(log_det)(posterior)
    on_diagonal = given.pattern.rows == given.pattern.cols
    operator = matrix(posterior, given)
    mean = lx.linear_solve(
        operator, given.heights / sigma**2, lxe.SparseCholesky()
    ).value
    return mean, jnp.sqrt(inverse[np.flatnonzero(on_diagonal)])


def draw(map_: np.ndarray, mean: np.ndarray, deviation: np.ndarray, path: str) -> None:
    plt.rcParams.update({"font.size": 14})
    figure, axes = plt.subplots(1, 3, figsize=(12.5, 5), layout="constrained")
    rows, columns = map_.shape
    extent = (0, columns * SPACING, 0, rows * SPACING)
    titles = (
        "heights",
        "mean, given a tenth of them",
        "standard deviation",
    )
    limits = {"vmin": map_.min(), "vmax": map_.max()}
    for axis, title, values in zip(axes, titles, (map_, mean, deviation)):
        last = title == titles[-1]
        image = axis.imshow(
            values.reshape(rows, columns),
            extent=extent,
            cmap="magma" if last else "gist_earth",
            **({"vmin": 0} if last else limits),
        )
        axis.set(title=title, xlabel="x in km")
        bar = figure.colorbar(image, ax=axis, orientation="horizontal")
        bar.set_label("in standard deviations of the map")
    axes[0].set_ylabel("y in km")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def timed(fn, *args):
    """The result of the second call, and how long it took."""
    jax.block_until_ready(fn(*args))
    begin = time.perf_counter()
    return jax.block_until_ready(fn(*args)), time.perf_counter() - begin


def main() -> int:
    start = jnp.log(jnp.array([0.3, 1.0, 0.2]))  # κ a point, τ, σ

    small = problem(heights(step=16), share=0.5)
    results = []
    for name, fn in (("sparse", log_likelihood), ("dense", dense_log_likelihood)):
        both = jax.jit(jax.value_and_grad(lambda x, fn=fn: fn(x, small)))
        (value, gradient), seconds = timed(both, start)
        print(f"{name:7} log p = {value:.8f}, gradient {np.round(gradient, 6)}")
        print(f"{'':7} {len(small.heights)} points, {1e3 * seconds:.1f} ms", flush=True)
        results.append(np.append(gradient, value))
    difference = np.max(np.abs(results[0] - results[1]) / np.abs(results[1]))

    map_ = heights(step=5)
    given = problem(map_, share=0.1)
    print(f"\n{map_.size} points, {int(given.observed.sum())} observed", flush=True)
    solution = fit(given, start)
    kappa, tau, sigma = np.exp(solution.value)
    # Where the correlation has fallen to a tenth: √8 / κ, for a Matérn field of ν = 1.
    reach = np.sqrt(8) / kappa * SPACING
    print(f"range {reach:.1f} km, noise {sigma:.3f} (put on: {NOISE})")

    predict = jax.jit(lambda parameters: mean_and_deviation(parameters, given))
    (mean, deviation), seconds = timed(predict, solution.value)
    hidden = np.asarray(given.observed) == 0
    error = (np.asarray(mean) - map_.reshape(-1))[hidden]
    inside = np.mean(np.abs(error) < 2 * np.asarray(deviation)[hidden])
    print(f"mean and all standard deviations: {1e3 * seconds:.0f} ms")
    print(f"hidden points within two of them: {100 * inside:.0f} %")
    draw(map_, np.asarray(mean), np.asarray(deviation), "markov_field.png")
    print("drawn: markov_field.png")
    if not difference < 1e-6:
        print("The two likelihoods disagree.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
