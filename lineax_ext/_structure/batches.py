"""Rules of what mixes a whole line or batch element: sorting, FFTs, linear algebra."""

from collections.abc import Sequence

from .index_sets import accumulate, IndexSets, summed, union
from .rules import linear, rule, shape_of
from .values import unknown


def _spread(x: IndexSets, axes: Sequence[int], shape) -> IndexSets:
    """The union along axes, everywhere along the same axes of an array of this shape,
    which may have other sizes there."""
    x = summed(x, axes, keepdims=True)
    return x.broadcast(shape)


@rule("sort")
def sort(eqn, ins):
    axes, keys = (eqn.params["dimension"],), eqn.params["num_keys"]
    shape, outs = shape_of(eqn.outvars[0]), []
    for x in ins:
        found = linear([*ins[:keys], x])
        if not found:
            outs.append(unknown)  # sorted with others, it is not what it was
        else:
            outs.append(_spread(union(found, shape), axes, shape))
    return outs


@rule("top_k approx_top_k")
def top_k(eqn, ins):
    axis = eqn.params.get("reduction_dimension", eqn.params.get("axis", -1))
    axis = axis % len(ins[0].shape)
    out = summed(ins[0], (axis,), keepdims=True)
    return [out.broadcast(shape_of(x)) for x in eqn.outvars]


@rule("fft")
def fft(eqn, ins):
    (x,) = ins
    count = len(eqn.params["fft_lengths"])
    axes = range(len(x.shape) - count, len(x.shape))
    return [_spread(x, axes, shape_of(eqn.outvars[0]))]


@rule("triangular_solve")
def triangular_solve(eqn, ins):
    matrix, b = ins
    if isinstance(matrix, IndexSets):
        return batched(eqn, ins)
    params = eqn.params
    axis = len(b.shape) - (2 if params["left_side"] else 1)
    # Substitution: forwards for a lower triangle from the left.
    turns = (params["lower"], params["transpose_a"], params["left_side"])
    forwards = (turns.count(False)) % 2 == 1
    return [accumulate(b, axis, reverse=not forwards)]


@rule("""
    cholesky cholesky_update lu lu_pivots_to_permutation qr geqrf geqp3 eigh eig svd
    householder_product ormqr schur hessenberg tridiagonal tridiagonal_solve
""")
def batched(eqn, ins):
    """Linear algebra: whatever the batch element has, and nothing of the others."""
    vectors = ("lu_pivots_to_permutation", "tridiagonal_solve")
    count = 1 if eqn.primitive.name in vectors else 2
    ranks = {len(shape_of(x)) for x in eqn.invars}
    batch = shape_of(eqn.invars[0])[: len(shape_of(eqn.invars[0])) - count]
    deep = len(batch)
    if min(ranks) < deep or any(shape_of(x)[:deep] != batch for x in eqn.invars):
        return None
    found = [summed(x, range(deep, len(x.shape))) for x in linear(ins)]
    whole = union(found, batch)
    outs = []
    for out in eqn.outvars:
        shape = shape_of(out)
        if shape[:deep] != batch:
            return None
        spread = (*batch, *(1,) * (len(shape) - deep))
        moved = whole.map(lambda p, s=spread: p.reshape(s), spread)
        outs.append(moved.broadcast(shape))
    return outs
