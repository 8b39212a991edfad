"""When a triangle counts as singular."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Inexact


def default_rcond(m: int, n: int, dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps) * max(m, n)


def is_singular(r: Inexact[Array, "k k"], rcond: Any) -> Bool[Array, ""]:
    """Whether a column of an upper triangular R depends on those before it.

    That is |r_jj| ≤ rcond · max_i |r_ij| for some j. The comparison within a column
    makes it independent of the scaling of the columns: diag(1, 1e-20) is regular.
    Also true for an R that is not finite.
    """
    if r.shape[-1] == 0:
        return jnp.array(False)
    magnitude = jnp.abs(jnp.triu(r))
    columns = jnp.max(magnitude, axis=0)
    rcond = jnp.asarray(rcond, magnitude.dtype)
    regular = jnp.diagonal(magnitude) > rcond * columns
    return ~jnp.all(regular & jnp.isfinite(columns))
