"""What an elimination takes from what, for columns with the same rows together.

Ashcraft, Grimes: The influence of relaxed supernode partitions on the multifrontal
method. ACM Transactions on Mathematical Software 15, 1989, doi:10.1145/76909.76910
"""

from typing import NamedTuple

import numpy as np


class Supernodes(NamedTuple):
    """Of the entries of a factor, on and below its diagonal, the places in an array.

    The columns of a supernode, each the neighbour of the one before, have the same rows
    below their diagonals but for each other. They are the rows of a rectangle, so that
    entries of one row of the factor are `stride` places apart. Place `diagonal[j]` is
    that of pivot j, `below` are those of the others, by column. There are `size`.

    After pivot j is known, a run r of those from `columns[j]` on is eliminated with
    `number[j]` columns, those of the supernode up to j: the `length[r]` entries of
    column i from the place `source[r] + i * stride[j]` on, times the one at
    `factor[r] + i * stride[j]`, are taken from those from `target[r]` on.
    """

    diagonal: np.ndarray
    below: np.ndarray
    size: int
    stride: np.ndarray
    number: np.ndarray
    columns: np.ndarray
    source: np.ndarray
    factor: np.ndarray
    target: np.ndarray
    length: np.ndarray


def supernodes(n: int, rows: np.ndarray, cols: np.ndarray) -> Supernodes:
    """Those of the entries below the diagonal in `rows`, `cols`, by column.

    Cost: O(Σ u²) over supernodes with u rows below.
    """
    count = np.bincount(cols, minlength=n)
    start = np.cumsum(count) - count
    parent = np.full(n, n)
    has = np.flatnonzero(count)
    parent[has] = rows[start[has]]
    joins = (parent[:-1] == np.arange(1, n)) & (count[:-1] == count[1:] + 1)
    heads = np.flatnonzero(np.append(True, ~joins)[:n])
    ends = np.append(heads[1:], n)[: len(heads)]
    p = ends - heads
    node = np.repeat(np.arange(len(p)), p)
    number = np.arange(n) - heads[node] + 1
    u = count[ends - 1]
    stride = p + u
    corner = np.cumsum(p * stride) - p * stride
    diagonal = corner[node] + (number - 1) * (stride[node] + 1)
    below = diagonal[cols] + 1 + np.arange(len(cols)) - start[cols]

    # From the column of the a-th row below a supernode, what that has from there on.
    s, a = _ranges(u)
    k = rows[start[ends[s] - 1] + a]
    pair, further = _ranges(u[s] - a)
    last = ends[s[pair]] - 1
    i = rows[start[last] + a[pair] + further]
    at = np.searchsorted(cols * n + rows, k[pair] * n + i)
    target = np.where(further == 0, diagonal[k[pair]], np.append(below, 0)[at])
    new = (further == 0) | (np.diff(target, prepend=-2) != 1)
    run = np.flatnonzero(new)
    length = np.diff(np.append(run, len(pair)))
    s, a, further = s[pair[run]], a[pair[run]], further[run]
    edge = corner[s] + p[s] + a
    # And the next column of the supernode, all of it.
    inner = np.flatnonzero(number > 1)
    own = corner[node[inner]] + number[inner] - 1
    step = np.append(ends[s] - 1, inner - 1)
    turn = np.argsort(step, kind="stable")
    source, factor, target, length = (
        np.append(x, y)[turn]
        for x, y in (
            (edge + further, own),
            (edge, own),
            (target[run], diagonal[inner]),
            (length, stride[node[inner]] - number[inner] + 1),
        )
    )
    columns = np.searchsorted(step[turn], np.arange(n + 1))
    size, stride = int((p * stride).sum()), stride[node]
    return Supernodes(
        diagonal, below, size, stride, number, columns, source, factor, target, length
    )


class Steps(NamedTuple):
    """Runs in pieces of up to some entries, as numbers in a row.

    Of pivot j, `pivots[3 j:]` are its place, its stride and its number; its pieces are
    from `columns[j]` on. Of piece k, `places[3 k:]` are 32 times its source and how
    many entries it has, its target, and its factor.
    """

    pivots: np.ndarray
    columns: np.ndarray
    places: np.ndarray


def steps(plan: Supernodes, width: int) -> Steps:
    """Those of up to `width` entries."""
    pieces = -(-plan.length // width)
    run, which = _ranges(pieces)
    number = np.minimum(width, plan.length[run] - width * which)
    source = 32 * (plan.source[run] + width * which) + number
    places = source, plan.target[run] + width * which, plan.factor[run]
    columns = np.append(0, np.cumsum(pieces))[plan.columns]
    pivots = plan.diagonal, plan.stride, plan.number
    return Steps(_in_a_row(*pivots), _in_a_row(columns), _in_a_row(*places))


def changes(plan: Supernodes, width: int) -> int:
    """Of pieces of up to `width`, each once by every column it is eliminated with."""
    each = np.repeat(plan.number, np.diff(plan.columns))
    return int((-(-plan.length // width) * each).sum())


def _in_a_row(*columns: np.ndarray) -> np.ndarray:
    return np.stack(columns, axis=1).astype(np.int32).reshape(-1)


def _ranges(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers from 0 to each length, all in a row, and of which they are."""
    which = np.repeat(np.arange(len(lengths)), lengths)
    before = np.cumsum(lengths) - lengths
    return which, np.arange(len(which)) - before[which]
