"""A sparse direct solver made of XLA operations: multifrontal LU and Cholesky.

Three verbs: `analyse` a pattern, `factor` values, `solve` for vectors. Whatever is
irregular happens in `analyse`, in NumPy; what remains is dense algebra on batches of
small matrices.
"""

from .factor import entry_by_entry as entry_by_entry, factor as factor, plan as plan
from .numeric import determinant as determinant, Factors as Factors
from .scalar import Scalar as Scalar
from .selected import selected_inverse as selected_inverse
from .solve import solve as solve
from .symbolic import analyse as analyse, Symbolic as Symbolic
from .with_determinant import with_determinant as with_determinant
