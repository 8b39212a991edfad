"""lineax_ext in a minute: three things that you do already, at a lower cost.

(a) A ridge path on the diabetes data that scikit-learn ships: a hundred dampings from
    one factorisation, and the derivative of the validation error in the damping.
(b) A nonlinear boundary-value problem with 10,000 unknowns, by Newton's method and one
    word on the structure of its Jacobian.
(c) Least-squares fits of two hundred vectors with one matrix: which coefficients of the
    diabetes model are more than chance?

Run it as `python examples/quickstart.py`. Every answer is compared with another one,
from scikit-learn, a closed form, finite differences or plain lineax, and it exits with
an error if they disagree.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
from jaxtyping import Array, Float
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

import lineax_ext as lxe


# JAX computes in single precision unless told otherwise.
jax.config.update("jax_enable_x64", True)


#
# (a) A ridge path
#


def diabetes() -> tuple[np.ndarray, np.ndarray]:
    """442 patients: ten measurements and their products, and how the disease went."""
    data: Any = load_diabetes()
    products = PolynomialFeatures(degree=2, interaction_only=True, include_bias=False)
    features = products.fit_transform(data.data)
    return StandardScaler().fit_transform(features), data.target


def ridge_path(
    x: Float[Array, "m n"], y: Float[Array, " m"], dampings: Float[Array, " d"]
) -> Float[Array, "d n"]:
    """argmin ‖X w − y‖² + λ ‖w‖², for every λ."""
    operator = lx.MatrixLinearOperator(x)
    solver = lxe.DampedQR()
    state = solver.init(operator, options={})  # the one factorisation

    def fit(damping):
        return lxe.damped_solve(operator, y, damping, solver, state=state).value

    return jax.lax.map(fit, dampings)


def ridge_path_by_lineax(x, y, dampings):
    """The same by plain lineax: a factorisation of [X; √λ I] for every λ."""
    n = x.shape[1]

    def fit(damping):
        stack = jnp.concatenate([x, jnp.sqrt(damping) * jnp.eye(n)])
        operator = lx.MatrixLinearOperator(stack)
        vector = jnp.concatenate([y, jnp.zeros(n)])
        return lx.linear_solve(operator, vector, lx.QR()).value

    return jax.lax.map(fit, dampings)


def validation_errors(x, y, x_validation, y_validation, dampings):
    """The mean squared error on other patients and its derivative in λ, for every λ."""
    operator = lx.MatrixLinearOperator(x)
    solver = lxe.DampedQR()
    state = solver.init(operator, options={})

    def error(damping):
        weights = lxe.damped_solve(operator, y, damping, solver, state=state).value
        return jnp.mean((x_validation @ weights - y_validation) ** 2)

    return jax.vmap(jax.value_and_grad(error))(dampings)


def part_a() -> None:
    features, progression = diabetes()
    order = np.random.default_rng(3).permutation(progression.size)
    train, validation = order[:300], order[300:]
    # Centred by what is known of the training patients: that is fitting an intercept.
    x = features - features[train].mean(axis=0)
    y = progression - progression[train].mean()
    dampings = np.logspace(-2, 4, 100)
    print(f"(a) Ridge path: {len(dampings)} dampings, {x[train].shape} diabetes data")

    weights, seconds = timed(ridge_path, x[train], y[train], dampings)
    expected, seconds_lineax = timed(ridge_path_by_lineax, x[train], y[train], dampings)
    compare_times(
        "lineax_ext, one factorisation", seconds, "lineax, a hundred", seconds_lineax
    )
    agree("weights, with lineax's", weights, expected, 1e-10)
    by_sklearn = [
        Ridge(alpha).fit(features[train], progression[train]).coef_
        for alpha in dampings
    ]
    agree("weights, with scikit-learn's `Ridge`", weights, by_sklearn, 1e-8)

    data = x[train], y[train], x[validation], y[validation]
    (errors, slopes), seconds = timed(validation_errors, *data, dampings)
    above, below = (
        validation_errors(*data, dampings * (1 + step))[0] for step in (1e-4, -1e-4)
    )
    by_differences = (above - below) / (2e-4 * dampings)
    print(f"    {'validation error and derivative, all dampings':<44}{ms(seconds)}")
    # In d/d log λ, so that no end of the path outweighs the other.
    agree(
        "derivative, with a finite difference",
        slopes * dampings,
        by_differences * dampings,
        1e-6,
    )
    best = int(np.argmin(errors))
    print(
        f"    Least at λ = {dampings[best]:.3g}, where the derivative changes sign: "
        f"{slopes[best - 1]:+.2g} before, {slopes[best + 1]:+.2g} after."
    )


#
# (b) A boundary-value problem
#


def bratu(u: Float[Array, " n"], strength: float) -> Float[Array, " n"]:
    """The residual of u'' + λ exp(u) = 0 on (0, 1), u(0) = u(1) = 0, times h²."""
    h = 1 / (u.size + 1)
    padded = jnp.pad(u, 1)
    return padded[:-2] - 2 * u + padded[2:] + h**2 * strength * jnp.exp(u)


def bratu_exact(n: int, strength: float) -> np.ndarray:
    """u = -2 log(cosh(θ (x - 1/2)) / cosh(θ/2)), with θ = √(λ/2) cosh(θ/2)."""
    theta = 1.0
    for _ in range(200):
        theta = math.sqrt(strength / 2) * math.cosh(theta / 2)
    x = np.linspace(0, 1, n + 2)[1:-1]
    return -2 * np.log(np.cosh(theta * (x - 0.5)) / np.cosh(theta / 2))


def solve_bratu(tags: frozenset[object]) -> Callable[[Array], tuple[Array, Array]]:
    def solve(u0):
        newton = optx.Newton(rtol=1e-8, atol=1e-8)
        solution = optx.root_find(bratu, newton, u0, 1.0, tags=tags)
        return solution.value, solution.stats["num_steps"]

    return solve


def part_b() -> None:
    n, small = 10_000, 1000
    tags = frozenset({lx.tridiagonal_tag})
    print(f"(b) Bratu's problem by Newton's method, {n:,} unknowns")

    # lineax takes a tag on trust, and a wrong one gives a wrong answer. This raises.
    jacobian = lx.JacobianLinearOperator(bratu, jnp.ones(n), 1.0, tags=tags)
    lxe.check_tags(jacobian, key=jax.random.key(0))

    (u, steps), seconds = timed(solve_bratu(tags), jnp.zeros(n))
    print(f"    {f'tridiagonal, n = {n:,}, {steps} steps':<44}{ms(seconds)}")
    agree("solution, with the closed form", u, bratu_exact(n, 1.0), 1e-7)

    # Without a tag the Jacobian is a dense matrix: 800 MB at n = 10,000, and minutes.
    # So the comparison is for n = 1000. (With this tag, on a plain vector, Newton is as
    # fast by lineax's own rule: see benchmarks/structured_rules.py, also for where
    # lineax makes the dense matrix in spite of a tag.)
    (u, steps), seconds = timed(solve_bratu(tags), jnp.zeros(small))
    (expected, dense_steps), dense = timed(solve_bratu(frozenset()), jnp.zeros(small))
    compare_times(
        f"tridiagonal, n = {small:,}, {steps} steps",
        seconds,
        f"lineax without a tag, n = {small:,}, {dense_steps} steps",
        dense,
    )
    agree("solution, with the dense one", u, expected, 1e-8)


#
# (c) Many right-hand sides
#


def fit_all(
    solver: lx.AbstractLinearSolver,
) -> Callable[[Array, Array], Float[Array, "count n"]]:
    def fit(x, y):
        return lx.linear_solve(lx.MatrixLinearOperator(x), y, solver).value

    return jax.vmap(fit, in_axes=(None, 0))


def part_c() -> None:
    features, progression = diabetes()
    x = features - features.mean(axis=0)
    y = progression - progression.mean()
    # What the coefficients would be if nothing depended on anything: shuffle y. The
    # first of the two hundred vectors is y itself.
    rng = np.random.default_rng(0)
    vectors = np.stack([y, *(rng.permutation(y) for _ in range(199))])
    print(f"(c) Least squares: {len(vectors)} vectors, {x.shape} diabetes data")

    weights, seconds = timed(fit_all(lxe.QRMultiply()), x, vectors)
    expected, seconds_lineax = timed(fit_all(lx.QR()), x, vectors)
    compare_times(
        "vmap of `lxe.QRMultiply()`", seconds, "vmap of `lx.QR()`", seconds_lineax
    )
    agree("coefficients, with lineax's", weights, expected, 1e-10)
    found, by_chance = np.abs(weights[0]), np.abs(weights[1:])
    beyond = int(np.sum(found > by_chance.max(axis=0)))
    print(f"    {beyond} of {found.size} coefficients exceed all that chance made.")


#
# Clock and referee
#


def timed(fn: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """`fn(*args)`, and the least time of a call, of fifty or a third of a second."""
    args = tuple(jnp.asarray(x) for x in args)
    compiled = jax.jit(fn).lower(*args).compile()
    result = jax.block_until_ready(compiled(*args))
    least, stop = math.inf, time.perf_counter() + 1 / 3
    for _ in range(50):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        end = time.perf_counter()
        least = min(least, end - start)
        if end > stop:
            break
    return result, least


def ms(seconds: float) -> str:
    return f"{1e3 * seconds:9.2f} ms"


def compare_times(ours: str, seconds: float, other: str, seconds_other: float) -> None:
    print(f"    {ours:<44}{ms(seconds)}")
    ratio = seconds_other / seconds
    print(f"    {other:<44}{ms(seconds_other)}, {ratio:.1f} times as long")


def agree(what: str, found: Any, expected: Any, tolerance: float) -> None:
    """Prints the largest difference, relative to the largest value; or exits."""
    found, expected = np.asarray(found), np.asarray(expected)
    difference = np.max(np.abs(found - expected)) / np.max(np.abs(expected))
    print(f"    {what}: apart by {difference:.0e}")
    if not difference <= tolerance:
        raise SystemExit(f"    That is more than the {tolerance:.0e} expected.")


if __name__ == "__main__":
    started = time.perf_counter()
    print("Times are of one compiled call; compiling is not included.")
    part_a()
    part_b()
    part_c()
    seconds = time.perf_counter() - started
    print(f"All agree. {seconds:.0f} s in all, with compiling and the comparisons.")
