"""Where the windows of gathers, scatters, convolutions and reductions lie.

In NumPy, as a new shape costs 10 to 40 ms of compilation otherwise; compared with XLA's
own answers in `tests/test_patterns.py`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.lax as lax
import numpy as np


def indexed_windows(
    operand: Sequence[int],
    indices: np.ndarray | None,
    shape: Sequence[int],
    *,
    window_dims: Sequence[int],
    operand_window_dims: Sequence[int],
    index_dims: Sequence[int],
    batching: Mapping[int, int],
    clip: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Of a gather, or of the updates of a scatter, of this shape: for every entry the
    flat index in the operand, and whether its window is inside.

    **Arguments:**

    - `indices`: the last axis stands for `index_dims`, the axes of the operand that are
        indexed. `None`: not known. Then the operand has size one along these axes.
    - `window_dims`, `operand_window_dims`: axes of a window, here and in the operand.
    - `batching`: from axes of the operand to axes of the indices.
    - `clip`: whether a window that is not inside is moved there.
    """
    rank = len(shape)
    batch_dims = [d for d in range(rank) if d not in window_dims]
    sizes = dict.fromkeys(range(len(operand)), 1)
    sizes |= {d: shape[w] for d, w in zip(operand_window_dims, window_dims)}

    def along(dim, size):
        return np.arange(size).reshape([-1 if d == dim else 1 for d in range(rank)])

    flat, inside = np.zeros(shape, np.int64), np.ones(shape, bool)
    strides = [math.prod(operand[d + 1 :]) for d in range(len(operand))]
    for which, d in enumerate(index_dims):
        if indices is None:
            continue
        start = indices[..., which].astype(np.int64)
        room = operand[d] - sizes[d]
        if clip:
            start = np.clip(start, 0, max(room, 0))
        shaped = [1] * rank
        for axis, size in zip(batch_dims, start.shape):
            shaped[axis] = size
        start = start.reshape(shaped)
        inside &= (start >= 0) & (start <= room)
        flat += start * strides[d]
    for d, axis in batching.items():
        flat += along(batch_dims[axis], shape[batch_dims[axis]]) * strides[d]
    for d, w in zip(operand_window_dims, window_dims):
        if indices is not None or d not in index_dims:
            flat += along(w, shape[w]) * strides[d]
    return flat, inside


def scattered_windows(
    params: Mapping[str, Any],
    operand: Sequence[int],
    indices: np.ndarray | None,
    updates: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    """`indexed_windows` of the updates of a scatter, from the shapes of its inputs."""
    dims = params["dimension_numbers"]
    gone = {*dims.inserted_window_dims, *dims.operand_batching_dims}
    return indexed_windows(
        operand,
        indices,
        updates,
        window_dims=dims.update_window_dims,
        operand_window_dims=[d for d in range(len(operand)) if d not in gone],
        index_dims=dims.scatter_dims_to_operand_dims,
        batching=dict(
            zip(dims.operand_batching_dims, dims.scatter_indices_batching_dims)
        ),
        clip=params["mode"] == lax.GatherScatterMode.CLIP,
    )


def sliding(
    size: int,
    outs: int,
    window: int,
    *,
    stride: int = 1,
    before: int = 0,
    base_dilation: int = 1,
    dilation: int = 1,
) -> np.ndarray:
    """`[out, k]`: the index that position k of a window reads along an axis of `size`,
    -1 where it reads padding."""
    at = np.arange(outs)[:, None] * stride + np.arange(window)[None, :] * dilation
    at = at - before
    read = (at >= 0) & (at % base_dilation == 0) & (at < size * base_dilation)
    read &= at // base_dilation < size
    return np.where(read, at // base_dilation, -1)


def outer_index(
    axes: Sequence[tuple[np.ndarray, Sequence[int]]],
    sizes: Sequence[int],
    shape: Sequence[int],
) -> np.ndarray:
    """A flat index into an array of these sizes, -1 where any axis has a -1.

    Each of `axes` is an index along one axis, and the dimensions of the result, which
    has this shape, that it runs over.
    """
    flat, valid = np.zeros(shape, np.int64), np.ones(shape, bool)
    for (index, dims), stride in zip(axes, _strides(sizes)):
        shaped = [1] * len(shape)
        for dim, size in zip(dims, index.shape):
            shaped[dim] = size
        index = index.reshape(shaped)
        flat += index * stride
        valid &= index >= 0
    return np.where(valid, flat, -1)


def _strides(sizes: Sequence[int]) -> list[int]:
    return [math.prod(sizes[d + 1 :]) for d in range(len(sizes))]
