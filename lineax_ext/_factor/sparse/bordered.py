"""Many small blocks that only a border joins: Cholesky's method by Schur complement.

A = [V Wᴴ; W C], where V is block diagonal: the points of a bundle adjustment, that
cameras see and that do not see each other. With V = L Lᴴ and Y = L⁻¹ Wᴴ, what is left
of the border is the dense matrix S = C − Yᴴ Y. Blocks are eliminated written out, over
all at once, and Yᴴ Y is a product for each cluster of blocks with alike neighbours.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np
from jaxtyping import Array, Bool, Inexact, Real

from ..._structure.known import locate, lower_half
from ..._structure.pattern import Pattern
from ..product import matmul


_BLOCK = 4  # unknowns of a block
_BORDER = 1000  # unknowns of the border
_NEAR = 2**27  # pairs of a block and one of those, which are looked at


class Bordered:
    """The analysis of a pattern: compares and hashes by value. Made by `bordered`.

    `members[c, b, i]`: unknown i of block b of cluster c, or n where there is none.
    `border`: the other unknowns. `near[c, j]`: the place in `border` of the j-th that
    cluster c is adjacent to, or its length. `diagonal`, `rows`: which entry of the
    lower half of the pattern is where in V and in Wᴴ; beyond them are a zero and a one.
    `turned`: which of `rows` is above the diagonal. `corner`: entries of C in the lower
    half, and `corner_at` where they are in it.
    `back`: where each unknown is in that order.

    `seconds`: what a factorisation takes, roughly; `fill`: the entries of its factors.
    """

    def __init__(self, pattern: Pattern, clusters: "_Clusters"):
        n = pattern.shape[0]
        members, border, near, seconds = clusters
        self.pattern = pattern
        self.members, self.border, self.near = members, border, near
        self.seconds = seconds
        lower = lower_half(pattern)
        zero, one = len(lower), len(lower) + 1

        def find(i, j):
            i, j = np.broadcast_arrays(i, j)
            there = np.maximum(i, j) < n
            at = locate(lower, *(np.where(there, x, 0).ravel() for x in (i, j)))
            return np.where(there, at.reshape(i.shape), zero)

        block = np.moveaxis(members, 2, 0)
        i, j = np.broadcast_arrays(block[:, None], block[None])
        diagonal = find(np.maximum(i, j), np.minimum(i, j))
        own = np.arange(len(block))
        diagonal[own, own] = np.where(block == n, one, diagonal[own, own])
        self.diagonal = diagonal.astype(np.int32)
        i, j = np.broadcast_arrays(
            members[..., None], np.append(border, n)[near][:, None, None]
        )
        self.rows = find(np.maximum(i, j), np.minimum(i, j)).astype(np.int32)
        self.turned = i < j
        place = np.full(n + 1, -1)
        place[border] = np.arange(len(border))
        i, j = place[lower.rows], place[lower.cols]
        self.corner = np.flatnonzero((i >= 0) & (j >= 0)).astype(np.int32)
        self.corner_at = i[self.corner], j[self.corner]
        order = np.concatenate([members.ravel(), border])
        back = np.zeros(n + 1, np.int32)
        back[order] = np.arange(len(order))
        self.back = back[:n]
        self.fill = self.diagonal.size + self.rows.size + len(border) ** 2

    def __eq__(self, other):
        if not isinstance(other, Bordered):
            return NotImplemented
        return self.pattern == other.pattern

    def __hash__(self):
        return hash((Bordered, self.pattern))

    def __repr__(self):
        blocks, border = self.members.shape[:2], len(self.border)
        return f"Bordered({self.pattern}, blocks={blocks}, border={border})"


class _Clusters(NamedTuple):
    members: np.ndarray
    border: np.ndarray
    near: np.ndarray
    seconds: float


def bordered(pattern: Pattern) -> Bordered | None:
    """The blocks and the border of a symmetric pattern with a diagonal, or `None` if
    the border is long.

    Unknowns with the same neighbours are one block. Blocks that are not adjacent are
    taken greedily, those with the fewest neighbours first.

    Cost: O(entries) and a sort of the blocks.
    """
    from .matching import graph as graph_of
    from .ordering import indistinguishable

    n = pattern.shape[0]
    if n == 0:
        return None
    graph = graph_of(pattern.rows, pattern.cols, n)
    group = indistinguishable(graph)
    chosen = _independent(graph, group)
    border = np.flatnonzero(~np.isin(group, chosen))
    if len(border) > _BORDER or not 0 < len(chosen) * len(border) <= _NEAR:
        return None
    return Bordered(pattern, _clustered(graph, group, chosen, border))


def _independent(graph: Any, group: np.ndarray) -> np.ndarray:
    """Small groups of which no two are adjacent."""
    size = np.bincount(group)
    first = np.unique(group, return_index=True)[1]
    degree = np.diff(graph.indptr)[first]
    blocked = size > _BLOCK
    chosen = []
    for g in np.argsort(degree, kind="stable").tolist():
        if not blocked[g]:
            chosen.append(g)
            i = first[g]
            blocked[group[graph.indices[graph.indptr[i] : graph.indptr[i + 1]]]] = True
    return np.array(chosen, np.int64)


def _clustered(
    graph: Any, group: np.ndarray, chosen: np.ndarray, border: np.ndarray
) -> _Clusters:
    """Blocks that have alike neighbours next to each other, cut where that is predicted
    to cost least: there are up to `length` of them in a cluster, and up to `most`
    neighbours."""
    n, count, size = len(group), len(chosen), np.bincount(group)
    order = np.argsort(group, kind="stable")
    start = np.cumsum(size) - size
    near = graph[order[start[chosen]]][:, border].astype(bool).toarray()
    masks = [int.from_bytes(row.tobytes()) for row in np.packbits(near, axis=1)]
    turn = sorted(range(count), key=masks.__getitem__)
    chosen, near, masks = chosen[turn], near[turn], [masks[b] for b in turn]
    k = int(size[chosen].max())
    least = int(near.sum(axis=1).max())

    best = np.inf, np.zeros(0, np.int64), 0
    for most in {least, 3 * least // 2, 2 * least, 4 * least, len(border)}:
        starts, u = _runs(masks, most)
        lengths = np.diff(np.append(starts, count))
        for length in {2**i for i in range(count.bit_length())} | {int(lengths.max())}:
            pieces = -(-lengths // length)
            total = int(pieces.sum())
            seconds = _seconds(total, length * k, u, len(border))
            if seconds < best[0]:
                within = np.arange(total) - np.repeat(
                    np.cumsum(pieces) - pieces, pieces
                )
                best = seconds, np.repeat(starts, pieces) + length * within, length
    seconds, starts, length = best
    number = np.zeros(count, np.int64)
    number[starts[1:]] = 1
    number = np.cumsum(number)
    within = np.arange(count) - starts[number]
    members = np.full((len(starts), length, k), n, np.int32)
    for i in range(k):
        has = np.flatnonzero(size[chosen] > i)
        members[number[has], within[has], i] = order[start[chosen[has]] + i]
    near = np.logical_or.reduceat(near, starts)
    cluster, to = np.nonzero(near)
    slot = (np.cumsum(near, axis=1) - 1)[cluster, to]
    beside = np.full(
        (len(starts), int(slot.max(initial=-1)) + 1), len(border), np.int32
    )
    beside[cluster, slot] = to
    return _Clusters(members, border, beside, seconds)


def _runs(masks: list[int], most: int) -> tuple[np.ndarray, int]:
    """Where to start anew, not to have more than `most` neighbours; the most there
    are."""
    starts, union, largest = [0], masks[0], 0
    for b, mask in enumerate(masks):
        if (union | mask).bit_count() > most:
            starts.append(b)
            union = mask
        union |= mask
        largest = max(largest, union.bit_count())
    return np.array(starts), largest


def _seconds(clusters: int, rows: int, u: int, border: int) -> float:
    """Measured, ms: 2000 blocks of 3 beside 120 unknowns, in 20 clusters 2.4 (predicted
    1.6), each by itself 5.2 (7.7); 5000 beside 600, in 102 clusters, 8.7 (9.0); 4000
    beside 960, in 169, 24 (21)."""
    gathered, added = clusters * rows * u, clusters * u**2
    return 1e-6 * (
        60
        + clusters
        + 3e-3 * gathered
        + 1e-4 * gathered * u
        + 2.5e-3 * added
        + 4e-3 * border**2
        + 1.7e-5 * border**3
    )


class BorderedFactors(eqx.Module):
    """What `factor` returns: L by columns of its blocks, Y, and Cholesky's factor of S.

    `raised`, `failed`: as those of `Factors`.
    """

    lower: Inexact[Array, "k k clusters blocks"]
    rows: Inexact[Array, "clusters blocks k near"]
    corner: Inexact[Array, "border border"]
    raised: Bool[Array, ""]
    failed: Bool[Array, ""]


def factor_bordered(
    plan: Bordered,
    half: Inexact[Array, " half"],
    weight: Real[Array, " n"],
    more: Real[Array, " n"],
) -> BorderedFactors:
    """That of a Hermitian matrix T A T + E with a diagonal of about one, of A the lower
    `half` of its entries, of diagonal T and E the `weight` and `more`.

    A pivot of a block that is too small is raised; a corner of which one is no more
    than a rounding error gets more on its whole diagonal.
    """
    dtype, real = half.dtype, weight.dtype
    eps = float(jnp.finfo(real).eps)
    least = jnp.asarray(eps**0.5, real)
    source = jnp.concatenate([half, jnp.array([0, 1], dtype)])
    take = lambda x, index: x.at[index].get(mode="promise_in_bounds")
    padded_weight = jnp.append(weight, 1)
    block = np.moveaxis(plan.members, 2, 0)
    own = take(padded_weight, block)
    diagonal = take(source, plan.diagonal) * (own[:, None] * own[None]).astype(dtype)
    k, size = len(block), len(plan.border)
    on = np.arange(k)
    diagonal = diagonal.at[on, on].add(take(jnp.append(more, 0), block).astype(dtype))
    edge = jnp.append(take(weight, plan.border), 0)
    beside = take(edge, plan.near)
    rows = take(source, plan.rows)
    rows = jnp.where(plan.turned, jnp.conj(rows), rows)
    own = take(padded_weight, plan.members)
    rows = rows * (own[..., None] * beside[:, None, None]).astype(dtype)
    lower, pivots = _cholesky(diagonal, least)
    y = _forward(lower[..., None], jnp.moveaxis(rows, 2, 0))
    y = jnp.moveaxis(y, 0, 2)
    clusters, blocks, k, u = y.shape
    flat = y.reshape(clusters, blocks * k, u)
    update = matmul(jnp.conj(flat.mT), flat)
    # With a row and a column for what the clusters do not have.
    corner = jnp.zeros((size + 1, size + 1), dtype)
    corner = corner.at[plan.corner_at].set(take(half, plan.corner), unique_indices=True)
    corner = corner * (edge[:, None] * edge[None]).astype(dtype)
    corner = corner + jnp.diag(jnp.append(take(more, plan.border), 0)).astype(dtype)
    at = plan.near[:, :, None], plan.near[:, None, :]
    corner = corner.at[at].add(-update, mode="promise_in_bounds")[:size, :size]
    attempt = lambda amount: jnp.linalg.cholesky(
        corner + amount * jnp.eye(size, dtype=dtype), symmetrize_input=False
    )
    factored = attempt(0)
    diagonal = jnp.diagonal(factored).real ** 2
    smallest = jnp.min(diagonal, initial=1)
    regular = smallest > 100 * eps  # and no NaN
    factored = lax.cond(regular, lambda: factored, lambda: attempt(least.astype(dtype)))
    raised = jnp.any(pivots <= least) | ~(smallest > least)
    failed = ~jnp.all(jnp.isfinite(jnp.diagonal(factored)))
    return BorderedFactors(lower, y, factored, raised, failed)


def _cholesky(a: Inexact[Array, "k k ..."], least: Array):
    """Of each block; and the pivots, before they are raised."""
    k = len(a)
    zero = jnp.zeros_like(a[0, 0])
    lower = [[zero] * k for _ in range(k)]
    pivots = []
    for j in range(k):
        square = a[j, j].real - sum(jnp.abs(x) ** 2 for x in lower[j][:j])
        pivots.append(square)
        root = jnp.sqrt(jnp.maximum(square, least)).astype(a.dtype)
        lower[j][j] = root
        for i in range(j + 1, k):
            taken = sum(lower[i][q] * jnp.conj(lower[j][q]) for q in range(j))
            lower[i][j] = (a[i, j] - taken) / root
    return jnp.stack([jnp.stack(row) for row in lower]), jnp.stack(pivots)


def _forward(lower, b: Inexact[Array, "k ..."]):
    """L⁻¹ b of each block."""
    x = []
    for i in range(len(b)):
        taken = sum(lower[i, j] * x[j] for j in range(i))
        x.append((b[i] - taken) / lower[i, i])
    return jnp.stack(x)


def _backward(lower, b: Inexact[Array, "k ..."]):
    """L⁻ᴴ b of each block."""
    k = len(b)
    x = list(b)
    for i in reversed(range(k)):
        taken = sum(jnp.conj(lower[j, i]) * x[j] for j in range(i + 1, k))
        x[i] = (b[i] - taken) / lower[i, i]
    return jnp.stack(x)


def substitute(
    plan: Bordered, factors: BorderedFactors, b: Inexact[Array, " n"]
) -> Inexact[Array, " n"]:
    """A⁻¹ b: O(fill)."""
    clusters, blocks, k, u = factors.rows.shape
    y = factors.rows.reshape(clusters, blocks * k, u)
    padded = jnp.concatenate([b, jnp.zeros((1,), b.dtype)])
    take = lambda x, index: x.at[index].get(mode="promise_in_bounds")
    own = _forward(factors.lower, take(padded, np.moveaxis(plan.members, 2, 0)))
    flat = jnp.moveaxis(own, 0, 2).reshape(clusters, blocks * k, 1)
    update = matmul(jnp.conj(y.mT), flat)[..., 0]
    corner = take(padded, np.append(plan.border, len(b)))
    corner = corner.at[plan.near].add(-update, mode="promise_in_bounds")[:-1]
    corner = jsl.cho_solve((factors.corner, True), corner)
    beside = take(jnp.append(corner, 0), plan.near)
    flat = flat - matmul(y, beside[..., None])
    own = jnp.moveaxis(flat.reshape(clusters, blocks, k), 2, 0)
    own = jnp.moveaxis(_backward(factors.lower, own), 0, 2)
    return take(jnp.concatenate([own.reshape(-1), corner]), plan.back)
