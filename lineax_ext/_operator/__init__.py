from .damped import DampedLinearOperator as DampedLinearOperator
from .gram import GramLinearOperator as GramLinearOperator
