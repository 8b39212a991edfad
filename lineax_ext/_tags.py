"""Tags, as lineax takes them: one, or any number of them."""

import lineax as lx


def tag_set(tags: object) -> frozenset[object]:
    try:
        return frozenset(tags)  # pyright: ignore[reportArgumentType]
    except TypeError:
        return frozenset([tags])


def definiteness(operator: lx.AbstractLinearOperator) -> int:
    """1, −1 or 0: positive semidefinite, negative semidefinite, or no such tag."""
    if lx.is_positive_semidefinite(operator):
        return 1
    return -1 if lx.is_negative_semidefinite(operator) else 0
