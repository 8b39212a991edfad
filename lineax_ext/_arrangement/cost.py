"""What a factorisation costs, predicted: the numbers by which a kind is chosen."""

from typing import NamedTuple

from .._factor.sparse import Bordered, Scalar, Symbolic


class Cost(NamedTuple):
    """Microseconds, in float64 on two CPU cores."""

    factor: float
    solve: float

    @property
    def total(self) -> float:
        """For a factorisation and the solves that it serves.

        One is all that a Newton step needs; the stages of a step of diffrax, with their
        iterations, need ten. Between the two, no choice depends on it by much.
        """
        return self.factor + 5 * self.solve


# Measured, jax 0.10.2: one factorisation, one solve, in µs where nothing else is said.
#
# dense LU, n            64        128        256        900       2500
#                    45, 20    163, 39  1078, 130    14 ms, –    184 ms, –
#   predicted        45, 20    216, 45  1028, 143     17, –      172, –
#
# band, k, N          4, 12      8, 8      16, 8     32, 8    50, 50     100, 100
#                    35, 13    80, 14   214, 20  1027, 69  18 ms, –    385 ms, –
#   predicted        37, 15    52, 18   166, 31   990, 74     23, –     367, –
_LAUNCH = 12  # what is left of the smallest ones: kernels, gathers in and out


def dense(n: int) -> Cost:
    # Between n² and n³: the larger, the better the cores are used.
    return Cost(0.0039 * n**2.25, _LAUNCH + 0.002 * n**2)


def block_tridiagonal(count: int, k: int) -> Cost:
    """Of so many block rows of size k, a step of a loop each."""
    factor = count * (0.5 + 0.2 * k + 0.0035 * k**3)
    return Cost(_LAUNCH + factor, _LAUNCH + count * (0.05 + 0.0075 * k**2))


def triangular(n: int) -> Cost:
    """Nothing to factorise; substitution reads half of a dense matrix."""
    return Cost(0, _LAUNCH + 0.001 * n**2)


def small_blocks(count: int, k: int) -> Cost:
    """Up to 4 written out; above by LAPACK, and a solve is three products.

    µs, k and count: 3, 1000: 40 and 18; 3, 10,000: 550 and 110; 8, 1000: 2400 and 150;
    16, 250: 2270 and 150.
    """
    factor = 0.0018 * k**3 if k <= 4 else 0.5 + 0.0025 * k**3
    return Cost(_LAUNCH + count * factor, _LAUNCH + count * 0.0015 * k**2)


def block_lu(count: int, k: int) -> Cost:
    """By LAPACK, one after the other."""
    one = dense(k)
    return Cost(count * one.factor, _LAUNCH + count * 0.002 * k**2)


# A kernel takes some 40 ms to compile, factorisation and solve together; here divided
# by as many factorisations as a run of diffrax has.
_COMPILED = 5.0


def multifrontal(symbolic: Symbolic) -> Cost:
    """`Symbolic.seconds` is twice what was measured since then, in milliseconds: a grid
    of 32×32 with 2 species 4.2 (predicted 9.8), 100×100 20 (40), 16×16×16 23 (50), a
    tree of 10,000 7.4 (14)."""
    overhead = _COMPILED * symbolic.kernels
    return Cost(overhead + 0.5e6 * symbolic.seconds, 100 + 0.0006 * symbolic.fill)


def multifrontal_at_least(n: int) -> Cost:
    """Of a tree, of which nothing fills in."""
    return Cost(300 + 0.5 * n, 100 + 0.02 * n)


def entry_by_entry(plan: Scalar) -> Cost:
    """A loop of so many steps, and what is around it: scales, sizes.

    CPU time in ms, factorisations of a tree of 10,000, a circuit of 5000, grids of
    32×32 with 2 species, 60×60, 100×100, on a busy machine: 1.3, 2.9, 2.8, 3.4, 13.1
    (predicted 1.1, 1.8, 2.4, 2.7, 12.3). Solves of the first three and of the last:
    0.10, 0.12, 0.13, 0.42 (0.11, 0.11, 0.12, 0.43).
    """
    work = 0.006 * plan.steps + 0.03 * len(plan.pattern) + 0.003 * plan.fill
    return Cost(40 * _COMPILED + work, 20 + 0.009 * len(plan.sweep))


def bordered(plan: Bordered) -> Cost:
    """ms: 2000 points and 20 cameras, 2.4 and 0.22."""
    return Cost(20 * _COMPILED + 1e6 * plan.seconds, 20 + 0.0008 * plan.fill)


def sparse_at_least(n: int) -> Cost:
    """Of a tree, of which nothing fills in, entry by entry."""
    return Cost(40 * _COMPILED + 0.05 * n, 20 + 0.009 * n)


def products(count: int) -> float:
    """Of entries of a sparse matrix, gathered and added up to those of AᵀA.

    µs: 720,000 take 3.0 ms, 50,000 take 0.4.
    """
    return 0.004 * count


def dense_least_squares(m: int, n: int) -> float:
    """A step of a damped fit, m ≥ n: a QR of A, and one of two triangles.

    ms, m and n: 254 and 128, 0.9 (0.6); 510 and 256, 3.7 (4.0).
    """
    return 100 + 5e-5 * (2 * m * n**2 + 2 * n**3 / 3)
