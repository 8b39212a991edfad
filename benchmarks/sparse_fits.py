"""Levenberg–Marquardt with a sparse Jacobian, to the size of a map.

The residuals are what they are in JAX: no factor graph is written. Beside them are
SciPy's `trf`, with the same pattern and scaled columns; optimistix, where the dense
Jacobian fits in memory; and GTSAM, where it is installed, with its own factors.

The referee takes steps of Gauss–Newton by SuperLU, with SciPy's finite differences,
from an answer: an error is how far a sum of squares is from the least one, relatively.
SciPy's `trf` with its own tolerances often stops short of 1e-6, which is reported and
no failure.
"""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import scipy.optimize
import scipy.sparse as sp
import scipy.sparse.linalg as spl
from jaxtyping import Array, Float

import lineax_ext as lxe

from .harness import absent, Case, Goal, peer, Side


OURS, THEIRS, SCIPY, GTSAM = "lineax_ext", "optimistix", "SciPy", "GTSAM"


class Problem(NamedTuple):
    """`fn(y, args)`, where to start, and the pattern of its Jacobian."""

    fn: Callable[[Any, Any], Any]
    y: Array
    args: Any
    pattern: lxe.Pattern

    @staticmethod
    def of(fn: Callable[[Any, Any], Any], y: Any, args: Any) -> "Problem":
        y, args = jax.tree_util.tree_map(jnp.asarray, (y, args))
        return Problem(fn, y, args, lxe.infer_pattern(fn, y, args))

    def solver(self, **kwargs) -> lxe.LevenbergMarquardt:
        solver = lxe.DampedSparse(self.pattern)
        return lxe.LevenbergMarquardt(1e-7, 1e-7, linear_solver=solver, **kwargs)

    def flat(self, y: Array) -> Array:
        leaves = jax.tree_util.tree_leaves(self.fn(y.reshape(self.y.shape), self.args))
        return jnp.concatenate([x.reshape(-1) for x in leaves])

    def scipy(self, y: Any, **kwargs) -> Any:
        fn = jax.jit(self.flat)
        return scipy.optimize.least_squares(
            lambda y: np.asarray(fn(y)),
            np.ravel(y),
            method="trf",
            jac_sparsity=self.pattern.to_scipy(),
            x_scale="jac",
            **kwargs,
        )

    def error(self) -> Callable[[Any], float]:
        """How far half a sum of squares is from that which the referee finds."""
        value, _ = jax.jit(fit(self.fn, self.solver(scale="jacobian")))(
            self.y, self.args
        )
        y, least = np.ravel(value), np.inf
        for _ in range(4):
            at = self.scipy(y, max_nfev=1)
            least = min(least, at.cost)
            normal = sp.csc_array(at.jac.T @ at.jac)
            # Where nothing holds it, what is found is one minimum of many.
            normal = normal + 1e-10 * sp.diags_array(normal.diagonal())
            y = y - spl.spsolve(sp.csc_array(normal), at.jac.T @ at.fun)

        def error(out: Any) -> float:
            residual = np.asarray(self.flat(jnp.asarray(out[0])))
            return abs(0.5 * float(residual @ residual) / least - 1)

        return error


def fit(fn: Callable[[Any, Any], Any], solver: Any, steps: int = 256) -> Callable:
    def run(y, args):
        out = optx.least_squares(fn, solver, y, args, max_steps=steps, throw=False)
        return out.value, out.stats["num_steps"]

    return run


def steps(out: Any) -> int:
    return int(np.max(out[1]))


def cases(quick: bool) -> Iterator[Case]:
    if quick:
        world = manhattan(30)
        yield _whole(f"Manhattan world, {len(world.guess)} poses", world.problem())
        return
    world = manhattan(2000)
    name = f"Manhattan world, {len(world.guess)} poses"
    yield _whole(name, world.problem(), world)
    yield _whole(
        "bundle adjustment, 20 cameras, 2000 points", bundle_adjustment(20, 2000)
    )
    slow = absent("not done after 80 s on a loaded machine")
    yield _whole("smoothing spline, 20,000 knots", spline(20_000), scipy=slow)

    problem = manhattan(500).problem()
    ours = fit(problem.fn, problem.solver())
    error = problem.error()
    yield Case(
        panel="against a dense Jacobian",
        x=f"Manhattan world, {problem.y.size} unknowns",
        sides={
            THEIRS: fit(problem.fn, optx.LevenbergMarquardt(1e-7, 1e-7)),
            OURS: ours,
        },
        args=(problem.y, problem.args),
        error=error,
        tolerance=1e-6,
        steps=steps,
        goals=(Goal(OURS, THEIRS, 50),),
    )
    noise = 0.01 * np.random.default_rng(1).normal(size=(16, *problem.y.shape))
    yield Case(
        panel="16 starts",
        x=f"Manhattan world, {problem.y.size} unknowns",
        sides={
            "one after the other": lambda y, args: jax.lax.map(
                lambda y: ours(y, args), y
            ),
            "vmap": jax.vmap(ours, (0, None)),
        },
        args=(problem.y + noise, problem.args),
        error=lambda out: max(error((y, None)) for y in out[0]),
        tolerance=1e-6,
        steps=steps,
        goals=(Goal("vmap", "one after the other", 1),),
    )
    yield _steps(name, world, 6)
    if (found := w10000()) is not None:
        yield _steps("w10000, 10,000 poses, 64,311 edges", found, 6)


def _whole(
    name: str,
    problem: Problem,
    world: "World | None" = None,
    scipy: Side | None = None,
) -> Case:
    """A fit, from the start to the minimum."""

    def by_scipy(y, args):
        del args
        out = problem.scipy(y)
        return out.x, out.nfev

    other = f'{OURS}, scale="jacobian"'
    sides: dict[str, Any] = {
        SCIPY: Side(by_scipy, host=True, may_fail=True) if scipy is None else scipy,
        OURS: fit(problem.fn, problem.solver()),
        other: fit(problem.fn, problem.solver(scale="jacobian")),
    }
    if world is not None:
        sides[GTSAM] = peer("gtsam", lambda module: world.by_gtsam(module, None))
    return Case(
        panel="a fit",
        x=f"{name}, {problem.y.size} unknowns",
        sides=sides,
        args=(problem.y, problem.args),
        error=problem.error(),
        tolerance=1e-6,
        steps=steps,
        goals=() if scipy else (Goal(OURS, SCIPY, 5), Goal(other, SCIPY, 5)),
        seconds=20.0,
    )


def _steps(name: str, world: "World", count: int) -> Case:
    """So many steps, which the last ones of a fit are like."""
    problem = world.problem()
    cost = float(jnp.sum(problem.flat(problem.y) ** 2))

    def error(out: Any) -> float:  # a step at least is downhill
        now = float(jnp.sum(problem.flat(jnp.asarray(out[0])) ** 2))
        return 0.0 if now < cost else now / cost

    return Case(
        panel=f"{count} steps",
        x=f"{name}, {problem.y.size} unknowns",
        sides={
            GTSAM: peer("gtsam", lambda module: world.by_gtsam(module, count)),
            OURS: fit(problem.fn, problem.solver(), count),
        },
        args=(problem.y, problem.args),
        error=error,
        steps=steps,
        goals=(Goal(OURS, GTSAM, 1 / 3),) if _has_gtsam() else (),
        seconds=20.0,
    )


def _has_gtsam() -> bool:
    return peer("gtsam", lambda module: module.Pose2).fn is not None


#
# Pose graphs in the plane
#


class World(NamedTuple):
    """Poses (x, y, θ), of which the first is held, and what was measured between."""

    guess: np.ndarray
    edges: np.ndarray
    measured: np.ndarray
    weights: np.ndarray

    def problem(self) -> Problem:
        i, j = self.edges.T
        first = jnp.asarray(self.guess[:1])

        def residuals(y, args):
            measured, weights = args
            poses = jnp.concatenate([first, y])
            heading = poses[i, 2]
            step, turn = poses[j] - poses[i], poses[j, 2] - heading - measured[:, 2]
            c, s = jnp.cos(heading), jnp.sin(heading)
            x = c * step[:, 0] + s * step[:, 1] - measured[:, 0]
            y = c * step[:, 1] - s * step[:, 0] - measured[:, 1]
            turn = jnp.arctan2(jnp.sin(turn), jnp.cos(turn))
            return weights * jnp.stack([x, y, turn], axis=1)

        return Problem.of(residuals, self.guess[1:], (self.measured, self.weights))

    def by_gtsam(self, module: Any, count: int | None) -> Callable[..., Any]:
        """Levenberg–Marquardt to the end, or so many steps of Gauss–Newton, which has
        no damping to look for."""
        graph, values = module.NonlinearFactorGraph(), module.Values()
        for k, pose in enumerate(self.guess):
            values.insert(k, module.Pose2(*pose))
        for (i, j), z, w in zip(self.edges.tolist(), self.measured, self.weights):
            noise = module.noiseModel.Diagonal.Precisions(w**2)
            graph.add(module.BetweenFactorPose2(i, j, module.Pose2(*z), noise))
        first = module.Pose2(*self.guess[0])
        graph.add(module.NonlinearEqualityPose2(0, first))

        def run(y, args):
            del y, args
            if count is None:
                parameters = module.LevenbergMarquardtParams()
                parameters.setRelativeErrorTol(1e-7)
                optimizer = module.LevenbergMarquardtOptimizer(
                    graph, values, parameters
                )
                out = optimizer.optimize()
            else:
                optimizer = module.GaussNewtonOptimizer(graph, values)
                for _ in range(count):
                    optimizer.iterate()
                out = optimizer.values()
            poses = [out.atPose2(k) for k in range(1, len(self.guess))]
            found = np.array([(p.x(), p.y(), p.theta()) for p in poses])
            return found, optimizer.iterations()

        return run


def _odometry(measured: np.ndarray) -> np.ndarray:
    heading = np.append(0, np.cumsum(measured[:, 2]))
    c, s, (x, y, _) = np.cos(heading[:-1]), np.sin(heading[:-1]), measured.T
    steps = np.stack([c * x - s * y, s * x + c * y], axis=1)
    places = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    return np.column_stack([places, heading])


def manhattan(count: int) -> World:
    """A walk along streets, of which some places are recognised when it comes back."""
    rng = np.random.default_rng(0)
    noise = np.array([0.05, 0.05, 0.01])
    ways = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])
    place, way, poses, closures = np.zeros(2, int), 0, [], []
    seen: dict[tuple[int, ...], list[int]] = {}
    for k in range(count):
        poses.append((*place, way * np.pi / 2))
        before = seen.setdefault(tuple(place), [])
        recognised = [b for b in before[-3:] if k - b > 10 and rng.random() < 0.5]
        closures += [(b, k) for b in recognised]
        before.append(k)
        way += rng.choice([-1, 0, 0, 1])
        while np.abs(place + ways[way % 4]).max() > count**0.5 / 2:
            way += rng.choice([-1, 1])
        place = place + ways[way % 4]
    chain = np.stack([np.arange(count - 1), np.arange(1, count)], axis=1)
    edges = np.concatenate([chain, np.array(closures, int).reshape(-1, 2)])
    start, end = np.array(poses)[edges.T]
    (x, y, turn), c, s = (end - start).T, np.cos(start[:, 2]), np.sin(start[:, 2])
    exact = np.stack([c * x + s * y, c * y - s * x, turn], axis=1)
    measured = exact + noise * rng.normal(size=exact.shape)
    guess = _odometry(measured[: len(chain)])
    return World(guess, edges, measured, np.tile(1 / noise, (len(edges), 1)))


def w10000() -> World | None:
    """From the wheel of GTSAM, in the format of TORO; its weights are diagonal."""
    try:
        import gtsam  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    path = pathlib.Path(str(gtsam.__file__)).parent / "Data" / "w10000.graph"
    if not path.exists():
        return None
    lines = [line.split() for line in path.read_text().splitlines()]
    numbers = lambda kind: np.array([x[1:] for x in lines if x[:1] == [kind]], float)
    vertices, edges = numbers("VERTEX2"), numbers("EDGE2")
    # I₁₁ I₁₂ I₂₂ I₃₃ I₁₃ I₂₃
    weights = np.sqrt(edges[:, [5, 7, 8]])
    ends = edges[:, :2].astype(int)
    return World(vertices[:, 1:], ends, edges[:, 2:5], weights)


#
# Others
#


def bundle_adjustment(cameras: int, points: int, views: int = 5) -> Problem:
    """Cameras on a circle look at points; each point is seen by some of them.

    Nothing holds the cameras: there are seven directions, scale among them, in which
    nothing changes.
    """
    rng = np.random.default_rng(0)
    angle = 2 * np.pi * np.arange(cameras) / cameras
    # x right, y down, z ahead: each looks at the centre, from ten units away.
    base = np.stack(
        [
            np.stack([-np.sin(angle), np.cos(angle), 0 * angle], 1),
            np.stack([0 * angle, 0 * angle, 0 * angle - 1], 1),
            np.stack([-np.cos(angle), -np.sin(angle), 0 * angle], 1),
        ],
        axis=1,
    )
    truth = rng.normal(size=(points, 3))
    point = np.repeat(np.arange(points), views)
    first = rng.integers(0, cameras, points)
    camera = ((first[:, None] + np.arange(views)) % cameras).reshape(-1)

    def residuals(y, seen):
        pose, where = y[: 6 * cameras].reshape(-1, 6), y[6 * cameras :].reshape(-1, 3)
        turn, shift = pose[camera, :3], pose[camera, 3:]
        x = jnp.einsum("kij,kj->ki", base[camera], where[point])
        x = _rotated(turn, x) + shift
        return 500 * (x[:, :2] / (x[:, 2:] + 10)) - seen  # pixels

    exact = np.concatenate([np.zeros(6 * cameras), truth.ravel()])
    seen = np.asarray(residuals(jnp.asarray(exact), 0.0))
    seen = seen + rng.normal(size=seen.shape)
    size = np.concatenate([np.full(6 * cameras, 0.03), np.full(3 * points, 0.2)])
    return Problem.of(residuals, exact + size * rng.normal(size=exact.size), seen)


def _rotated(turn: Float[Array, "k 3"], x: Float[Array, "k 3"]) -> Float[Array, "k 3"]:
    """Rodrigues' formula."""
    square = jnp.sum(turn**2, axis=1, keepdims=True)
    small = square < 1e-12
    angle = jnp.sqrt(jnp.where(small, 1.0, square))
    a = jnp.where(small, 1 - square / 6, jnp.sin(angle) / angle)
    b = jnp.where(small, 0.5 - square / 24, (1 - jnp.cos(angle)) / angle**2)
    cross = jnp.cross(turn, x)
    return x + a * cross + b * jnp.cross(turn, cross)


def spline(knots: int) -> Problem:
    """The logarithm of a rate, smooth, from counts of events: a long record."""
    rng = np.random.default_rng(0)
    t = np.linspace(0, 40, knots)
    counts = rng.poisson(np.exp(2 + np.sin(t) + 0.3 * np.sin(7.1 * t)))

    def residuals(u, counts):
        # Variance-stabilised, and a second difference of a knot's usual size.
        return 2 * (jnp.exp(u / 2) - jnp.sqrt(counts + 0.375)), 300 * jnp.diff(u, 2)

    return Problem.of(residuals, np.full(knots, 2.0), counts.astype(float))
