from .damped import DampedLinearOperator as DampedLinearOperator
