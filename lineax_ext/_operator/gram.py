"""The Gram operator of a linear map, or of the Jacobian of a function of samples."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, ArrayLike, Float, Inexact, PyTree, ScalarLike, Shaped

from .._checks import called, check_operator
from .._flat import is_complex, ravel, result_dtype, tree_size, unravel
from .._materialise import as_matrix, as_pytree_operator
from .._structure.extract import (
    basis_vector,
    map_chunked,
    read_diagonals,
    reader,
    sum_chunked,
    untagged,
)
from .damped import as_inexact, root
from .samples import (
    as_jacobian,
    check_shift,
    check_weights,
    jacobian_matrix,
    over_one_field,
    sample_count,
    samples_of,
    Samplewise,
    scale_samples,
    square,
    subtract_mean,
    subtract_share,
)


class GramLinearOperator(lx.AbstractLinearOperator):
    """The operator G = (C A)ᴴ W (C A) + shift · I, positive semidefinite.

    A maps parameters to outputs, whose leading axis is that of the samples. On it act
    W = diag(weights), and C = I − 1 pᵀ with p = weights / Σ weights, which subtracts
    the mean. With A the Jacobian of a function f of the parameters, G is

    - the Gauss–Newton matrix of ½ Σₛ weightsₛ ‖fₛ‖²;
    - the Fisher information, the metric of the natural gradient, of a categorical
        distribution, with f = 2 √probabilities;
    - the quantum geometric tensor of stochastic reconfiguration, with f = log ψ,
        `centre=True` and weights 1 / samples.

    Parameters are all real or all complex; A must be complex-linear in complex ones
    (f holomorphic). With real parameters and complex outputs G is the real part,
    Re((C A)ᴴ W (C A)) + shift · I.

    Applying G costs one application of A and one of Aᵀ. The Jacobian of a function is
    linearised once, and the transpose taken from that; `lx.linearise`, which `lx.CG`
    and its like call, keeps both. Centring is done after A; Cᵀ W C = W C.

    `lx.diagonal`, for a Jacobi preconditioner, never makes an n×n matrix. It costs
    min(n, outputs) applications of A or Aᵀ; after `from_samples`, no more than the
    gradients of all samples. (It is flat: `jax.flatten_util.ravel_pytree(params)[1]`
    puts it into the structure of the parameters.) `lx.materialise` makes A dense, not
    G, with O(outputs · n) memory; if A mixes dtypes, it only linearises.

    !!! Example

        ```python
        gram = lxe.GramLinearOperator(operator)
        inverse = lx.DiagonalLinearOperator(1 / lx.diagonal(gram))
        jacobi = lx.TaggedLinearOperator(inverse, lx.positive_semidefinite_tag)
        solution = lx.linear_solve(
            gram,
            operator.T.mv(vector),
            lx.CG(rtol=1e-8, atol=1e-8),
            options={"preconditioner": jacobi},
        )
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
        (1998), doi:10.1162/089976698300017746.

        Sorella, *Green function Monte Carlo with stochastic reconfiguration*, Physical
        Review Letters 80 (1998), doi:10.1103/PhysRevLett.80.4558.

        Vicentini et al., *NetKet 3: machine learning toolbox for many-body quantum
        systems*, SciPost Physics Codebases 7 (2022), doi:10.21468/SciPostPhysCodeb.7,
        for one linearisation, and for the mean that is taken out after the JVP.
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
        check_operator(operator, "GramLinearOperator")
        outputs = operator.out_structure()
        if centre:
            sample_count(outputs)
        self.weights = None if weights is None else check_weights(weights, outputs)
        if tree_size(outputs) == 0:
            raise ValueError(
                "`GramLinearOperator` was given an operator without outputs: the batch "
                "is empty."
            )
        self.operator = over_one_field(operator)
        self.shift = check_shift(shift)
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
        if not callable(fn):
            raise ValueError(
                "`GramLinearOperator.from_samples(fn, params, samples)` needs a "
                f"function of parameters and one sample; found {called(fn)}."
            )
        params = jtu.tree_map(as_inexact, params)
        samples = jtu.tree_map(jnp.asarray, samples)
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
        outputs = scale_samples(self.weights, _centred(self, forward.mv(vector)))
        if self.centre:
            # Cᵀ W C = W C, but for rounding, which Aᵀ would multiply by the mean.
            outputs = subtract_share(self.weights, outputs)
        gram = _conj(transposed.mv(_conj(outputs)))
        return jtu.tree_map(
            lambda g, v: g + self.shift.astype(g.dtype) * v, gram, vector
        )

    def factor(self) -> lx.AbstractLinearOperator:
        """B = W^½ C A, for which G = Bᴴ B + shift · I.

        `lxe.damped_solve(gram.factor(), c, gram.shift)` is G⁻¹ Bᴴ c. With c = W^½ e,
        Bᴴ c = Aᴴ W C e is the gradient that goes with the outputs e.

        For m outputs, fewer than the n parameters, that is one QR of Bᴴ, O(n m²), and a
        problem of m×m. It is the better way where conjugate gradients, at O(n m) a
        step, need more than about m steps or do not converge: it never squares the
        condition number of B.

        B of `lx.materialise(gram)` is dense; that of any other is read where a solver
        needs the matrix, row by row or column by column.

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
        return _centred_operator(self, scale)

    def as_matrix(self) -> Inexact[Array, "n n"]:
        outputs = self.operator.out_structure()
        column = lambda x: ravel(_centred(self, unravel(x, outputs)))
        matrix = jax.vmap(column, 1, 1)(jacobian_matrix(self.operator))
        gram = matrix.conj().T @ (_row_weights(self, matrix.dtype)[:, None] * matrix)
        shift = self.shift.astype(gram.dtype)
        return gram + shift * jnp.eye(len(gram), dtype=gram.dtype)

    def transpose(self) -> lx.AbstractLinearOperator:
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


def _centred(gram: GramLinearOperator, outputs: PyTree[Array]) -> PyTree[Array]:
    return subtract_mean(gram.weights, outputs) if gram.centre else outputs


class _ScaledOutputs(eqx.Module):
    """x ↦ S C A x, with S = diag(scale)."""

    gram: GramLinearOperator
    scale: Float[Array, " samples"] | None

    def __call__(self, x):
        forward, _ = _linear_maps(self.gram)
        return scale_samples(self.scale, _centred(self.gram, forward.mv(x)))


def _centred_operator(
    gram: GramLinearOperator, scale: Float[Array, " samples"] | None
) -> lx.AbstractLinearOperator:
    """S C A: dense if A is, and else one whose rows and columns can be read."""
    inner = untagged(gram.operator)
    # A matrix has the leading axis of the outputs, as a column has.
    dense = lambda matrix: scale_samples(scale, _centred(gram, matrix))
    if isinstance(inner, lx.MatrixLinearOperator):
        return lx.MatrixLinearOperator(dense(inner.matrix))
    if isinstance(inner, lx.PyTreeLinearOperator):
        return lx.PyTreeLinearOperator(dense(inner.pytree), inner.out_structure())
    fn = _ScaledOutputs(lx.linearise(gram), scale)  # pyright: ignore
    return as_jacobian(fn, gram.in_structure())


def _row_weights(gram: GramLinearOperator, dtype) -> Inexact[Array, " outputs"]:
    """The weights of the flattened outputs."""
    real = lambda s: jnp.ones(s.shape, jnp.finfo(s.dtype).dtype)
    ones = jtu.tree_map(real, gram.operator.out_structure())
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
    dense = as_pytree_operator(jacobian_matrix(inner), params, outputs)
    return _with_maps(operator, dense, None)


@lx.conj.register(GramLinearOperator)
def _(operator):
    if not is_complex(operator.in_structure()):
        return operator
    forward, transposed = map(lx.conj, _linear_maps(operator))
    return _with_maps(operator, forward, (forward, transposed))


@lx.diagonal.register(GramLinearOperator)
def _(operator):
    dtype = result_dtype(operator.in_structure())
    inner = untagged(operator.operator)
    samples = samples_of(inner)
    if samples is not None:
        squares = samples.column_squares(operator.weights, operator.centre)
    elif isinstance(inner, lx.PyTreeLinearOperator | lx.MatrixLinearOperator):
        squared = square(as_matrix(_centred_operator(operator, None)))
        squares = _row_weights(operator, squared.dtype) @ squared
    else:
        squares = _squares_by_applying(operator)
    return squares.astype(dtype) + operator.shift.astype(dtype)


def _squares_by_applying(gram: GramLinearOperator) -> Float[Array, " n"]:
    """The squared norms of the columns of W^½ C A, by its rows if these are fewer."""
    centred = _centred_operator(gram, None)
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
