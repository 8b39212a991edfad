"""The damping that gives a step its length."""

from collections.abc import Callable

import jax.lax as lax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float, Inexact, ScalarLike


def secular_damping(
    sigma: Float[Array, " k"],
    coefficients: Inexact[Array, " k"],
    radius: Float[Array, ""],
    initial: ScalarLike = 0.0,
    root_finder: optx.AbstractRootFinder | None = None,
    *,
    rtol: float = 1e-2,
    max_steps: int = 32,
) -> Float[Array, ""]:
    """The λ ≥ 0 for which ‖p(λ)‖ = Δ, to `rtol`, with p(λ) = (Σ² + λ)⁻¹ Σ c.

    Newton's method for 1/Δ − 1/‖p(λ)‖, nearly linear in λ, within bounds that close in
    on λ. It converges from any start, in two or three steps as a rule. Zero if p(0) is
    not longer than Δ. An `initial` λ out of bounds is replaced by one within.

    Source: Hebden, *An algorithm for minimization using exact second derivatives*,
    Harwell report TP 515 (1973); with the bounds of Moré (1978), algorithm 5.5.
    """
    dtype = sigma.dtype
    squared = jnp.abs(coefficients) ** 2
    positive = sigma > 0
    safe = jnp.where(positive, sigma, 1)

    def evaluate(damping):
        """‖p‖ and its derivative."""
        h = safe + damping / safe
        terms = jnp.where(positive, squared / h**2, 0)
        norm = jnp.sqrt(jnp.sum(terms))
        slope = -jnp.sum(terms / (safe * h))
        return norm, slope / jnp.where(norm > 0, norm, 1)

    if root_finder is not None:
        return optx.root_find(
            lambda damping, _: evaluate(damping)[0] - radius,
            root_finder,
            jnp.asarray(initial, dtype),
            options=dict(lower=1e-5),
            max_steps=max_steps,
            throw=False,
        ).value

    gradient = jnp.sqrt(jnp.sum(jnp.where(positive, sigma**2 * squared, 0)))
    return newton_secular(
        evaluate, gradient, radius, initial, rtol=rtol, max_steps=max_steps
    )


def newton_secular(
    evaluate: Callable[[Array], tuple[Array, Array]],
    gradient: Float[Array, ""],
    radius: Float[Array, ""],
    initial: ScalarLike = 0.0,
    *,
    rtol: float = 1e-2,
    max_steps: int = 32,
) -> Float[Array, ""]:
    """As `secular_damping`, for any `evaluate`: of λ, ‖p(λ)‖ and its derivative.

    `gradient` is ‖Jᴴ r‖, from which comes a bound for λ.
    """
    dtype = radius.dtype
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
