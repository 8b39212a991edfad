"""The step of a given length."""

import jax.lax as lax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float, Inexact, ScalarLike

from .._solver.damped import Secular


def secular_solution(
    problem: Secular,
    radius: Float[Array, ""],
    initial: ScalarLike | None = None,
    root_finder: optx.AbstractRootFinder | None = None,
    *,
    rtol: float = 1e-2,
    max_steps: int = 32,
) -> tuple[Inexact[Array, " n"], Float[Array, ""]]:
    """p(λ), the solution of `problem`, and the λ ≥ 0 with ‖p(λ)‖ = Δ, to `rtol`.

    Newton's method for 1/Δ − 1/‖p(λ)‖, nearly linear in λ, within bounds that close in
    on λ. It converges from any start, in two or three steps as a rule. λ = 0 if p(0) is
    not longer than Δ. An `initial` λ out of bounds is replaced by one within; where
    none is given, the first step is from p(0). Bounds as close as `rtol` are an end as
    well: near the null space of J, ‖p(λ)‖ is no smoother than its rounding errors.

    Cost: an evaluation of `problem` a step, and none if λ = 0.

    Source: Hebden, *An algorithm for minimization using exact second derivatives*,
    Harwell report TP 515 (1973); with the bounds of Moré (1978), algorithm 5.5.
    """
    dtype = radius.dtype
    newton, norm, slope, least = problem.newton()
    needed = norm > (1 + rtol) * radius
    if root_finder is not None:

        def excess(damping, _):
            _, norm, slope, _ = problem.evaluate(lax.stop_gradient(damping))
            # The derivative of a factorisation is not looked for.
            slope = lax.stop_gradient(slope)
            return norm - radius + slope * (damping - lax.stop_gradient(damping))

        damping = optx.root_find(
            excess,
            root_finder,
            jnp.asarray(0 if initial is None else initial, dtype),
            options=dict(lower=1e-5),
            max_steps=max_steps,
            throw=False,
        ).value
        damped, *_ = problem.evaluate(damping)
        damping = jnp.where(needed, damping, least)
        return problem.solution(jnp.where(needed, damped, newton)), damping

    first = jnp.where(needed, (radius - norm) / jnp.where(needed, slope, 1), 0)
    lower = least + first
    safe_radius = jnp.where(radius > 0, radius, jnp.finfo(dtype).tiny)
    upper = jnp.minimum(problem.gradient() / safe_radius, jnp.finfo(dtype).max)

    def inside(damping, lower, upper):
        fallback = jnp.maximum(upper / 1000, jnp.sqrt(lower) * jnp.sqrt(upper))
        return jnp.where((damping > lower) & (damping < upper), damping, fallback)

    def refine(carry):
        damping, lower, upper, _, _, done, count = carry
        # Under `vmap`, one that has been found is not looked for again.
        asked = jnp.where(done, jnp.nan, damping)
        x, norm, slope, used = problem.evaluate(asked)
        excess = norm - radius
        lower = jnp.maximum(lower, damping - excess / slope)
        upper = jnp.where(excess < 0, damping, upper)
        new = damping - (norm / safe_radius) * (excess / slope)
        done = ~(jnp.abs(excess) > rtol * radius) | (upper <= (1 + rtol) * lower)
        new = inside(new, lower, upper)
        return new, lower, upper, x, used, done, count + 1

    def unfinished(carry):
        *_, done, count = carry
        return ~done & (count < max_steps)

    if initial is None:
        initial = least + (norm / safe_radius) * first
    start = inside(jnp.asarray(initial, dtype), lower, upper)
    carry = start, lower, upper, newton, least, ~needed, jnp.array(0)
    *_, x, used, _, _ = lax.while_loop(unfinished, refine, carry)
    return problem.solution(x), used
