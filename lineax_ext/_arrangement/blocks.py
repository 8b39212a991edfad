"""Blocks on the diagonal: the connected components of the unknowns."""

import jax
import jax.numpy as jnp
import numpy as np

from .._factor.block_inverse import block_inverse
from .._factor.checked_lu import checked_lu
from .._factor.small_lu import small_lu
from . import cost
from .arrangement import AbstractArrangement, Order
from .entries import ONE, ZERO
from .ordering import components, is_full


# Blocks are eliminated all at once, or inverted, up to these sizes; larger ones go to
# LAPACK one by one.
_WRITTEN_OUT = 4
_INVERTED = 16


class Blocks(AbstractArrangement):
    """Each component in a block of the size of the largest one: O(n k²).

    Place `within · count + number` is that of an unknown within its block: small blocks
    want to lie along the last axis, see `SmallLU`.
    """

    kind = "blocks"

    def __init__(self, pattern, rows, labels):
        n, _ = pattern.shape
        self.key = self.pattern = pattern
        sizes = np.bincount(labels)
        self.count, self.block = len(sizes), int(sizes.max())
        columns = np.full((self.block, self.count), n)
        sorted_ = np.argsort(labels, kind="stable")
        within = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        columns[within, labels[sorted_]] = sorted_
        columns = columns.reshape(-1)
        self.order = Order(np.append(rows, n)[columns], columns, n)
        price = cost.small_blocks if self.block <= _INVERTED else cost.block_lu
        self.cost = price(self.count, self.block)

    @classmethod
    def analyse(cls, pattern):
        if is_full(pattern):
            return None
        rows, labels = components(pattern)
        sizes = np.bincount(labels)
        wasteful = len(sizes) * sizes.max() > 2 * pattern.shape[1]
        return None if wasteful else cls(pattern, rows, labels)

    def factor(self, entries):
        k, count = self.block, self.count
        layout = np.full((k, k, count), ZERO)
        (empty,) = np.nonzero(self.order.rows == self.pattern.shape[0])
        layout[empty // count, empty // count, empty % count] = ONE
        i = self.order.row_places[self.pattern.rows]
        j = self.order.column_places[self.pattern.cols]
        layout[i // count, j // count, j % count] = np.arange(len(self.pattern))
        if k <= _WRITTEN_OUT:
            return small_lu(entries.laid_out(layout))
        if k <= _INVERTED:
            return block_inverse(entries.laid_out(layout))
        return jax.vmap(checked_lu)(entries.laid_out(np.moveaxis(layout, 2, 0)))

    def solve(self, factors, b, transposed):
        b = self.order.into(b, transposed).reshape(self.block, self.count)
        if self.block <= _INVERTED:
            x = factors.solve(b, transposed)
        else:
            x = jax.vmap(lambda lu, b: lu.solve(b, transposed))(factors, b.T).T
        x = self.order.out_of(x.reshape(-1), transposed)
        return x, jnp.any(factors.singular)
