"""The tree along which unknowns are eliminated."""

from typing import NamedTuple

import numpy as np


class Tree(NamedTuple):
    """Sets of vertices that are eliminated together, children before parents.

    Vertices of a node are adjacent to those of its descendants, of its ancestors, and
    of the node itself alone. Node i has `members[i]` and the parent `parents[i]`, or
    -1.
    """

    members: list[np.ndarray]
    parents: np.ndarray
