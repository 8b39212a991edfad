"""From what a factorisation found to what lineax reports."""

import lineax as lx
from jaxtyping import Array, Bool


def result_of(singular: Bool[Array, ""]) -> lx.RESULTS:
    return lx.RESULTS.where(singular, lx.RESULTS.singular, lx.RESULTS.successful)
