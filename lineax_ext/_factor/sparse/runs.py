"""Operations on entries that stand next to each other, several a step."""

import numpy as np


def sweep(rows: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, int]:
    """Of each step of a substitution the row of its first entry, the column of all, and
    8 times the place of the first, and how many it has; and their width.

    A step of four takes twice as long as one.

    **Arguments:**

    - `rows`, `cols`: of the entries below the diagonal, by column.
    """
    count = len(rows)
    column = np.append(True, cols[1:] != cols[:-1])[:count]
    width, (first, number) = 4, _pieces(column, np.arange(count), rows, 4)
    if 2 * len(first) > count:
        width, (first, number) = 1, _pieces(column, np.arange(count), rows, 1)
    steps = np.stack([rows[first], cols[first], 8 * first + number])
    return steps.astype(np.int32), width


def _pieces(
    new: np.ndarray, source: np.ndarray, target: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first operation of each step, and how many it has: up to `width`, of which
    none is `new` but the first, and sources and targets stand next to each other."""
    count = len(new)
    apart = np.append(True, (np.diff(source) != 1) | (np.diff(target) != 1))[:count]
    runs = np.flatnonzero(new | apart)
    length = np.diff(np.append(runs, count))
    pieces = -(-length // width)
    within = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    first = np.repeat(runs, pieces) + width * within
    return first, np.minimum(width, np.repeat(length, pieces) - width * within)
