"""The operator of a damped least-squares problem."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Inexact, PyTree, ScalarLike

from .._checks import check_operator
from .._flat import ravel, result_dtype
from .._materialise import as_matrix


def is_concrete(x) -> bool:
    return not isinstance(x, Tracer)


def as_inexact(x: ArrayLike) -> Array:
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.zeros(()).dtype)


def as_real_inexact(x: ArrayLike, name: str) -> Array:
    x = as_inexact(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise ValueError(f"`{name}` must be real, not {x.dtype}.")
    return x


def check_damping(damping: ScalarLike, name: str = "damping") -> Float[Array, ""]:
    """A real inexact scalar; an error if seen to be negative or not finite."""
    if damping is None or isinstance(damping, str):
        raise ValueError(f"`{name}` must be a real number, but is {damping!r}.")
    damping = as_real_inexact(damping, name)
    if damping.shape != ():
        raise ValueError(f"`{name}` must be a scalar, not of shape {damping.shape}.")
    if is_concrete(damping) and not 0 <= float(damping) < float("inf"):
        raise ValueError(
            f"`{name}` must be non-negative and finite, but is {float(damping)}."
        )
    return damping


def check_scale(
    scale: PyTree[ArrayLike], in_structure: PyTree[jax.ShapeDtypeStruct]
) -> PyTree[Float[Array, "..."]]:
    """Real arrays shaped as `in_structure`, positive as far as that can be seen."""
    scale = jtu.tree_map(lambda x: as_real_inexact(x, "scale"), scale)
    shapes = lambda tree: jtu.tree_map(lambda x: tuple(x.shape), tree)
    expected, found = shapes(in_structure), shapes(scale)
    if jtu.tree_structure(scale) != jtu.tree_structure(in_structure) or (
        jtu.tree_leaves(found) != jtu.tree_leaves(expected)
    ):
        raise ValueError(
            "`scale` must have the structure and the shapes of the operator's input, "
            f"{expected}, but has {found}."
        )
    for leaf in jtu.tree_leaves(scale):
        if not is_concrete(leaf):
            continue
        value = np.asarray(leaf)
        if not np.all((value > 0) & np.isfinite(value)):
            raise ValueError("`scale` must be positive and finite everywhere.")
    return scale


class _Transpose(eqx.Module):
    """(u, v) ↦ Aᵀ u + √λ D v."""

    operator: lx.AbstractLinearOperator
    damping: Float[Array, ""]
    scale: PyTree[Float[Array, "..."]] | None

    def __call__(self, vector):
        u, v = vector
        return jtu.tree_map(
            jnp.add, self.operator.mv(u), _damp(self.damping, self.scale, v)
        )


@ft.partial(jax.custom_jvp, nondiff_argnums=(1,))
def root(x: Float[Array, "..."], message: str) -> Float[Array, "..."]:
    """√x, with an error in place of an infinite derivative."""
    return jnp.sqrt(x)


@root.defjvp
def _(message, primals, tangents):
    (x,), (t_x,) = primals, tangents
    y = root(x, message)
    y = eqx.error_if(y, y == 0, message)
    return y, t_x / (2 * y)


def _damp(damping, scale, x):
    """√λ D x, leaf by leaf, in the dtype of each leaf."""
    y = root(
        damping,
        "A `DampedLinearOperator` was differentiated with respect to its damping at "
        "λ = 0, where the derivative of √λ is infinite.",
    )
    if scale is None:
        return jtu.tree_map(lambda xi: y.astype(xi.dtype) * xi, x)
    return jtu.tree_map(
        lambda xi, di: y.astype(xi.dtype) * (di.astype(xi.dtype) * xi), x, scale
    )


class DampedLinearOperator(lx.AbstractLinearOperator):
    """The tall operator B : x ↦ (A x, √λ D x), with D = diag(scale).

    Its least-squares problem min ‖B x − (b, 0)‖² is the damped (Tikhonov, ridge,
    Levenberg–Marquardt) problem min ‖A x − b‖² + λ ‖D x‖².

    A may be any linear operator, m×n, real or complex; B maps to the pair of A's output
    and A's input structure. [`lineax_ext.DampedQR`][] and [`lineax_ext.DampedSVD`][]
    factorise A and treat the damping apart; every other solver sees the (m+n)×n stack.
    Applying B costs one application of A and O(n).

    B is differentiable in A, λ and D. At λ = 0 the derivative of √λ is infinite, and
    differentiating with respect to λ is an error at run time.

    **Arguments:**

    - `operator`: A.
    - `damping`: λ ≥ 0, a real scalar.
    - `scale`: the diagonal of D, a pytree of positive real arrays with the structure
        and the shapes of the input of A. Default: ones.

    **Raises:**

    `ValueError`, for a damping that is not a scalar and a scale of another structure;
    and, where the value is known (outside of `jit`), for a damping that is negative or
    not finite and a scale that is not positive and finite. Under `jit` such values make
    the solve fail: see [`lineax_ext.damped_solve`][].
    """

    operator: lx.AbstractLinearOperator
    damping: Float[Array, ""]
    scale: PyTree[Float[Array, "..."]] | None

    def __init__(
        self,
        operator: lx.AbstractLinearOperator,
        damping: ScalarLike,
        scale: PyTree[ArrayLike] | None = None,
    ):
        check_operator(operator, "DampedLinearOperator")
        self.operator = operator
        self.damping = check_damping(damping)
        if scale is not None:
            scale = check_scale(scale, operator.in_structure())
        self.scale = scale

    def mv(self, vector):
        return self.operator.mv(vector), _damp(self.damping, self.scale, vector)

    def as_matrix(self) -> Inexact[Array, "m+n n"]:
        matrix = as_matrix(self.operator)
        ones = jtu.tree_map(lambda s: jnp.ones(s.shape, s.dtype), self.in_structure())
        lower = jnp.diag(ravel(_damp(self.damping, self.scale, ones)))
        dtype = result_dtype((matrix, lower))
        return jnp.concatenate([matrix.astype(dtype), lower.astype(dtype)])

    def transpose(self) -> lx.FunctionLinearOperator:
        return lx.FunctionLinearOperator(
            _Transpose(self.operator.transpose(), self.damping, self.scale),
            self.out_structure(),
            closure_convert=False,
        )

    def in_structure(self):
        return self.operator.in_structure()

    def out_structure(self):
        return self.operator.out_structure(), self.operator.in_structure()


for _of_inner in (lx.linearise, lx.materialise, lx.conj):

    @_of_inner.register(DampedLinearOperator)
    def _(operator, of_inner=_of_inner):
        inner = of_inner(operator.operator)
        return DampedLinearOperator(inner, operator.damping, operator.scale)


@lx.diagonal.register(DampedLinearOperator)
def _(operator):
    return jnp.diagonal(operator.as_matrix())


@lx.tridiagonal.register(DampedLinearOperator)
def _(operator):
    matrix = operator.as_matrix()
    return tuple(jnp.diagonal(matrix, offset=d) for d in (0, -1, 1))


# B has more rows than columns, so none of these is a question of tags.
for _check in (
    lx.is_symmetric,
    lx.is_diagonal,
    lx.is_tridiagonal,
    lx.has_unit_diagonal,
    lx.is_lower_triangular,
    lx.is_upper_triangular,
    lx.is_positive_semidefinite,
    lx.is_negative_semidefinite,
):

    @_check.register(DampedLinearOperator)
    def _(operator):
        return False
