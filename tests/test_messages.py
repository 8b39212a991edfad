"""What a new user gets to read for the likeliest mistakes."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest
from jax.experimental import sparse as jsparse

import lineax_ext as lxe


_a = np.arange(15.0).reshape(5, 3) ** 2
_tall = lx.MatrixLinearOperator(jnp.asarray(_a))
_pattern = lxe.Pattern([0, 1, 2], [0, 1, 2], (3, 3))
_sparse = lxe.SparseMatrixLinearOperator(jnp.ones(3), _pattern)
_lower = lxe.Pattern([0, 1, 1, 2], [0, 0, 1, 2], (3, 3))
_struct = jax.ShapeDtypeStruct((3,), np.float64)
_double = lx.FunctionLinearOperator(lambda x: 2 * x, _struct)
_auto, _qr = lxe.AutoStructuredLinearSolver, lxe.DampedQR()
_residual = lambda y, args: y - 1
_term = dfx.ODETerm(lambda t, y, args: -y)


def _solve(operator, vector, solver):
    return lambda: lx.linear_solve(operator, vector, solver)


def _fit(**kwargs):
    return lambda: lxe.LevenbergMarquardt(1e-6, 1e-6, **kwargs)


def _integrate(linear_solver):
    return lambda: dfx.diffeqsolve(
        _term,
        lxe.structured(dfx.ImplicitEuler(), linear_solver),
        t0=0,
        t1=1,
        dt0=None,
        y0=jnp.ones(3),
        stepsize_controller=dfx.PIDController(rtol=1e-3, atol=1e-3),
    )


# What is done, and what of the message must be there.
MISTAKES = {
    # Shapes and structures
    "vector of another shape": (
        _solve(_sparse, jnp.ones(4), lxe.SparseLU()),
        "Vector and operator structures do not match",
    ),
    "the same, damped": (
        lambda: lxe.damped_solve(_tall, jnp.ones(4), 0.1),
        r"`damped_solve.*structure of the operator's output.*\(5,\).*\(4,\)",
    ),
    "another pytree": (
        lambda: lxe.damped_solve(_tall, {"a": jnp.ones(5)}, 0.1),
        "`damped_solve.*structure of the operator's output",
    ),
    "a complex vector, a real operator": (
        lambda: lxe.damped_solve(_tall, jnp.ones(5, complex), 0.1),
        "float64.*found.*complex128",
    ),
    "log-likelihood of another vector": (
        lambda: lxe.inv_quad_logdet(_double, jnp.ones(4)),
        r"\(3,\).*found ShapeDtypeStruct\(shape=\(4,\)",
    ),
    "scale of another shape": (
        lambda: lxe.damped_solve(_tall, jnp.ones(5), 0.1, scale=jnp.ones(5)),
        r"`scale` must have .* \(3,\), but has \(5,\)",
    ),
    "not square": (_solve(_tall, jnp.ones(5), lxe.SparseLU()), r"\(5, 3\).*not square"),
    "determinant, not square": (lambda: lxe.logdet(_tall), "5 rows and 3 columns"),
    "values of a batch": (
        lambda: lxe.SparseMatrixLinearOperator(jnp.ones((7, 3)), _pattern),
        r"as many as its pattern has, 3; found \(7, 3\)",
    ),
    "an entry named twice counts once": (
        lambda: lxe.SparseMatrixLinearOperator(
            jnp.ones(4), lxe.Pattern([0, 0, 1, 2], [0, 0, 1, 2], (3, 3))
        ),
        r"as many as its pattern has, 3; found \(4,\)",
    ),
    "one triangle of a symmetric matrix": (
        lambda: lxe.SparseMatrixLinearOperator(
            jnp.ones(4), _lower, lx.positive_semidefinite_tag
        ),
        "tagged symmetric or semidefinite.*entries of one triangle",
    ),
    "blocks on two diagonals too long": (
        lambda: lxe.BlockTridiagonalLinearOperator(*[jnp.ones((4, 2, 2))] * 3),
        r"\(N-1, k, k\); found \(4, 2, 2\), \(4, 2, 2\)",
    ),
    "residuals that are not returned": (
        lambda: optx.least_squares(lambda y, args: None, _fit()(), jnp.ones(3)),
        "`LevenbergMarquardt` was given residuals without an array",
    ),
    "the same, for a pattern": (
        lambda: lxe.infer_pattern(lambda y, args: None, jnp.ones(3)),
        "returns no array",
    ),
    "a product with a vector of another shape": (
        lambda: _sparse.mv(jnp.ones(4)),
        r"of shape \(3, 3\) was applied to a vector of shape \(4,\)",
    ),
    # Matrices in place of operators, classes in place of instances
    "a matrix, damped": (
        lambda: lxe.damped_solve(jnp.asarray(_a), jnp.ones(5), 0.1),
        r"`damped_solve` needs.*an array of shape \(5, 3\).*`lineax.MatrixLinear",
    ),
    "a matrix, as operator": (
        lambda: lxe.DampedLinearOperator(_a, 0.1),
        r"an array of shape \(5, 3\)",
    ),
    "samples in the place of their function": (
        lambda: lxe.GramLinearOperator.from_samples(_a, jnp.ones(3), jnp.sin),
        r"a function of parameters and one sample; found an array of shape \(5, 3\)",
    ),
    "the determinant of a matrix": (
        lambda: lxe.logdet(jnp.eye(3)),
        "`logdet` needs.*an array.*`lineax.MatrixLinearOperator`",
    ),
    "the Gram operator of a matrix": (
        lambda: lxe.GramLinearOperator(jnp.asarray(_a)),
        r"`GramLinearOperator` needs.*an array of shape \(5, 3\)",
    ),
    "the tags of a matrix": (
        lambda: lxe.check_tags(jnp.eye(3), key=jax.random.key(0)),
        "`check_tags` needs.*an array",
    ),
    "the pattern of a matrix": (
        lambda: lxe.check_pattern(jnp.eye(3), _pattern, key=jax.random.key(0)),
        "`check_pattern` needs.*an array",
    ),
    "a damped solver's class": (
        _fit(linear_solver=lxe.DampedQR),
        "found the class `DampedQR` itself, not an instance",
    ),
    "a class": (
        lambda: lxe.TaggedLinearSolver(lx.Tridiagonal, lx.tridiagonal_tag),
        "the class `Tridiagonal` itself, not an instance",
    ),
    "arguments the wrong way round": (
        lambda: lxe.TaggedLinearSolver(lx.tridiagonal_tag, lx.Tridiagonal()),
        "must be a linear solver",
    ),
    "SciPy's matrix as values": (
        lambda: lxe.SparseMatrixLinearOperator(_pattern.to_scipy(), _pattern),
        r"found a `csr_array`.*`matrix.tocsr\(\).sorted_indices\(\).data`",
    ),
    "a name as tag": (
        lambda: lxe.SparseMatrixLinearOperator(jnp.ones(3), _pattern, "symmetric"),
        "holds 'symmetric', which is no tag of lineax.*`lineax.symmetric_tag`",
    ),
    "what asks for a tag as tag": (
        lambda: lxe.TaggedLinearSolver(lx.Tridiagonal(), lx.is_tridiagonal),
        "no tag of lineax.*`lineax.tridiagonal_tag`",
    ),
    "a number as key": (
        lambda: lxe.check_tags(_double, key=0),
        r"`check_tags\(key=…\)` must be a random key, `jax.random.key\(0\)`.*a `int`",
    ),
    "the same, for a pattern's check": (
        lambda: lxe.check_pattern(_double, _pattern, key=0),
        r"`check_pattern\(key=…\)` must be a random key",
    ),
    # Patterns
    "a pattern in the first place": (lambda: _auto(_pattern), "`pattern=…`"),
    "SciPy's matrix as pattern": (
        lambda: _auto(pattern=_pattern.to_scipy()),
        "must be a `lineax_ext.Pattern`; found a `csr_array`",
    ),
    "the same, in an operator": (
        lambda: lxe.SparseMatrixLinearOperator(jnp.ones(3), _pattern.to_scipy()),
        "`lineax_ext.Pattern.from_scipy",
    ),
    "the same, to be checked": (
        lambda: lxe.check_pattern(_double, _pattern.to_scipy(), key=jax.random.key(0)),
        r"`check_pattern\(pattern=…\)` must be a `lineax_ext.Pattern`",
    ),
    "the number of unknowns as shape": (
        lambda: lxe.Pattern([0], [0], 3),
        r"a `shape` \(m, n\).*found 3",
    ),
    "the shape of a batch": (
        lambda: lxe.Pattern([0], [0], (2, 3, 3)),
        r"a `shape` \(m, n\).*found \(2, 3, 3\)",
    ),
    "a number in place of True": (
        lambda: _auto(well_posed=1),
        "must be `None`, `True` or `False`",
    ),
    "a BCSR as BCOO": (
        lambda: lxe.SparseMatrixLinearOperator.from_bcoo(
            jsparse.BCSR.fromdense(jnp.eye(3))
        ),
        "needs a `jax.experimental.sparse.BCOO`; found a `BCSR`",
    ),
    "a dense matrix as pattern": (
        lambda: lxe.Pattern.from_scipy(np.eye(3)),
        "np.nonzero",
    ),
    "a dense matrix as BCOO": (
        lambda: lxe.SparseMatrixLinearOperator.from_bcoo(jnp.eye(3)),
        r"needs a `jax.experimental.sparse.BCOO`; found an array of shape \(3, 3\)",
    ),
    "a dense matrix, told": (
        lambda: lxe.SparseMatrixLinearOperator(jnp.ones(3), np.eye(3)),
        r"\(pattern=…\)`.*found an array of shape \(3, 3\).*np.nonzero",
    ),
    "a BCOO as SciPy's": (
        lambda: lxe.Pattern.from_scipy(jsparse.BCOO.fromdense(jnp.eye(3))),
        "found a `BCOO`.*`SparseMatrixLinearOperator.from_bcoo",
    ),
    "a mask": (
        lambda: lxe.Pattern(_a > 0, _a > 0, _a.shape),
        r"found an array of bool, of shape \(5, 3\).*`np.nonzero\(mask\)`",
    ),
    "places in place of indices": (
        lambda: lxe.Pattern([0.0, 0.5], [0, 1], (2, 2)),
        "integer indices; found an array of float64",
    ),
    "indices from the end": (
        lambda: lxe.Pattern([0, -1], [0, 1], (2, 2)),
        r"`rows` from -1 to 0",
    ),
    "a pattern of the transpose, damped": (
        lambda: lxe.damped_solve(
            _tall, jnp.ones(5), 0.1, lxe.DampedSparse(lxe.Pattern([0], [4], (3, 5)))
        ),
        r"a pattern of shape \(3, 5\), and an operator of shape \(5, 3\)",
    ),
    "a damping as pattern": (
        lambda: lxe.DampedSparse(0.1),
        r"`DampedSparse\(pattern=…\)` must be a `lineax_ext.Pattern`; found a `float`",
    ),
    "a traced pattern": (
        lambda: jax.jit(lambda i: lxe.Pattern(i, i, (3, 3)))(jnp.arange(3)),
        "outside of `jit` and `vmap`",
    ),
    "a pattern of another shape": (
        _solve(_double, jnp.ones(3), _auto(pattern=lxe.Pattern([0], [0], (4, 4)))),
        r"a pattern of shape \(4, 4\), and an operator of shape \(3, 3\)",
    ),
    "indices out of range": (
        lambda: lxe.Pattern([0, 4], [0, 1], (4, 4)),
        r"shape \(4, 4\) was given `rows` from 0 to 4",
    ),
    "a Jacobian's values in place of its function": (
        lambda: lxe.infer_pattern(_a, jnp.ones(3)),
        r"a function of `\(y, args\)`; found an array",
    ),
    "shapes in place of arrays": (
        lambda: lxe.infer_pattern(_residual, _struct),
        "jnp.zeros",
    ),
    # Solvers where they do not belong
    "an explicit solver": (
        lambda: lxe.structured(dfx.Tsit5()),
        "`Tsit5`, an explicit solver.*`diffrax.Kvaerno5`",
    ),
    "a solver of stochastic equations": (
        lambda: lxe.structured(dfx.EulerHeun()),
        "`EulerHeun`, an explicit solver",
    ),
    "a root finder": (
        lambda: lxe.structured(dfx.VeryChord(1e-6, 1e-6)),
        "a `VeryChord`, which is no solver of diffrax",
    ),
    "arguments of structured the wrong way round": (
        lambda: lxe.structured(_auto(), dfx.Kvaerno5()),
        "a `AutoStructuredLinearSolver`, which is no solver of diffrax",
    ),
    "a stage's pattern of another shape": (
        _integrate(_auto(pattern=lxe.Pattern([0], [0], (4, 4)))),
        r"a pattern of shape \(4, 4\), and an operator of shape \(3, 3\)",
    ),
    "a stage without a tag": (
        _integrate(lxe.SparseCholesky()),
        "tagged positive or negative semidefinite.*`lineax_ext.SparseLU`",
    ),
    "a term": (lambda: lxe.structured(_term), "`ODETerm`, which is no solver"),
    "a solver's class": (lambda: lxe.structured(dfx.Kvaerno5), "the class `Kvaerno5`"),
    "a root finder as linear solver": (
        lambda: lxe.structured(dfx.Kvaerno5(), optx.Newton(1e-6, 1e-6)),
        r"`structured\(linear_solver=…\)` must be a linear solver.*found a `Newton`",
    ),
    "a pattern as linear solver": (
        lambda: lxe.structured(dfx.Kvaerno5(), _pattern),
        "found a `Pattern`",
    ),
    "a solver that cannot damp": (
        _fit(linear_solver=lxe.SparseLU()),
        r"needs a solver that can damp, `lineax_ext.DampedQR\(\)`.*a `SparseLU`",
    ),
    "the same, once": (
        lambda: lxe.damped_solve(_tall, jnp.ones(5), 0.1, lx.QR()),
        "needs a solver that can damp.*found a `QR`",
    ),
    "a damping where one is chosen": (
        _fit(linear_solver=lxe.DampedQR(damping=0.1)),
        "chooses the damping",
    ),
    "the state of another solver": (
        lambda: lx.linear_solve(
            _double, jnp.ones(3), _auto(), state=lx.QR().init(_double, {})
        ),
        "`state` is not one of `AutoStructuredLinearSolver`; found a `tuple`",
    ),
    "the same, for a product": (
        lambda: lx.linear_solve(
            _tall, jnp.ones(5), lxe.QRMultiply(), state=_qr.init(_tall, {})
        ),
        "`state` is not one of `QRMultiply`; found a `DampedQRState`",
    ),
    "a solver of something else": (
        _solve(_tall, jnp.ones(5), lxe.BlockTridiagonal()),
        "`BlockTridiagonalLinearOperator`.*given a `MatrixLinearOperator`",
    ),
    "no tag": (
        _solve(_sparse, jnp.ones(3), lxe.SparseCholesky()),
        "tagged positive or negative semidefinite.*`lineax_ext.SparseLU`",
    ),
    "a solver in the place of a norm": (
        lambda: lxe.LevenbergMarquardt(1e-6, 1e-6, lxe.DampedQR()),
        "`norm` must be a function.*found a `DampedQR`.*`linear_solver=…`",
    ),
    "a mesh as lanes": (
        lambda: lxe.sharded_vmap(jnp.sin, jax.make_mesh((1,), ("lanes",))),
        "must be a `jax.sharding.NamedSharding`; found a `Mesh`",
    ),
    # Values
    "no damping": (
        lambda: lxe.damped_solve(_tall, jnp.ones(5), None),
        "`damping` must be a real number, but is None",
    ),
    "pivoting in the place of rcond": (
        lambda: lxe.QRMultiply(True),
        r"`QRMultiply\(pivoting=True\)`",
    ),
    "how much acceleration": (
        _fit(geodesic=0.75),
        "`geodesic` must be True or False, but is 0.75",
    ),
    "scale=True": (_fit(scale=True), "`None` or 'jacobian', but is True"),
    "a negative damping": (
        lambda: lxe.damped_solve(_tall, jnp.ones(5), -0.1),
        "non-negative and finite, but is -0.1",
    ),
    "many dampings": (
        lambda: lxe.damped_solve(_tall, jnp.ones(5), jnp.ones(3)),
        r"a scalar, not of shape \(3,\)",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake(mistake):
    make, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        make()


# Known when it runs: what is done, and the message of the error.
AT_RUN_TIME = {
    "singular": (
        lambda x: lx.linear_solve(
            lxe.SparseMatrixLinearOperator(0 * x, _pattern), x, lxe.SparseLU()
        ),
        "singular",
    ),
    "not a number": (
        lambda x: lx.linear_solve(_sparse, x * jnp.nan, lxe.SparseLU()),
        "non-?finite",
    ),
    "a tag that is false": (
        lambda x: lxe.check_tags(
            lx.MatrixLinearOperator(jnp.ones((3, 3)), lx.tridiagonal_tag),
            key=jax.random.key(0),
        ).mv(x),
        "tagged tridiagonal, but it is not",
    ),
    "semidefinite, but not symmetric": (
        lambda x: lxe.check_tags(
            lx.MatrixLinearOperator(
                jnp.array([[2.0, 1, 0], [0, 2, 0], [0, 0, 2]]),
                lx.positive_semidefinite_tag,
            ),
            key=jax.random.key(0),
        ).mv(x),
        "tagged symmetric or semidefinite, but it is not",
    ),
    "residuals that are not numbers": (
        lambda x: optx.least_squares(lambda y, args: jnp.log(y - 2), _fit()(), x).value,
        "non-?finite",
    ),
    "an entry outside of the pattern": (
        lambda x: lxe.check_pattern(
            lx.FunctionLinearOperator(lambda x: x[::-1], _struct),
            _pattern,
            key=jax.random.key(0),
        ).mv(x),
        "entries outside of the pattern",
    ),
    "a determinant below zero": (
        lambda x: lxe.logdet(lx.DiagonalLinearOperator(-x)),
        "negative",
    ),
}


@pytest.mark.parametrize("mistake", AT_RUN_TIME)
def test_mistake_at_run_time(mistake):
    make, message = AT_RUN_TIME[mistake]
    with pytest.raises(Exception, match=f"(?s){message}"):
        jax.block_until_ready(jax.tree.leaves(make(jnp.ones(3))))


def test_integers():
    # Taken for numbers, as diffrax and lineax take them.
    x = lx.linear_solve(_sparse, jnp.arange(3), lxe.SparseLU()).value
    np.testing.assert_allclose(x, [0, 1, 2])
    assert len(lxe.infer_pattern(lambda y, args: 2.0 * y, jnp.arange(3))) == 3
