"""Determinants of block-tridiagonal matrices, and the inverse near their diagonal."""

from typing import NamedTuple

import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from .phase import lu_slogdet
from .product import matmul


class BlockElimination(NamedTuple):
    """What `eliminate_blocks` leaves of the equations before each block.

    With all unknowns before those of block i eliminated, there are k equations left in
    (xᵢ, xᵢ₊₁): those with the coefficients `here[i]` and `next[i]`, and `own[i]` times
    the right-hand side of block row i.
    """

    here: Inexact[Array, "N k k"]
    next: Inexact[Array, "N k k"]
    own: Inexact[Array, "N k k"]
    sign: Inexact[Array, ""]
    logabsdet: Inexact[Array, ""]


def eliminate_blocks(diagonal, lower, upper) -> BlockElimination:
    """Gaussian elimination with partial pivoting among the 2k rows of a step, O(N k³).

    `lower[i]` couples block row i to the block before, `upper[i]` to the one after.
    """
    k = diagonal.shape[1]
    eye = jnp.eye(k, dtype=diagonal.dtype)
    zero = jnp.zeros_like(eye)

    def step(carry, row):
        here, next, sign, logabsdet = carry
        below, own, above = row
        # k + k equations in (xᵢ₋₁, xᵢ, xᵢ₊₁), of which the first k unknowns go.
        packed, pivots, permutation = lax.linalg.lu(jnp.concatenate([here, below]))
        rest = jnp.concatenate(
            [
                jnp.concatenate([next, zero, zero], axis=1),
                jnp.concatenate([own, above, eye], axis=1),
            ]
        )[permutation]
        top = lax.linalg.triangular_solve(
            packed[:k], rest[:k], left_side=True, lower=True, unit_diagonal=True
        )
        rest = rest[k:] - matmul(packed[k:], top)
        step_sign, step_log = lu_slogdet(packed, pivots)
        here, next, transform = jnp.split(rest, 3, axis=1)
        carry = here, next, sign * step_sign, logabsdet + step_log
        return carry, (here, next, transform)

    one = jnp.ones((), diagonal.dtype)
    start = diagonal[0], upper[0], one, jnp.zeros_like(one.real)
    rows = lower[1:], diagonal[1:], upper[1:]
    (last, _, sign, logabsdet), out = lax.scan(step, start, rows)
    packed, pivots, _ = lax.linalg.lu(last)
    step_sign, step_log = lu_slogdet(packed, pivots)
    first = diagonal[0], upper[0], eye
    here, next, own = jax.tree.map(
        lambda x, y: jnp.concatenate([x[None], y]), first, out
    )
    return BlockElimination(here, next, own, sign * step_sign, logabsdet + step_log)


def blocks_of_inverse(diagonal, lower, upper):
    """The three block diagonals of the inverse, and `(sign, logabsdet)`; O(N k³).

    Eliminated from both ends up to the cut between blocks i and i + 1, there are 2k
    equations left in (xᵢ, xᵢ₊₁). Their solution for right-hand sides in block rows i
    and i + 1 alone is the 2k×2k block of the inverse there.
    """
    pad = lambda x, before, after: jnp.pad(x, ((before, after), (0, 0), (0, 0)))
    lower, upper = pad(lower, 1, 0), pad(upper, 0, 1)
    ends = [
        jnp.stack([x, y[::-1]])
        for x, y in ((diagonal, diagonal), (lower, upper), (upper, lower))
    ]
    both = jax.vmap(eliminate_blocks)(*ends)
    forward = [x[0] for x in both[:3]]
    backward = [x[1][::-1] for x in both[:3]]
    result = both.sign[0], both.logabsdet[0]
    if diagonal.shape[0] == 1:
        return jnp.linalg.inv(diagonal), lower[1:], upper[:-1], *result
    (here, next, own), (here_, next_, own_) = (
        [x[:-1] for x in forward],
        [x[1:] for x in backward],
    )
    block = lambda a, b, c, d: jnp.concatenate(
        [jnp.concatenate([a, b], axis=2), jnp.concatenate([c, d], axis=2)], axis=1
    )
    zero = jnp.zeros_like(own)
    inverse = jnp.linalg.solve(
        block(here, next, next_, here_), block(own, zero, zero, own_)
    )
    k = diagonal.shape[1]
    centre = jnp.concatenate([inverse[:, :k, :k], inverse[-1:, k:, k:]])
    return centre, inverse[:, k:, :k], inverse[:, :k, k:], *result
