"""A sparse direct solver made of XLA operations: multifrontal LU and Cholesky.

Three verbs: `analyse` a pattern, `factor` values, `solve` for vectors. Whatever is
irregular happens in `analyse`, in NumPy; what remains is dense algebra on batches of
small matrices.
"""

from .bordered import Bordered as Bordered, bordered as bordered
from .factor import entry_by_entry as entry_by_entry, factor as factor, plan as plan
from .numeric import determinant as determinant, Factors as Factors
from .positive import (
    factor_positive as factor_positive,
    substituted as substituted,
    Way as Way,
    WayFactors as WayFactors,
)
from .scalar import Scalar as Scalar, ScalarFactors as ScalarFactors
from .selected import selected_inverse as selected_inverse
from .solve import solve as solve
from .symbolic import analyse as analyse, Symbolic as Symbolic
from .with_determinant import with_determinant as with_determinant
