"""Tags, as lineax takes them: one, or any number of them."""

import lineax as lx


def tag_set(tags: object) -> frozenset[object]:
    try:
        # A string would fall into its letters, and nobody would notice.
        found = frozenset([tags] if isinstance(tags, str) else tags)  # pyright: ignore
    except TypeError:
        found = frozenset([tags])
    for tag in found:
        if isinstance(tag, str) or callable(tag):
            raise ValueError(
                f"`tags` holds {tag!r}, which is no tag of lineax. Those are objects, "
                "such as `lineax.tridiagonal_tag` or `lineax.symmetric_tag`."
            )
    return found


def retagged(
    operator: lx.AbstractLinearOperator, tags: object
) -> lx.AbstractLinearOperator:
    """The same operator with these tags in place of its own; itself, if it is of a
    class of lineax that takes none."""
    if isinstance(operator, lx.JacobianLinearOperator):
        fn, x, args, jac = operator.fn, operator.x, operator.args, operator.jac
        return lx.JacobianLinearOperator(fn, x, args, tags, jac, closure_convert=False)
    if isinstance(operator, lx.FunctionLinearOperator):
        fn, structure = operator.fn, operator.in_structure()
        return lx.FunctionLinearOperator(fn, structure, tags, closure_convert=False)
    if isinstance(operator, lx.MatrixLinearOperator):
        return lx.MatrixLinearOperator(operator.matrix, tags)
    if isinstance(operator, lx.PyTreeLinearOperator):
        pytree, structure = operator.pytree, operator.out_structure()
        return lx.PyTreeLinearOperator(pytree, structure, tags)
    return operator


def definiteness(operator: lx.AbstractLinearOperator) -> int:
    """1, −1 or 0: positive semidefinite, negative semidefinite, or no such tag."""
    if lx.is_positive_semidefinite(operator):
        return 1
    return -1 if lx.is_negative_semidefinite(operator) else 0
