"""Levenberg–Marquardt solvers that factorise once a point."""

from collections.abc import Callable
from typing import Literal, TypeVar

import optimistix as optx
from jaxtyping import PyTree, Scalar, ScalarLike

from .._checks import called
from .._solver.auto_damped import AutoDampedSolver
from .._solver.damped import AbstractDampedSolver
from .._solver.damped_svd import DampedSVD
from .descent import (
    AbstractFactorisedDescent,
    DampedNewtonDescent,
    IndirectDampedNewtonDescent,
)
from .geodesic import DampedSpectrumDescent
from .iteration import AbstractFactorisedGaussNewton
from .trust_region import (
    ClassicalTrustRegion,
    GainRatioTrustRegion,
    ScaledTrustRegionDescent,
)


_Y = TypeVar("_Y")
_Out = TypeVar("_Out")
_Aux = TypeVar("_Aux")


def _verbose(verbose: bool | Callable[..., None]) -> Callable[..., None]:
    # What `True` prints is optimistix's to say.
    return optx.LevenbergMarquardt(rtol=0, atol=0, verbose=verbose).verbose


def _norm(norm: Callable[[PyTree], Scalar]) -> Callable[[PyTree], Scalar]:
    if not callable(norm):
        raise ValueError(
            f"`norm` must be a function of a pytree; found {called(norm)}. A solver is "
            "passed by name, as `linear_solver=…`."
        )
    return norm


def _scaled(scale: Literal["jacobian"] | None, descent: AbstractFactorisedDescent):
    """The descent and the search."""
    if scale is None:
        return descent, ClassicalTrustRegion()
    if scale == "jacobian":
        scaled = ScaledTrustRegionDescent(descent.linear_solver)
        return scaled, GainRatioTrustRegion()
    raise ValueError(f"`scale` must be `None` or 'jacobian', but is {scale!r}.")


class LevenbergMarquardt(AbstractFactorisedGaussNewton[_Y, _Out, _Aux]):
    """The Levenberg–Marquardt method, which factorises once a point.

    Solves min ½ ‖r(y)‖² for m residuals of n parameters. With the default settings it
    takes the steps of `optimistix.LevenbergMarquardt`, which it replaces: same
    iterates (to rounding), same `options`, same results. Where the sum of squares is
    flat to rounding, a step is accepted. It differs in the cost. A step
    that is rejected costs one evaluation of r and O(n³), where the original makes and
    factorises a matrix of m + n rows; one that is accepted, O(m n²). Of a hundred
    parameters and more, a sparse Jacobian is found to be sparse, and costs less.

    With `scale="jacobian"` it is a method for hard problems and badly scaled
    parameters, that of MINPACK: a trust region in units of the largest norms that the
    columns of the Jacobian had so far ([`lineax_ext.ScaledTrustRegionDescent`][] with
    [`lineax_ext.GainRatioTrustRegion`][]).

    With `geodesic=True` a step v is bent by half of the acceleration a of the geodesic
    that leaves along it, which follows curved valleys in fewer steps:

        a = −argmin_a ‖J a − r″(v)‖² + λ ‖D a‖²,    δ = v + a/2  if  2 ‖D a‖ ≤ ¾ ‖D v‖,

    with r″(v) the second derivative of r along v, λ and D those of the step; otherwise
    δ = v. A step costs r″(v) besides (forward over forward, some three evaluations of
    r) and O(m n): a is found by the singular values that gave v, and so is λ = 1/step
    size; with [`lineax_ext.DampedSparse`][], one factorisation more. Of 54 fits of NIST
    53 end in the certified minimum, in 0.7 times the steps (geometric mean; half of
    them in as many as without); without it 54 do.

    Differentiable implicitly, as every optimistix solver; not through its steps.

    !!! Example

        ```python
        solver = lxe.LevenbergMarquardt(rtol=1e-8, atol=1e-8, scale="jacobian")
        sol = optx.least_squares(residuals, solver, y0, args)
        ```

    Supports the following `options`:

    - `jac`: `"fwd"` (default) or `"bwd"`, the mode in which the Jacobian is computed.

    **Arguments:**

    - `rtol`, `atol`: relative and absolute tolerance for the difference between two
        iterates, and between their residuals.
    - `norm`: the norm for that. Default: `optimistix.max_norm`.
    - `linear_solver`: [`lineax_ext.DampedQR`][], [`lineax_ext.DampedSVD`][] or
        [`lineax_ext.DampedSparse`][]. By default [`lineax_ext.AutoDampedSolver`][],
        which takes the first, or the last if J is large and sparse.
    - `scale`: `None` or `"jacobian"`.
    - `verbose`: as in optimistix: whether to print each step, or a function to call
        with the figures of each.
    - `geodesic`: whether steps are accelerated. The Jacobian is kept then.

    **Raises:**

    As [`lineax_ext.DampedNewtonDescent`][]; and a `ValueError` for a `norm` that is no
    function, for residuals without an array, and with `geodesic=True` for `jac="bwd"`,
    rows on several devices, and parameters or residuals of several dtypes.

    ??? cite "References"

        Moré, *The Levenberg–Marquardt algorithm: implementation and theory*, in
        Numerical Analysis, Lecture Notes in Mathematics 630 (1978),
        doi:10.1007/BFb0067700. For `geodesic`: Transtrum, Sethna, *Improvements to the
        Levenberg–Marquardt algorithm for nonlinear least-squares minimization* (2012),
        arXiv:1201.5885.
    """

    rtol: float
    atol: float
    norm: Callable[[PyTree], Scalar]
    descent: optx.AbstractDescent
    search: optx.AbstractSearch
    verbose: Callable[..., None]
    geodesic: bool

    def __init__(
        self,
        rtol: float,
        atol: float,
        norm: Callable[[PyTree], Scalar] = optx.max_norm,
        linear_solver: AbstractDampedSolver = AutoDampedSolver(),
        scale: Literal["jacobian"] | None = None,
        verbose: bool | Callable[..., None] = False,
        geodesic: bool = False,
    ):
        self.rtol = rtol
        self.atol = atol
        self.norm = _norm(norm)
        if not isinstance(geodesic, bool):
            raise ValueError(f"`geodesic` must be True or False, but is {geodesic!r}.")
        by = DampedSpectrumDescent if geodesic else DampedNewtonDescent
        self.descent, self.search = _scaled(scale, by(linear_solver))
        self.geodesic = geodesic
        self.verbose = _verbose(verbose)


class IndirectLevenbergMarquardt(AbstractFactorisedGaussNewton[_Y, _Out, _Aux]):
    """The Levenberg–Marquardt method in a trust region, which factorises once a point.

    As `optimistix.IndirectLevenbergMarquardt`: the length of a step is given, and
    the damping found that leads to it. There, every damping that is tried costs a
    factorisation of m + n rows. Here it costs O(n), on the singular values of one
    factorisation for each accepted point: this is no dearer than
    [`lineax_ext.LevenbergMarquardt`][].

    Supports the same `options` as [`lineax_ext.LevenbergMarquardt`][].

    **Arguments:**

    - `rtol`, `atol`, `norm`, `verbose`: as for [`lineax_ext.LevenbergMarquardt`][].
    - `lambda_0`, `linear_solver`, `root_finder`: as for
        [`lineax_ext.IndirectDampedNewtonDescent`][].
    - `scale`: `None`; or `"jacobian"`, which is what it is in
        [`lineax_ext.LevenbergMarquardt`][]: that is an indirect method, too.

    **Raises:**

    As [`lineax_ext.DampedNewtonDescent`][].
    """

    rtol: float
    atol: float
    norm: Callable[[PyTree], Scalar]
    descent: optx.AbstractDescent
    search: optx.AbstractSearch
    verbose: Callable[..., None]
    geodesic: bool = False

    def __init__(
        self,
        rtol: float,
        atol: float,
        norm: Callable[[PyTree], Scalar] = optx.max_norm,
        lambda_0: ScalarLike = 1.0,
        linear_solver: AbstractDampedSolver = DampedSVD(),
        root_finder: optx.AbstractRootFinder | None = None,
        scale: Literal["jacobian"] | None = None,
        verbose: bool | Callable[..., None] = False,
    ):
        self.rtol = rtol
        self.atol = atol
        self.norm = _norm(norm)
        descent = IndirectDampedNewtonDescent(
            lambda_0=lambda_0, linear_solver=linear_solver, root_finder=root_finder
        )
        self.descent, self.search = _scaled(scale, descent)
        self.verbose = _verbose(verbose)
