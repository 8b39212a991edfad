"""What is known of an operator's sparsity before a single entry is read."""

import lineax as lx


def bandwidth(operator: lx.AbstractLinearOperator) -> tuple[int, int] | None:
    """The `(lower, upper)` bandwidth that the operator's tags imply, if they imply one.

    Tags are combined: tridiagonal and upper triangular is upper bidiagonal, `(0, 1)`;
    lower and upper triangular is diagonal.
    """
    lower_triangular = lx.is_lower_triangular(operator)
    upper_triangular = lx.is_upper_triangular(operator)
    if lx.is_diagonal(operator) or (lower_triangular and upper_triangular):
        return 0, 0
    if lx.is_tridiagonal(operator):
        return int(not upper_triangular), int(not lower_triangular)
    return None
