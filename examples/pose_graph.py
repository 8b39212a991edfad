"""A map from what a robot measured on its way: a pose graph, as in SLAM.

A pose is a place and a heading, (x, y, θ), in m and rad. An edge (i, j) says what was
measured of pose j as seen from pose i: by odometry from each pose to the next, and now
and then by recognising a place, which closes a loop. With z the measurement and Ω = LᵀL
the inverse of its covariance, the poses are those of least

    ½ Σ ‖L e‖²,    e = (R(θᵢ)ᵀ (tⱼ − tᵢ) − t_z,  θⱼ − θᵢ − θ_z wrapped to ±π),

where the first pose is held. Each residual depends on two poses alone, and so
`DampedSparse` factorises a sparse matrix for every step of Levenberg–Marquardt. Its
pattern is found by `infer_pattern` from the function as it stands; SciPy's `trf` gets
the same pattern, and its columns scaled.

Reads a graph in the format of g2o (`VERTEX_SE2`, `EDGE_SE2`), or simulates a robot in
the streets of Manhattan. Prints steps, times and minima of both, draws the map before
and after into `pose_graph.png`, and exits with an error if SciPy finds a lower minimum.

Run it as `python examples/pose_graph.py [FILE.g2o]`.
"""

import pathlib
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib


matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import optimistix as optx  # noqa: E402
import scipy.optimize  # noqa: E402
from jaxtyping import Array, Float  # noqa: E402

import lineax_ext as lxe  # noqa: E402


jax.config.update("jax_enable_x64", True)

POSES = 1000
NOISE = np.array([0.04, 0.04, 0.01])  # m, m, rad: of a step of 1 m
TOLERANCE = 1e-6


class Graph(NamedTuple):
    guess: np.ndarray  # (poses, 3)
    edges: np.ndarray  # (edges, 2)
    measured: np.ndarray  # (edges, 3)
    weights: np.ndarray  # (edges, 3, 3): L


def between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pose b as seen from pose a."""
    (x, y, turn), c, s = (b - a).T, np.cos(a[:, 2]), np.sin(a[:, 2])
    return np.stack([c * x + s * y, c * y - s * x, turn], axis=1)


def odometry(measured: np.ndarray) -> np.ndarray:
    """The poses that the steps lead to, one after the other."""
    heading = np.append(0, np.cumsum(measured[:, 2]))
    c, s, (x, y, _) = np.cos(heading[:-1]), np.sin(heading[:-1]), measured.T
    steps = np.stack([c * x - s * y, s * x + c * y], axis=1)
    places = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    return np.column_stack([places, heading])


def simulate(count: int) -> Graph:
    """A walk along streets 1 m apart, on which a third of the places are recognised."""
    rng = np.random.default_rng(0)
    ways = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])
    place, way, poses, closures = np.zeros(2, int), 0, [], []
    seen: dict[tuple[int, ...], int] = {}
    for k in range(count):
        poses.append((*place, way * np.pi / 2))
        before = seen.get(tuple(place), k)
        if k - before > 10 and rng.random() < 0.35:
            closures.append((before, k))
        seen[tuple(place)] = k
        way += rng.choice([-1, 0, 0, 1])
        while np.abs(place + ways[way % 4]).max() > count**0.5 / 2:
            way += rng.choice([-1, 1])
        place = place + ways[way % 4]
    chain = np.stack([np.arange(count - 1), np.arange(1, count)], axis=1)
    edges = np.concatenate([chain, np.array(closures)])
    start, end = np.array(poses)[edges.T]
    measured = between(start, end) + NOISE * rng.normal(size=(len(edges), 3))
    weights = np.tile(np.diag(1 / NOISE), (len(edges), 1, 1))
    return Graph(odometry(measured[: len(chain)]), edges, measured, weights)


def read(path: str) -> Graph:
    """A file of g2o: its information matrices are written by their upper halves."""
    vertices, edges = {}, []
    for line in pathlib.Path(path).read_text().splitlines():
        kind, *numbers = line.split() or [""]
        if kind == "VERTEX_SE2":
            vertices[int(numbers[0])] = [float(x) for x in numbers[1:4]]
        elif kind == "EDGE_SE2":
            edges.append([float(x) for x in numbers])
    if not (vertices and edges):
        raise ValueError(f"{path} has no `VERTEX_SE2` or no `EDGE_SE2`.")
    number = {name: i for i, name in enumerate(vertices)}
    table = np.array(edges)
    ends = np.array([[number[int(x)] for x in row] for row in table[:, :2]])
    information = np.zeros((len(table), 3, 3))
    information[:, *np.triu_indices(3)] = table[:, 5:11]
    information[:, *np.tril_indices(3)] = information.mT[:, *np.tril_indices(3)]
    weights = np.linalg.cholesky(information).mT
    return Graph(np.array(list(vertices.values())), ends, table[:, 2:5], weights)


def residuals_of(graph: Graph):
    i, j = graph.edges.T
    first = jnp.asarray(graph.guess[:1])

    def residuals(
        y: Float[Array, "poses-1 3"], args: tuple[Array, Array]
    ) -> Float[Array, "edges 3"]:
        measured, weights = args
        poses = jnp.concatenate([first, y])
        heading = poses[i, 2]
        step, turn = poses[j] - poses[i], poses[j, 2] - heading - measured[:, 2]
        c, s = jnp.cos(heading), jnp.sin(heading)
        error = jnp.stack(
            [
                c * step[:, 0] + s * step[:, 1] - measured[:, 0],
                c * step[:, 1] - s * step[:, 0] - measured[:, 1],
                jnp.arctan2(jnp.sin(turn), jnp.cos(turn)),
            ],
            axis=1,
        )
        return jnp.sum(weights * error[:, None, :], axis=2)

    return residuals


def progress(num_steps, loss_this_step, **others) -> None:
    del others
    jax.debug.print("  step {:3d}  ½ ‖r‖² = {:.6e}", num_steps[1], loss_this_step[1])


def by_levenberg_marquardt(residuals, pattern: lxe.Pattern, y0, args):
    """The poses, steps, and how long compiling and the run took."""
    solver = lxe.LevenbergMarquardt(
        TOLERANCE,
        TOLERANCE,
        linear_solver=lxe.DampedSparse(pattern),
        verbose=progress,
    )

    @jax.jit
    def run(y0, args):
        fit = optx.least_squares(residuals, solver, y0, args, throw=False)
        return fit.value, fit.stats["num_steps"]

    begin = time.perf_counter()
    compiled = run.lower(y0, args).compile()
    compiling = time.perf_counter() - begin
    begin = time.perf_counter()
    poses, steps = jax.block_until_ready(compiled(y0, args))
    return np.asarray(poses), int(steps), compiling, time.perf_counter() - begin


def by_scipy(residuals, pattern: lxe.Pattern, y0, args):
    fn = jax.jit(lambda y: residuals(y.reshape(y0.shape), args).reshape(-1))
    flat = lambda y: np.asarray(fn(y))
    flat(np.ravel(y0))  # compiles
    begin = time.perf_counter()
    fit = scipy.optimize.least_squares(
        flat,
        np.ravel(y0),
        method="trf",
        jac_sparsity=pattern.to_scipy(),
        x_scale="jac",
        verbose=1,
    )
    return fit, time.perf_counter() - begin


def draw(graph: Graph, fitted: np.ndarray, path: str) -> None:
    plt.rcParams.update({"font.size": 14})
    figure, axes = plt.subplots(1, 2, figsize=(10, 5.6), layout="constrained")
    odometry = np.abs(np.diff(graph.edges, axis=1)[:, 0]) == 1
    for axis, poses, title in zip(
        axes, (graph.guess, fitted), ("before", "after, loops closed")
    ):
        for chosen, colour, width, label in (
            (odometry, "tab:blue", 1.2, "step"),
            (~odometry, "tab:orange", 1.6, "loop closure"),
        ):
            ends = poses[graph.edges[chosen], :2]
            lines = np.concatenate([ends, np.full_like(ends[:, :1], np.nan)], axis=1)
            x, y = lines.reshape(-1, 2).T
            axis.plot(x, y, color=colour, linewidth=width, label=label)
        axis.plot(*poses[0, :2], "ko", markersize=7, label="start")
        axis.set(title=title, xlabel="x in m", ylabel="y in m", aspect="equal")
    figure.legend(
        *axes[0].get_legend_handles_labels(), ncols=3, loc="outside lower center"
    )
    figure.suptitle(f"Pose graph: {len(graph.guess)} poses, {len(graph.edges)} edges")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(path: str | None = None) -> int:
    graph = simulate(POSES) if path is None else read(path)
    y0 = jnp.asarray(graph.guess[1:])
    args = jnp.asarray(graph.measured), jnp.asarray(graph.weights)
    residuals = residuals_of(graph)
    begin = time.perf_counter()
    pattern = lxe.infer_pattern(residuals, y0, args)
    finding = time.perf_counter() - begin
    m, n = pattern.shape
    print(f"{n} unknowns, {m} residuals, {len(pattern)} entries", end=", ")
    print(f"found in {finding:.2f} s; compiling …", flush=True)

    fitted, steps, compiling, running = by_levenberg_marquardt(
        residuals, pattern, y0, args
    )
    draw(graph, np.concatenate([graph.guess[:1], fitted]), "pose_graph.png")
    print("drawn: pose_graph.png\n\nSciPy …", flush=True)
    referee, scipy_time = by_scipy(residuals, pattern, y0, args)
    minimum = 0.5 * float(jnp.sum(residuals(jnp.asarray(fitted), args) ** 2))
    print(f"\n{'':36}{'steps':>7}{'compiling':>12}{'run':>10}{'½ ‖r‖²':>16}")
    name = "LevenbergMarquardt, DampedSparse"
    print(f"{name:36}{steps:7}{compiling:10.1f} s{running:8.2f} s{minimum:16.6f}")
    name, steps, theirs = "SciPy, trf, with the pattern", referee.nfev, referee.cost
    print(f"{name:36}{steps:7}{'':12}{scipy_time:8.2f} s{theirs:16.6f}")
    if not minimum <= theirs * (1 + 1e-6):
        print("SciPy has found a lower minimum.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
