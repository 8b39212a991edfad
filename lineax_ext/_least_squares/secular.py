"""The damping that gives a step its length."""

import jax.lax as lax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float, ScalarLike

from .._solver.damped import Secular


def secular_damping(
    problem: Secular,
    radius: Float[Array, ""],
    initial: ScalarLike = 0.0,
    root_finder: optx.AbstractRootFinder | None = None,
    *,
    rtol: float = 1e-2,
    max_steps: int = 32,
) -> Float[Array, ""]:
    """The λ ≥ 0 for which ‖p(λ)‖ = Δ, to `rtol`, with p(λ) the solution of `problem`.

    Newton's method for 1/Δ − 1/‖p(λ)‖, nearly linear in λ, within bounds that close in
    on λ. It converges from any start, in two or three steps as a rule. Zero if p(0) is
    not longer than Δ. An `initial` λ out of bounds is replaced by one within.

    Source: Hebden, *An algorithm for minimization using exact second derivatives*,
    Harwell report TP 515 (1973); with the bounds of Moré (1978), algorithm 5.5.
    """
    dtype, evaluate = radius.dtype, problem.evaluate
    if root_finder is not None:
        return optx.root_find(
            lambda damping, _: evaluate(damping)[0] - radius,
            root_finder,
            jnp.asarray(initial, dtype),
            options=dict(lower=1e-5),
            max_steps=max_steps,
            throw=False,
        ).value

    gradient = problem.gradient()
    norm, slope = evaluate(jnp.zeros((), dtype))
    needed = norm > (1 + rtol) * radius
    lower = jnp.where(needed, (radius - norm) / jnp.where(needed, slope, 1), 0)
    safe_radius = jnp.where(radius > 0, radius, jnp.finfo(dtype).tiny)
    upper = jnp.minimum(gradient / safe_radius, jnp.finfo(dtype).max)

    def inside(damping, lower, upper):
        fallback = jnp.maximum(upper / 1000, jnp.sqrt(lower) * jnp.sqrt(upper))
        return jnp.where((damping > lower) & (damping < upper), damping, fallback)

    def refine(carry):
        damping, lower, upper, _, count = carry
        norm, slope = evaluate(damping)
        excess = norm - radius
        lower = jnp.maximum(lower, damping - excess / slope)
        upper = jnp.where(excess < 0, damping, upper)
        new = damping - (norm / safe_radius) * (excess / slope)
        done = ~(jnp.abs(excess) > rtol * radius)
        new = jnp.where(done, damping, inside(new, lower, upper))
        return new, lower, upper, done, count + 1

    def unfinished(carry):
        *_, done, count = carry
        return ~done & (count < max_steps)

    start = inside(jnp.asarray(initial, dtype), lower, upper)
    carry = start, lower, upper, ~needed, jnp.array(0)
    damping, *_ = lax.while_loop(unfinished, refine, carry)
    return jnp.where(needed, damping, 0)
