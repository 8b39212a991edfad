"""Solvers of lineax: one a file, and what they share."""

from .auto import AutoStructuredLinearSolver as AutoStructuredLinearSolver
from .auto_damped import AutoDampedSolver as AutoDampedSolver
from .block_tridiagonal import BlockTridiagonal as BlockTridiagonal
from .damped import AbstractDampedSolver as AbstractDampedSolver
from .damped_qr import DampedQR as DampedQR
from .damped_sparse import DampedSparse as DampedSparse
from .damped_svd import DampedSVD as DampedSVD
from .qr_multiply import QRMultiply as QRMultiply
from .sparse import SparseCholesky as SparseCholesky, SparseLU as SparseLU
from .tagged import TaggedLinearSolver as TaggedLinearSolver
