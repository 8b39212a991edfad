"""The Gram operator of a linear map, or of the Jacobian of a function of samples."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Inexact, PyTree, ScalarLike, Shaped

from .._flat import is_complex, ravel, result_dtype, tree_size, unravel
from .._materialise import as_matrix
from .._structure.extract import (
    basis_vector,
    map_chunked,
    read_diagonals,
    reader,
    sum_chunked,
    untagged,
)
from .damped import as_inexact, as_real_inexact, check_damping, is_concrete, root
from .samples import (
    sample_count,
    samples_of,
    Samplewise,
    scale_samples,
    split_complex,
    square,
    subtract_mean,
)


_NEGATIVE = (
    "`GramLinearOperator`: `weights` and `shift` must be non-negative and finite, or "
    "the operator is not positive semidefinite."
)


def _check_weights(
    weights: ArrayLike, out_structure: PyTree[jax.ShapeDtypeStruct]
) -> Float[Array, " samples"]:
    weights = as_real_inexact(weights, "weights")
    count = sample_count(out_structure)
    if weights.shape != (count,):
        raise ValueError(
            "`GramLinearOperator(weights=...)` needs one weight for each sample, the "
            f"shape {(count,)}; found {weights.shape}."
        )
    if not is_concrete(weights):
        invalid = ~((weights >= 0) & (weights < jnp.inf))
        return eqx.error_if(weights, invalid, _NEGATIVE)
    values = np.asarray(weights)
    if not np.all((values >= 0) & np.isfinite(values)):
        raise ValueError(_NEGATIVE)
    return weights


def _check_shift(shift: ScalarLike) -> Float[Array, ""]:
    shift = check_damping(shift, "shift")
    if is_concrete(shift):
        return shift
    return eqx.error_if(shift, ~((shift >= 0) & (shift < jnp.inf)), _NEGATIVE)


def _over_one_field(operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
    """`operator`, of which complex outputs of real parameters are split in two."""
    params, outputs = operator.in_structure(), operator.out_structure()
    iscomplex = lambda x: jnp.issubdtype(x.dtype, jnp.complexfloating)
    complex_params = set(map(iscomplex, jtu.tree_leaves(params)))
    complex_outputs = set(map(iscomplex, jtu.tree_leaves(outputs)))
    if len(complex_params) > 1 or (True in complex_params and False in complex_outputs):
        raise ValueError(
            "`GramLinearOperator` was given an operator from complex to real leaves, "
            "or from both kinds, which is linear over the reals only. Write the "
            "complex ones as their real and imaginary parts."
        )
    if complex_params == {True} or True not in complex_outputs:
        return operator
    if isinstance(operator, lx.JacobianLinearOperator):
        split = lambda x, args: split_complex(operator.fn(x, args))
        return lx.JacobianLinearOperator(
            split, operator.x, operator.args, jac=operator.jac
        )
    operator = lx.linearise(operator)
    split = lambda x: split_complex(operator.mv(x))
    return lx.FunctionLinearOperator(split, params)


class _Outputs(eqx.Module):
    """x ↦ S C A x, with S = diag(scale), as `lx.JacobianLinearOperator` takes it."""

    gram: "GramLinearOperator"
    scale: Float[Array, " samples"] | None

    def __call__(self, x, args):
        forward, _ = _linear_maps(self.gram)
        return scale_samples(self.scale, self.gram.centred(forward.mv(x)))


class GramLinearOperator(lx.AbstractLinearOperator):
    """The operator G = (C A)ᴴ W (C A) + shift · I, positive semidefinite.

    A maps parameters to outputs, whose leading axis is that of the samples. There,
    W = diag(weights), and C = I − 1 pᵀ subtracts the mean, with p = weights / Σ weights.
    With A the Jacobian of a function, G is

    - the Gauss–Newton matrix of ½ Σₛ weightsₛ ‖fₛ‖²;
    - the Fisher information, or natural-gradient metric, of a categorical distribution,
        if f = 2 √probabilities, and of any exponential family, if A and `weights` are
        chosen to match;
    - with `centre=True` and weights 1/m, the quantum geometric tensor of stochastic
        reconfiguration, if f = log ψ.

    Parameters are all real, or all complex. For complex parameters A is holomorphic;
    with real ones and complex outputs G = Re((C A)ᴴ W (C A)) + shift · I.

    Applying G costs one application of A and one of Aᵀ. The Jacobian of a function is
    linearised once, and the transpose taken from that; `lx.linearise`, which `lx.CG`
    and its like call, keeps both. The centring is done once, after A, because
    Cᵀ W C = W C.

    `lx.diagonal`, for a Jacobi preconditioner, never makes a matrix of n×n. It costs
    min(n, outputs) applications of A; with `from_samples`
    as much as the gradients of all samples, which is one or two applications of G.
    `lx.materialise` keeps the dense Jacobian, not G: O(m n) memory.

    !!! Example

        ```python
        gram = lxe.GramLinearOperator(operator, shift=1e-3)
        preconditioner = lx.TaggedLinearOperator(
            lx.DiagonalLinearOperator(1 / lx.diagonal(gram)),
            lx.positive_semidefinite_tag,
        )
        cg = lx.CG(rtol=1e-8, atol=1e-8)
        options = {"preconditioner": preconditioner}
        step = lx.linear_solve(gram, operator.T.mv(vector), cg, options).value
        ```

    **Arguments:**

    - `operator`: A, any linear operator. Complex outputs of real parameters are kept as
        their real and imaginary parts, along a new last axis.
    - `weights`: the diagonal of W, real, non-negative, of shape `(samples,)`. They need
        not sum to one. Default: ones.
    - `centre`: whether to subtract the mean over the samples; if not, C = I.
    - `shift`: real, non-negative.

    With `weights` or `centre`, all leaves of the output of A have the samples as their
    leading axis; without, they may have any shape.

    **Raises:**

    `ValueError` for an output that is empty, or has no common leading axis; for
    `weights` of another shape; for a mixture of real and complex parameters; and for a
    weight or a shift that is negative or not finite. Where the values are only known at
    run time, as under `jit`, that is an `equinox.EquinoxRuntimeError`.

    ??? cite "References"

        Amari, *Natural gradient works efficiently in learning*, Neural Computation 10
        (1998), doi:10.1162/089976698300017746. Sorella, *Green function Monte Carlo with
        stochastic reconfiguration*, Physical Review Letters 80 (1998),
        doi:10.1103/PhysRevLett.80.4558. One linearisation for all products, and the
        mean taken out after the JVP: Vicentini et al., *NetKet 3*, SciPost Physics
        Codebases 7 (2022), doi:10.21468/SciPostPhysCodeb.7.
    """

    operator: lx.AbstractLinearOperator
    weights: Float[Array, " samples"] | None
    shift: Float[Array, ""]
    # A and Aᵀ, once linearised. `operator` stays: its rows may be cheaper to read.
    maps: tuple[lx.AbstractLinearOperator, lx.AbstractLinearOperator] | None
    centre: bool = eqx.field(static=True)

    def __init__(
        self,
        operator: lx.AbstractLinearOperator,
        *,
        weights: ArrayLike | None = None,
        centre: bool = False,
        shift: ScalarLike = 0.0,
    ):
        outputs = operator.out_structure()
        if centre:
            sample_count(outputs)
        self.weights = None if weights is None else _check_weights(weights, outputs)
        if tree_size(outputs) == 0:
            raise ValueError(
                "`GramLinearOperator` was given an operator without outputs: the batch "
                "is empty."
            )
        self.operator = _over_one_field(operator)
        self.shift = _check_shift(shift)
        self.maps = None
        self.centre = centre

    @classmethod
    def from_samples(
        cls,
        fn: Callable[[PyTree[Array], PyTree[Array]], PyTree[Array]],
        params: PyTree[ArrayLike],
        samples: PyTree[Shaped[ArrayLike, "samples ..."]],
        *,
        weights: ArrayLike | None = None,
        centre: bool = False,
        shift: ScalarLike = 0.0,
        chunk_size: int | None = None,
    ) -> "GramLinearOperator":
        """The same, with A the Jacobian of `fn(params, sample)`, one sample a row.

        That the outputs of a sample depend on no other one can be made use of: to bound
        the memory by `chunk_size`, and to read the diagonal and the dense Jacobian at
        the cost of the gradients of all samples.

        In chunks, what the function computes is not kept but recomputed, each time that
        A or Aᵀ is applied, and the memory is that of one chunk; the result is the same
        to rounding. An application of G then costs two evaluations of the function
        more.

        **Arguments:**

        - `fn`: from parameters and one sample to its outputs, a pytree of any shapes.
        - `params`: the point at which to take the Jacobian.
        - `samples`: a pytree of arrays, stacked along their leading axis.
        - `weights`, `centre`, `shift`: as for the class itself.
        - `chunk_size`: the greatest number of samples in a chunk. Default: all.

        **Returns:**

        A `GramLinearOperator`.

        **Raises:**

        As the class itself, and `ValueError` for samples that have no common leading
        axis, no sample, and a `chunk_size` that is not positive.
        """
        params, samples = (
            jtu.tree_map(as_inexact, params),
            jtu.tree_map(jnp.asarray, samples),
        )
        if sample_count(samples) == 0:
            raise ValueError(
                "`GramLinearOperator` was given an empty batch of samples."
            )
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"`chunk_size` must be positive, but is {chunk_size}.")
        samplewise = Samplewise(fn, params, samples, chunk_size)
        operator = lx.JacobianLinearOperator(
            samplewise, params, samples, closure_convert=False
        )
        return cls(operator, weights=weights, centre=centre, shift=shift)

    def mv(self, vector):
        # Even here one linearisation: `operator.T.mv` would be a second.
        forward, transposed = _linear_maps(self)
        outputs = scale_samples(self.weights, self.centred(forward.mv(vector)))
        gram = _conj(transposed.mv(_conj(outputs)))
        return jtu.tree_map(
            lambda g, v: g + self.shift.astype(g.dtype) * v, gram, vector
        )

    def factor(self) -> lx.AbstractLinearOperator:
        """B = W^½ C A, for which G = Bᴴ B + shift · I.

        With fewer samples than parameters,

            lxe.damped_solve(gram.factor(), c, shift)

        is G⁻¹ Bᴴ c by a QR of Bᴴ and a problem of m×m, at O(n m²), where every step of
        conjugate gradients costs O(n m): worth it if m is less than their number, or if
        G is so ill-conditioned that they do not get there. Its right-hand side Bᴴ c is
        a gradient, Aᴴ W C e, with c = W^½ e.

        B of a materialised operator, `lx.materialise(gram).factor()`, is dense. That of
        any other is applied, and read by rows or columns where a solver needs the matrix.

        **Returns:**

        A linear operator from the parameters to the outputs of A. Differentiating it
        with respect to a weight that is zero is an error at run time.
        """
        scale = self.weights
        if scale is not None:
            scale = root(
                scale,
                "`GramLinearOperator.factor` was differentiated with respect to a "
                "weight that is zero, where the derivative of its root is infinite.",
            )
        return self.centred_operator(scale)

    def centred(self, outputs: PyTree[Array]) -> PyTree[Array]:
        """C applied to outputs."""
        return subtract_mean(self.weights, outputs) if self.centre else outputs

    def centred_operator(self, scale: Float[Array, " samples"] | None):
        inner = untagged(self.operator)
        if isinstance(inner, lx.PyTreeLinearOperator):
            # Its leaves have the leading axis of the outputs, as a column has.
            pytree = scale_samples(scale, self.centred(inner.pytree))
            return lx.PyTreeLinearOperator(pytree, inner.out_structure())
        params = self.in_structure()
        zeros = jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), params)
        fn = _Outputs(lx.linearise(self), scale)
        return lx.JacobianLinearOperator(fn, zeros, closure_convert=False)

    def as_matrix(self) -> Inexact[Array, "n n"]:
        outputs = self.operator.out_structure()
        column = lambda x: ravel(self.centred(unravel(x, outputs)))
        matrix = jax.vmap(column, 1, 1)(_jacobian(self.operator))
        gram = matrix.conj().T @ (_row_weights(self, matrix.dtype)[:, None] * matrix)
        shift = self.shift.astype(gram.dtype)
        return gram + shift * jnp.eye(len(gram), dtype=gram.dtype)

    def transpose(self) -> "GramLinearOperator":
        return lx.conj(self)

    def in_structure(self):
        return self.operator.in_structure()

    def out_structure(self):
        return self.operator.in_structure()


def _conj(tree: PyTree[Array]) -> PyTree[Array]:
    return jtu.tree_map(jnp.conj, tree)


def _linear_maps(gram: GramLinearOperator):
    """A and Aᵀ, of one linearisation."""
    if gram.maps is not None:
        return gram.maps
    forward = lx.linearise(gram.operator)
    return forward, forward.transpose()


def _jacobian(operator: lx.AbstractLinearOperator) -> Inexact[Array, "outputs n"]:
    """The matrix of A."""
    samples = samples_of(operator)
    return as_matrix(lx.linearise(operator)) if samples is None else samples.matrix()


def _row_weights(gram: GramLinearOperator, dtype) -> Inexact[Array, " outputs"]:
    """The weights of the flattened outputs."""
    outputs = gram.operator.out_structure()
    ones = jtu.tree_map(lambda s: jnp.ones(s.shape, s.dtype), outputs)
    return ravel(scale_samples(gram.weights, ones)).astype(dtype)


def _with_maps(gram, operator, maps):
    where = lambda g: (g.operator, g.maps)
    return eqx.tree_at(where, gram, (operator, maps), is_leaf=lambda x: x is None)


@lx.linearise.register(GramLinearOperator)
def _(operator):
    return _with_maps(operator, operator.operator, _linear_maps(operator))


@lx.materialise.register(GramLinearOperator)
def _(operator):
    inner = operator.operator
    params, outputs = inner.in_structure(), inner.out_structure()
    if len({x.dtype for x in jtu.tree_leaves((params, outputs))}) > 1:
        return lx.linearise(operator)  # `lx.PyTreeLinearOperator` knows of one dtype
    matrix = _jacobian(inner)
    leaves, treedef = jtu.tree_flatten(outputs)
    pytree, start = [], 0
    for leaf in leaves:
        blocks = matrix[start : start + leaf.size].reshape(*leaf.shape, -1)
        split = lambda row: unravel(row, params)
        for _ in leaf.shape:
            split = jax.vmap(split)
        pytree.append(split(blocks))
        start += leaf.size
    dense = lx.PyTreeLinearOperator(treedef.unflatten(pytree), outputs)
    return _with_maps(operator, dense, None)


@lx.conj.register(GramLinearOperator)
def _(operator):
    if not is_complex(operator.in_structure()):
        return operator
    maps = operator.maps
    if maps is not None:
        maps = lx.conj(maps[0]), lx.conj(maps[1])
    return _with_maps(operator, lx.conj(operator.operator), maps)


@lx.diagonal.register(GramLinearOperator)
def _(operator):
    dtype = result_dtype(operator.in_structure())
    inner = operator.operator
    samples = samples_of(inner)
    if samples is not None:
        squares = samples.column_squares(operator.weights, operator.centre)
    elif isinstance(inner, lx.PyTreeLinearOperator | lx.MatrixLinearOperator):
        squared = square(as_matrix(operator.centred_operator(None)))
        squares = _row_weights(operator, squared.dtype) @ squared
    else:
        squares = _squares_by_applying(operator)
    return squares.astype(dtype) + operator.shift.astype(dtype)


def _squares_by_applying(gram: GramLinearOperator) -> Float[Array, " n"]:
    """The squared norms of the columns of W^½ C A, by its rows if these are fewer."""
    centred = gram.centred_operator(None)
    m, n = centred.out_size(), centred.in_size()
    read = reader(centred, by="rows" if m < n else "columns")
    weights = _row_weights(gram, jnp.finfo(read.dtype).dtype)
    entries = lambda index, size: square(
        read.apply(basis_vector(index, size, read.dtype))
    )
    if read.by == "rows":
        return sum_chunked(lambda index: weights[index] * entries(index, m), m)
    column = lambda index: jnp.sum(weights * entries(index, n))
    return map_chunked(column, lax.iota(jnp.int32, n))


@lx.tridiagonal.register(GramLinearOperator)
def _(operator):
    diagonals = read_diagonals(reader(operator), (0, -1, 1))
    return diagonals[0], diagonals[-1], diagonals[1]


@lx.is_positive_semidefinite.register(GramLinearOperator)
def _(operator):
    return True


@lx.is_symmetric.register(GramLinearOperator)
def _(operator):
    return not is_complex(operator.in_structure())


for _check in (
    lx.is_diagonal,
    lx.is_tridiagonal,
    lx.has_unit_diagonal,
    lx.is_lower_triangular,
    lx.is_upper_triangular,
    lx.is_negative_semidefinite,
):

    @_check.register(GramLinearOperator)
    def _(operator):
        return False
