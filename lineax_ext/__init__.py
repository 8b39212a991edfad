"""Structure and reuse for lineax, optimistix and diffrax.

Importing this package registers its rules for `lineax.diagonal` and
`lineax.tridiagonal`.
"""

import importlib.metadata

from . import _rules as _rules
from ._damped_solve import damped_solve as damped_solve
from ._determinant import (
    inv_quad_logdet as inv_quad_logdet,
    logdet as logdet,
    slogdet as slogdet,
)
from ._diffrax import structured as structured
from ._least_squares import (
    DampedNewtonDescent as DampedNewtonDescent,
    GainRatioTrustRegion as GainRatioTrustRegion,
    IndirectDampedNewtonDescent as IndirectDampedNewtonDescent,
    IndirectLevenbergMarquardt as IndirectLevenbergMarquardt,
    LevenbergMarquardt as LevenbergMarquardt,
    ScaledTrustRegionDescent as ScaledTrustRegionDescent,
)
from ._operator import (
    BlockTridiagonalLinearOperator as BlockTridiagonalLinearOperator,
    DampedLinearOperator as DampedLinearOperator,
    GramLinearOperator as GramLinearOperator,
    SparseMatrixLinearOperator as SparseMatrixLinearOperator,
)
from ._sharded_vmap import sharded_vmap as sharded_vmap
from ._solver import (
    AbstractDampedSolver as AbstractDampedSolver,
    AutoDampedSolver as AutoDampedSolver,
    AutoStructuredLinearSolver as AutoStructuredLinearSolver,
    BlockTridiagonal as BlockTridiagonal,
    DampedQR as DampedQR,
    DampedSparse as DampedSparse,
    DampedSVD as DampedSVD,
    QRMultiply as QRMultiply,
    SparseCholesky as SparseCholesky,
    SparseLU as SparseLU,
    TaggedLinearSolver as TaggedLinearSolver,
)
from ._structure import (
    check_pattern as check_pattern,
    check_tags as check_tags,
    infer_pattern as infer_pattern,
    infer_tags as infer_tags,
    Pattern as Pattern,
)


__version__ = importlib.metadata.version("lineax_ext")
