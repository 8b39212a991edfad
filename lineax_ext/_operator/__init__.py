"""Operators: one a file, with its registrations under the class."""

from .block_tridiagonal import (
    BlockTridiagonalLinearOperator as BlockTridiagonalLinearOperator,
)
from .damped import DampedLinearOperator as DampedLinearOperator
from .gram import GramLinearOperator as GramLinearOperator
from .sparse import SparseMatrixLinearOperator as SparseMatrixLinearOperator
