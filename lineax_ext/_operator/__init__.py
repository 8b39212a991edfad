from .block_tridiagonal import (
    BlockTridiagonalLinearOperator as BlockTridiagonalLinearOperator,
)
from .damped import DampedLinearOperator as DampedLinearOperator
