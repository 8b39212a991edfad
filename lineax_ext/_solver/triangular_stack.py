"""QR of two upper triangles, one on top of the other."""

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from .householder import (
    householder_qr,
    matmul,
    solve_lower_transposed,
    solve_upper,
)


class _Panel(eqx.Module):
    """Q of one panel, I − V T Vᴴ, acting on w rows of the top and e of the bottom."""

    vt: Inexact[Array, "w w+e"]
    t: Inexact[Array, "w w"]


class TriangularStackQR(eqx.Module):
    """The factors of [R₁; R₂], as returned by `triangular_stack_qr`."""

    rt: Inexact[Array, "n n"]
    # The top of Q̃ᴴ times the right-hand side, if there was one.
    y: Inexact[Array, " n"] | None
    panels: tuple[_Panel, ...]

    def q_adjoint_multiply(self, top: Array, bottom: Array) -> tuple[Array, Array]:
        """Q̃ᴴ (top, bottom), for Q̃ square."""
        out, start = [top[:0]], 0
        for panel in self.panels:
            w, stop = panel.t.shape[0], start + panel.t.shape[0]
            x = jnp.concatenate([top[start:stop], bottom[:stop]])
            y = matmul(jnp.conj(panel.t.T), matmul(jnp.conj(panel.vt), x))
            x = x - matmul(panel.vt.T, y)
            out.append(x[:w])
            bottom = jnp.concatenate([x[w:], bottom[stop:]])
            start = stop
        return jnp.concatenate(out), bottom

    def q_multiply(self, top: Array, bottom: Array) -> tuple[Array, Array]:
        """Q̃ (top, bottom), for Q̃ square."""
        out, stop = [top[:0]], top.size
        for panel in reversed(self.panels):
            w = panel.t.shape[0]
            start = stop - w
            x = jnp.concatenate([top[start:stop], bottom[:stop]])
            x = x - matmul(panel.vt.T, matmul(panel.t, matmul(jnp.conj(panel.vt), x)))
            out.append(x[:w])
            bottom = jnp.concatenate([x[w:], bottom[stop:]])
            stop = start
        return jnp.concatenate(out[::-1]), bottom


def _block_size(n: int) -> int:
    # Narrow panels waste least; past n = 700 the traffic of the trailing updates wants
    # wider ones. Also bounds the number of panels, and so the compile time.
    if n <= 700:
        return 32 if n <= 350 else 48
    return 16 * -(-n // 320)


def _compact_wy(vt: Array, taus: Array) -> Array:
    """T of I − V T Vᴴ = H₁ H₂ ⋯, Hⱼ = I − τⱼ vⱼ vⱼᴴ.

    T⁻¹ = diag(1/τ) + U with U the strict upper triangle of Vᴴ V. Written
    T = diag(τ) (I + U diag(τ))⁻¹, τⱼ = 0 is no special case: row and column j vanish.
    """
    eye = jnp.eye(taus.size, dtype=vt.dtype)
    strict = jnp.triu(matmul(jnp.conj(vt), vt.T), 1)
    inverse = lax.linalg.triangular_solve(
        eye + strict * taus[None, :], eye, left_side=True, lower=False
    )
    return taus[:, None] * inverse


# Outside of anyone's `jit`, the panels would be compiled one operation at a time.
@jax.jit
def triangular_stack_qr(
    top: Inexact[Array, "n n"],
    bottom: Inexact[Array, "n n"],
    vector: tuple[Inexact[Array, " n"], Inexact[Array, " n"]] | None = None,
) -> TriangularStackQR:
    """Householder QR of [R₁; R₂], both upper triangular: Q̃ [R̃; 0].

    2n³/3 flops, where a dense QR takes 10n³/3. The reflector of column j touches row j
    of the top and the first j rows of the bottom. Columns are taken in panels: a panel
    is factorised by `geqrf`, the columns to its right are updated by I − V Tᴴ Vᴴ, in
    matrix products. The whole computation is written for transposed matrices, so that
    the panels are contiguous and LAPACK needs no copies.

    A right-hand side is one more column. Only the upper triangles are read. Larger rows
    belong on top: the rounding errors in a row are relative to it only if no larger
    ones come below.

    Source: the structure of LAPACK's `tpqrt` with l = n, in the compact WY form of
    Schreiber, Van Loan, *A Storage-Efficient WY Representation for Products of
    Householder Transformations*, SIAM J. Sci. Stat. Comput. 10 (1989),
    doi:10.1137/0910005. For the order of the rows: Cox, Higham, *Stability of
    Householder QR Factorization for Weighted Least Squares Problems*, Numerical
    Analysis 1997 (1998).
    """
    n = top.shape[0]
    block = _block_size(n)
    # Both transposed; of `bt`, only the columns of [R₁; R₂] not yet factorised.
    rt, bt = jnp.tril(top.T), jnp.tril(bottom.T)
    if vector is not None:
        rt, bt = (jnp.concatenate([x, c[None]]) for x, c in zip((rt, bt), vector))
    panels, columns = [], [rt[:, :0]]
    for start in range(0, n, block):
        stop = min(start + block, n)
        w = stop - start
        stack = jnp.concatenate([rt[start:stop, start:stop], bt[:w, :stop]], axis=1)
        householder, taus = householder_qr(stack.T)
        vt = jnp.triu(householder.T, 1) + jnp.eye(*stack.shape, dtype=rt.dtype)
        t = _compact_wy(vt, taus)
        panels.append(_Panel(vt, t))

        above = jnp.zeros((start, w), rt.dtype)
        finished = jnp.tril(householder[:w].T)
        upper, lower = rt[stop:, start:stop], bt[w:, :stop]
        vt_upper, vt_lower = vt[:, :w], vt[:, w:]
        y = matmul(upper, jnp.conj(vt_upper.T)) + matmul(lower, jnp.conj(vt_lower.T))
        y = matmul(y, jnp.conj(t))
        upper = upper - matmul(y, vt_upper)
        columns.append(jnp.concatenate([above, finished, upper], axis=0))
        bt = jnp.concatenate([lower - matmul(y, vt_lower), bt[w:, stop:]], axis=1)
    rt = jnp.concatenate(columns, axis=1)
    y = None if vector is None else rt[n]
    return TriangularStackQR(rt[:n], y, tuple(panels))


def damped_triangular_solve(
    r: Inexact[Array, "n n"], c: Inexact[Array, " n"], root: Float[Array, ""]
) -> Inexact[Array, " n"]:
    """argmin ‖R z − c‖² + ‖√λ z‖²; reads the upper triangle of R alone."""
    n = r.shape[0]
    if n == 0:
        return c
    r = jnp.triu(r)
    # As in `triangular_stack_qr`: the larger rows on top.
    swapped = root > jnp.max(jnp.abs(r))
    root_eye = root.astype(r.dtype) * jnp.eye(n, dtype=r.dtype)
    zeros = jnp.zeros_like(c)
    upper = jnp.where(swapped, root_eye, r), jnp.where(swapped, zeros, c)
    lower = jnp.where(swapped, r, root_eye), jnp.where(swapped, c, zeros)
    if n <= 64:
        # One call of LAPACK, which is then the faster way, and compiles faster.
        stack = jnp.concatenate(
            [jnp.concatenate([x, v[:, None]], axis=1) for x, v in (upper, lower)]
        )
        factors, _ = householder_qr(stack)
        return solve_upper(factors[:n, :n], factors[:n, n])
    qr = triangular_stack_qr(upper[0], lower[0], (upper[1], lower[1]))
    assert qr.y is not None
    return solve_lower_transposed(qr.rt, qr.y)
