import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
import pytest
from helpers import (
    assert_close,
    directional,
    double,
    flatten,
    gradient,
    in_turn,
    jacobian_operator,
    normal,
    slow,
    unflatten,
)

import lineax_ext as lxe


SAMPLES, SHIFT = 7, 0.3

# The dtypes of parameters and outputs.
FIELDS = ((np.float64, np.float64), (np.complex128,) * 2, (np.float64, np.complex128))
over_fields = pytest.mark.parametrize(
    "params, outputs", FIELDS, ids=("real", "complex", "real to complex")
)


def in_structure(dtype):
    return {
        "a": jax.ShapeDtypeStruct((2,), dtype),
        "b": jax.ShapeDtypeStruct((3, 1), dtype),
    }


#
# sin(M (s * x)) of every sample s: a scalar and two rows
#


class Model:
    def __init__(self, params, outputs, samples=SAMPLES):
        self.params, self.outputs = params, outputs
        self.x = normal((5,), params) / 2
        self.samples = normal((samples, 5), np.finfo(params).dtype)
        self.matrix = normal((3, 5), outputs) / 2
        self.weights = np.abs(normal((samples,), seed=1))

    def fn(self, params, sample):
        x = flatten(params) * sample.astype(self.params)
        out = jnp.sin(jnp.asarray(self.matrix) @ x.astype(self.outputs))
        return {"first": out[0], "rest": out[1:, None]}

    def batch(self, params, samples):
        return jax.vmap(self.fn, (None, 0))(params, samples)

    def tree(self, x):
        return unflatten(jnp.asarray(x), in_structure(self.params))

    def jacobian(self, x=None, samples=None):
        """By NumPy, of shape (samples, outputs, parameters)."""
        x = double(self.x if x is None else x)
        samples = double(self.samples if samples is None else samples)
        angles = (samples * x) @ double(self.matrix).T
        return np.cos(angles)[:, :, None] * double(self.matrix) * samples[:, None, :]

    def gram(self, weights, centre, shift=SHIFT, x=None, samples=None):
        """The referee, with every sum written out."""
        jacobian = self.jacobian(x, samples)
        weights = np.ones(len(jacobian)) if weights is None else double(weights)
        if centre and weights.sum() > 0:
            p = weights / weights.sum()
            jacobian = jacobian - np.einsum("s,skn->kn", p, jacobian)
        gram = np.einsum("skn,s,skp->np", jacobian.conj(), weights, jacobian)
        if not np.issubdtype(self.params, np.complexfloating):
            gram = gram.real
        return gram + shift * np.eye(5)


def of_operator(model, **kwargs):
    x, samples = model.tree(model.x), jnp.asarray(model.samples)
    operator = lx.JacobianLinearOperator(model.batch, x, samples)
    return lxe.GramLinearOperator(operator, **kwargs)


def of_linear_function(model, **kwargs):
    x, samples = model.tree(model.x), jnp.asarray(model.samples)
    _, fn = jax.linearize(lambda x: model.batch(x, samples), x)
    operator = lx.FunctionLinearOperator(fn, in_structure(model.params))
    return lxe.GramLinearOperator(operator, **kwargs)


def of_samples(model, **kwargs):
    x = model.tree(model.x)
    return lxe.GramLinearOperator.from_samples(model.fn, x, model.samples, **kwargs)


def of_chunks(model, **kwargs):
    return of_samples(model, chunk_size=3, **kwargs)


def mv(gram, x):
    return flatten(gram.mv(unflatten(x, gram.in_structure())))


def dense_factor(gram):
    """B, of which each column is one application."""
    factor = gram.factor()
    eye = jnp.eye(5, dtype=gram.as_matrix().dtype)
    return jax.vmap(lambda e: mv(factor, e), 0, 1)(eye)


def everything(gram, x):
    """Of a G, and of what it becomes: G x, Gᵀ x, and all that shows its entries."""
    found = []
    for op in (gram, lx.linearise(gram), lx.materialise(gram)):
        found.append((mv(op, x), mv(op.T, x), op.as_matrix(), lx.diagonal(op)))
        found[-1] += (dense_factor(op),)
    return found, lx.conj(gram).as_matrix(), lx.tridiagonal(gram)


@in_turn(
    "make, params, outputs, weighted",
    (of_operator, of_chunks, of_linear_function, of_samples),
    [(*fields, weighted) for fields, weighted in zip(FIELDS, (False, True, True))],
)
def test_matrix(make, params, outputs, weighted):
    model = Model(params, outputs)
    x = normal((5,), params, seed=2)
    weights = model.weights if weighted else None
    kwargs = dict(weights=weights, centre=weighted, shift=SHIFT)
    run = jax.jit(lambda x: everything(make(model, **kwargs), x))
    found, conj, tridiagonal = run(x)
    expected = model.gram(weights, weighted)
    for product, transposed, matrix, diagonal, factor in found:
        assert_close(product, expected @ x, 1e-13)
        assert_close(transposed, expected.T @ x, 1e-13)
        assert_close(matrix, expected, 1e-13)
        assert_close(diagonal, np.diagonal(expected), 1e-13)
        assert diagonal.dtype == params
        square = np.asarray(factor.conj().T @ factor) + SHIFT * np.eye(5)
        assert_close(square, expected, 1e-13)
    assert_close(conj, expected.conj(), 1e-13)
    for entries, offset in zip(tridiagonal, (0, -1, 1)):
        assert_close(entries, np.diagonal(expected, offset), 1e-13)


def test_weights():
    model = Model(np.float64, np.float64)
    one_sample = np.eye(SAMPLES)[2]
    to_one = model.weights / model.weights.sum()
    stack = np.stack([np.zeros(SAMPLES), one_sample, to_one, 3 * to_one])
    x = normal((5,))

    @jax.vmap
    def run(weights):
        gram = of_operator(model, weights=weights, centre=True, shift=SHIFT)
        return gram.as_matrix(), mv(gram, x)

    for weights, matrix, product in zip(stack, *jax.jit(run)(stack)):
        expected = model.gram(weights, True)
        if np.count_nonzero(weights) < 2:  # the mean of one sample is that sample
            expected = SHIFT * np.eye(5)
        assert_close(matrix, expected, 1e-13)
        assert_close(product, expected @ x, 1e-13)


def test_one_sample():
    model = Model(np.float64, np.float64, samples=1)

    @jax.jit
    def run():
        centred = of_samples(model, centre=True, shift=SHIFT)
        return centred.as_matrix(), of_samples(model).as_matrix()

    centred, plain = run()
    assert_close(centred, SHIFT * np.eye(5), 1e-13)
    assert_close(plain, model.gram(None, False, 0), 1e-13)


def test_outputs_of_any_shape():
    """A scalar among the outputs, as long as nothing acts on their samples."""
    matrix = normal((4, 3))
    operator = lx.FunctionLinearOperator(
        lambda x: (matrix[0] @ x, matrix[1:] @ x), jax.ShapeDtypeStruct((3,), float)
    )
    gram = lxe.GramLinearOperator(operator)
    assert_close(jax.jit(lambda: gram.as_matrix())(), matrix.T @ matrix, 1e-14)


def test_inner_operators():
    """A wide and a tall one, of all kinds that have a matrix, or only a VJP."""

    @jax.jit
    def run(matrix, weights):
        found = []
        operators = (
            lx.MatrixLinearOperator(matrix),
            lx.TaggedLinearOperator(lx.MatrixLinearOperator(matrix), "a tag"),
            lx.MatrixLinearOperator(matrix / 2) + lx.MatrixLinearOperator(matrix / 2),
            lx.JacobianLinearOperator(
                lambda x, _: matrix @ x, jnp.ones(matrix.shape[1]), jac="bwd"
            ),
        )
        for operator in operators:
            gram = lxe.GramLinearOperator(operator, weights=weights, centre=True)
            product = mv(gram, jnp.ones(matrix.shape[1]))
            found.append((product, lx.diagonal(gram), gram.as_matrix()))
        return found

    for shape in ((3, 6), (6, 3)):
        matrix, weights = normal(shape), np.abs(normal(shape[:1]))
        centred = matrix - weights @ matrix / weights.sum()
        expected = centred.T @ np.diag(weights) @ centred
        for product, diagonal, dense in run(matrix, weights):
            assert_close(product, expected.sum(1), 1e-13)
            assert_close(diagonal, np.diagonal(expected), 1e-13)
            assert_close(dense, expected, 1e-13)


@pytest.mark.parametrize("dtype", (np.float32, np.complex64))
def test_single_precision(dtype):
    model = Model(dtype, dtype)
    x = normal((5,), dtype)

    @jax.jit
    def run():
        gram = of_samples(model, weights=model.weights, centre=True, shift=SHIFT)
        return mv(gram, x), gram.as_matrix(), lx.diagonal(gram)

    expected = model.gram(model.weights, True)
    for found, exact in zip(run(), (expected @ x, expected, np.diagonal(expected))):
        assert found.dtype == dtype
        assert_close(found, exact, 1e-5)


def test_mixed_precision():
    """float32 and float64, in parameters and in outputs."""
    matrix, weights = normal((4, 5)), np.abs(normal((4,)))
    low, high = jnp.float32, jnp.float64
    structure = {k: jax.ShapeDtypeStruct(s, t) for k, s, t in
                 (("a", (2,), low), ("b", (3,), high))}  # fmt: skip

    def fn(x):
        x = jnp.concatenate([x["a"].astype(high), x["b"]])
        return (matrix[:, :2] @ x[:2]).astype(low), matrix[:, 2:] @ x[2:]

    blocks = np.zeros((5, 5))
    for part in (slice(0, 2), slice(2, 5)):
        centred = matrix[:, part] - weights @ matrix[:, part] / weights.sum()
        blocks[part, part] = centred.T @ np.diag(weights) @ centred
    operator = lx.FunctionLinearOperator(fn, structure)
    gram = lxe.GramLinearOperator(operator, weights=weights, centre=True)
    ones = jtu.tree_map(lambda s: jnp.ones(s.shape, s.dtype), structure)

    @jax.jit
    def run():
        ops = gram, lx.linearise(gram), lx.materialise(gram)
        return [(op.as_matrix(), lx.diagonal(op), op.mv(ones)) for op in ops]

    for matrix, diagonal, out in run():
        assert_close(matrix, blocks, 1e-6)
        assert_close(diagonal, np.diagonal(blocks), 1e-6)
        assert jax.eval_shape(lambda out=out: out) == structure
        out = np.concatenate([double(x) for x in jtu.tree_leaves(out)])
        assert_close(out, blocks.sum(1), 1e-6)


#
# Solves
#


def cg_solve(gram, vector, **kwargs):
    cg = lx.CG(rtol=1e-13, atol=1e-13, max_steps=30)
    vector = unflatten(vector, gram.in_structure())
    return flatten(lx.linear_solve(gram, vector, cg, **kwargs).value)


@over_fields
def test_solve(params, outputs):
    """By CG, with and without the diagonal, and by Cholesky where G is symmetric."""
    model = Model(params, outputs)
    b = normal((5,), params, seed=3)

    @jax.jit
    def run(b):
        gram = of_samples(model, weights=model.weights, centre=True, shift=SHIFT)
        inverse = unflatten(1 / lx.diagonal(gram), gram.in_structure())
        jacobi = lx.TaggedLinearOperator(
            lx.DiagonalLinearOperator(inverse), lx.positive_semidefinite_tag
        )
        found = [
            cg_solve(gram, b),
            cg_solve(gram, b, options={"preconditioner": jacobi}),
        ]
        tree = unflatten(b, gram.in_structure())
        return found + [flatten(lx.linear_solve(gram, tree).value)]

    expected = np.linalg.solve(model.gram(model.weights, True), b)
    for found in run(jnp.asarray(b)):
        assert_close(found, expected, 1e-11)


@over_fields
def test_factor(params, outputs):
    """The step of G by the damped problem of B, and its right-hand side Aᴴ W C e."""
    model = Model(params, outputs, samples=2 if params == outputs else 1)
    residual = normal((*model.samples.shape[:1], 3), outputs)
    weights = model.weights

    @jax.jit
    def run(residual):
        gram = of_samples(model, weights=weights, shift=SHIFT)
        e = {"first": residual[:, 0], "rest": residual[:, 1:, None]}
        if params != outputs:
            e = jtu.tree_map(lambda x: jnp.stack([x.real, x.imag], -1), e)
        root = jnp.sqrt(jnp.asarray(weights)).astype(params)
        scale = lambda x: root.reshape(-1, *[1] * (x.ndim - 1)) * x
        c = jtu.tree_map(scale, e)
        return [
            flatten(lxe.damped_solve(g.factor(), c, gram.shift).value)
            for g in (gram, lx.materialise(gram))
        ]

    adjoint = model.jacobian().reshape(-1, 5).conj().T
    rhs = adjoint @ (weights[:, None] * residual).reshape(-1)
    rhs = rhs if params == outputs else rhs.real
    expected = np.linalg.solve(model.gram(weights, False), rhs)
    for found in run(jnp.asarray(residual)):
        assert_close(found, expected, 1e-12)


def test_factor_is_small():
    """Few samples and many parameters: no array of n×n, and none beyond the m×n B."""
    m, n = 4, 3000
    fn = lambda params, sample: jnp.tanh(params) @ sample
    samples, c = normal((m, n)), normal((m,))

    def step(params, samples, c):
        gram = lxe.GramLinearOperator.from_samples(fn, params, samples, centre=True)
        return lxe.damped_solve(lx.materialise(gram).factor(), c, 1e-3).value

    compiled = jax.jit(step).lower(jnp.ones(n), samples, c).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 30 * m * n * 8
    rows = samples * (1 - np.tanh(1) ** 2)
    b = rows - rows.mean(0)
    expected = b.T @ np.linalg.solve(b @ b.T + 1e-3 * np.eye(m), c)
    assert_close(compiled(jnp.ones(n), samples, c), expected, 1e-11)


@pytest.mark.parametrize("order", ("operators", "nested"))
def test_vmap(order):
    model = Model(np.float64, np.float64)
    bs = normal((2, 3, 5), seed=4)
    weights = np.abs(normal((2, SAMPLES), seed=5))
    shifts = np.array([0.2, 0.7])

    def one(weights, shift, b):
        gram = of_chunks(model, weights=weights, centre=True, shift=shift)
        return cg_solve(gram, b)

    in_axes, args = {
        "operators": ((0, 0, None), (weights, shifts, bs[0, 0])),
        "nested": ((0, 0, 0), (weights, shifts, bs)),
    }[order]
    fn = jax.vmap(one, (None, None, 0)) if order == "nested" else one
    found = jax.jit(jax.vmap(fn, in_axes))(*args)
    for i in range(len(found)):
        w, shift, b = (
            x[i] if axis == 0 else x for x, axis in zip(args, in_axes, strict=True)
        )
        gram = model.gram(w, True, shift)
        assert_close(found[i], np.linalg.solve(gram, b.T).T, 1e-11)


#
# Derivatives
#


def loss(x):
    return (np if isinstance(x, np.ndarray) else jnp).sum(abs(x) ** 2)


@pytest.mark.parametrize(
    "make, params, outputs",
    (
        (of_operator, *FIELDS[0]),
        slow(of_chunks, *FIELDS[1]),
        slow(of_chunks, *FIELDS[2]),
    ),
    ids=("real", "complex, in chunks", "real to complex, in chunks"),
)
def test_derivatives(make, params, outputs):
    """Of a solution, in everything: by VJP, JVP, and the JVP of the VJP."""
    model = Model(params, outputs)
    primals = (
        model.x,
        model.samples,
        model.weights,
        np.asarray(SHIFT),
        normal((5,), params, seed=6),
    )
    directions = [normal(x.shape, x.dtype, seed=7 + i) for i, x in enumerate(primals)]

    def fn(x, samples, weights, shift, b):
        inner = Model(params, outputs)
        inner.x, inner.samples = x, samples
        gram = make(inner, weights=weights, centre=True, shift=shift)
        return loss(cg_solve(gram, b))

    def expected(x, samples, weights, shift, b):
        gram = model.gram(weights, True, shift, x, samples)
        return loss(np.linalg.solve(gram, b))

    argnums = tuple(range(len(primals)))
    grad = jax.grad(fn, argnums)

    @jax.jit
    def run(primals, directions):
        grads, hvps = jax.jvp(grad, primals, directions)
        return grads, jax.jvp(fn, primals, directions)[1], hvps

    args = tuple(map(jnp.asarray, primals)), tuple(map(jnp.asarray, directions))
    grads, tangent, hvps = run(*args)

    def expected_grad(i, t=0.0):
        moved = [x + t * dx for x, dx in zip(primals, directions)]
        return gradient(lambda x: expected(*moved[:i], x, *moved[i + 1 :]), moved[i])

    for i, found in enumerate(grads):
        assert_close(found, expected_grad(i), 1e-7)
    moved = lambda t: expected(*(x + t * dx for x, dx in zip(primals, directions)))
    assert_close(tangent, directional(moved), 1e-7)
    for i in (2, 3):
        assert_close(hvps[i], directional(ft.partial(expected_grad, i)), 1e-5)


def test_derivative_of_diagonal_and_factor():
    model = Model(np.float64, np.float64)

    def of_diagonal(weights, make=of_samples):
        return loss(lx.diagonal(make(model, weights=weights, centre=True)))

    expected = gradient(
        lambda w: loss(np.diagonal(model.gram(w, True, 0))), model.weights
    )
    for make in (of_samples, of_operator):
        found = jax.jit(jax.grad(lambda w, make=make: of_diagonal(w, make)))
        assert_close(found(model.weights), expected, 1e-8)

    def of_factor(weights):
        return loss(mv(of_samples(model, weights=weights).factor(), np.ones(5)))

    expected = gradient(lambda w: model.gram(w, False, 0).sum(), model.weights)
    found = eqx.filter_jit(jax.grad(of_factor))
    assert_close(found(model.weights), expected, 1e-8)
    with pytest.raises(eqx.EquinoxRuntimeError, match="weight that is zero"):
        found(np.zeros(SAMPLES))


#
# What it costs
#


def network(params, sample):
    inner, outer = params
    return outer @ jnp.tanh(inner @ sample)


def network_structure(width, inputs, samples):
    real = lambda *shape: jax.ShapeDtypeStruct(shape, np.float64)
    params = real(width, inputs), real(width)
    return params, real(samples, inputs)


def network_gram(params, samples, **kwargs):
    return lxe.GramLinearOperator.from_samples(
        network, params, samples, centre=True, shift=1e-3, **kwargs
    )


def network_operator(params, samples):
    batch = lambda params, samples: jax.vmap(network, (None, 0))(params, samples)
    operator = lx.JacobianLinearOperator(batch, params, samples)
    return lxe.GramLinearOperator(operator, centre=True, shift=1e-3)


def steps_of_cg(params, samples, **kwargs):
    gram = network_gram(params, samples, **kwargs)
    cg = lx.CG(rtol=0.0, atol=0.0, max_steps=50)
    return lx.linear_solve(gram, params, cg, throw=False).value


def compiled(fn, *args, **kwargs):
    lowered = jax.jit(lambda *args: fn(*args, **kwargs)).lower(*args)
    memory = lowered.compile().memory_analysis().temp_size_in_bytes
    return memory, lowered.as_text().count("stablehlo.tanh")


def test_one_linearisation():
    args = network_structure(8, 5, 12)
    eye = jnp.eye(48)

    def products(params, samples, make, **kwargs):
        gram = make(params, samples, **kwargs)
        vectors = jax.vmap(lambda x: unflatten(x, gram.in_structure()))(eye)
        return jax.lax.map(gram.mv, vectors)

    # The function is evaluated once, for A and for Aᵀ, and not once a step.
    assert compiled(steps_of_cg, *args)[1] == 1
    assert compiled(products, *args, make=network_gram)[1] == 1
    assert compiled(products, *args, make=network_operator)[1] == 1
    # In chunks once for each, as nothing is kept.
    assert compiled(products, *args, make=network_gram, chunk_size=5)[1] == 2


def test_linearise_traces_once():
    traced = []

    def fn(x, args):
        traced.append(x)
        return jnp.sin(x)

    operator = lx.JacobianLinearOperator(fn, jnp.ones(3), closure_convert=False)
    gram = lx.linearise(lxe.GramLinearOperator(operator))
    calls = len(traced)
    for _ in range(3):
        assert_close(mv(gram, np.ones(3)), np.full(3, np.cos(1) ** 2), 1e-15)
    assert len(traced) == calls


def test_memory_matrix_free():
    """200,000 parameters, 64 samples, fifty steps: in truth some megabytes."""
    params, samples = network_structure(400, 500, 64)
    assert sum(x.size for x in params) > 200_000
    assert compiled(steps_of_cg, params, samples)[0] < 20e6


def test_memory_of_chunks():
    args = network_structure(100, 10, 10_000)
    whole, _ = compiled(steps_of_cg, *args)
    activations = 100 * 10_000 * 8
    assert whole > activations
    for chunk_size in (100, 999):  # which divides the batch, and which does not
        chunked, _ = compiled(steps_of_cg, *args, chunk_size=chunk_size)
        assert chunked < whole / 5
        assert chunked < 1e6 + 4 * activations * chunk_size / 10_000


def test_chunks():
    model = Model(np.float64, np.float64)
    x = normal((5,))
    kwargs = dict(weights=model.weights, centre=True, shift=SHIFT)

    @jax.jit
    def run(x):
        grams = [of_samples(model, chunk_size=k, **kwargs) for k in (1, 3, 7, 100)]
        return [mv(gram, x) for gram in grams]

    for found in run(x):
        assert_close(found, model.gram(model.weights, True) @ x, 1e-13)


@pytest.mark.parametrize("samples", (20, 6000), ids=("by rows", "by columns"))
def test_memory_of_diagonal(samples):
    """Neither G nor, with many samples, A is ever made."""
    args = network_structure(40, 100, samples)
    n = 40 * 101
    for make in (network_gram, network_operator):
        memory, _ = compiled(lambda *args, make=make: lx.diagonal(make(*args)), *args)
        assert memory < 8 * n * n / 2


#
# Bad input
#


def test_errors():
    model = Model(np.float64, np.float64)
    operator = jacobian_operator(normal((SAMPLES, 3)))
    gram = lxe.GramLinearOperator
    real, imaginary = np.float64, np.complex128
    to_real = lx.JacobianLinearOperator(lambda x, _: x.real, jnp.ones(3, imaginary))
    both = lx.JacobianLinearOperator(
        lambda x, _: x, (jnp.ones(3, imaginary), jnp.ones(3, real))
    )
    scalar = lx.JacobianLinearOperator(lambda x, _: jnp.sum(x), jnp.ones(3))
    ragged = lx.JacobianLinearOperator(lambda x, _: (x, x[1:]), jnp.ones(3))
    empty = lx.JacobianLinearOperator(lambda x, _: x[:0], jnp.ones(3))
    samples = lxe.GramLinearOperator.from_samples
    x = model.tree(model.x)
    for call, match in (
        (lambda: gram(operator, weights=np.ones(3)), "one weight for each sample"),
        (lambda: gram(operator, weights=-np.ones(SAMPLES)), "must be non-negative"),
        (lambda: gram(operator, weights=np.full(SAMPLES, np.nan)), "non-negative"),
        (lambda: gram(operator, weights=np.ones(SAMPLES) * 1j), "must be real"),
        (lambda: gram(operator, shift=-1.0), "`shift` must be non-negative"),
        (lambda: gram(operator, shift=np.ones(2)), "`shift` must be a scalar"),
        (lambda: gram(to_real), "linear over the reals only"),
        (lambda: gram(both), "linear over the reals only"),
        (lambda: gram(scalar, centre=True), "leading axis"),
        (lambda: gram(ragged, centre=True), "leading axis"),
        (lambda: gram(empty), "empty"),
        (lambda: samples(model.fn, x, model.samples[:0]), "empty"),
        (lambda: samples(model.fn, x, 1.0), "leading axis"),
        (lambda: samples(model.fn, x, model.samples, chunk_size=0), "`chunk_size`"),
    ):
        with pytest.raises(ValueError, match=match):
            call()


def test_errors_at_run_time():
    model = Model(np.float64, np.float64)

    @eqx.filter_jit
    def run(weights, shift):
        return mv(of_samples(model, weights=weights, shift=shift), np.ones(5))

    expected = model.gram(model.weights, False).sum(1)
    assert_close(run(model.weights, SHIFT), expected, 1e-13)
    for weights, shift in ((-model.weights, SHIFT), (model.weights, -SHIFT)):
        with pytest.raises(eqx.EquinoxRuntimeError, match="must be non-negative"):
            jax.block_until_ready(run(weights, shift))


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
def test_large_mean(dtype):
    """A mean of 1e4, and weights of another precision: the error is that of A's."""
    matrix = np.asarray(normal((200, 5)) + 1e4, dtype)
    weights = np.linspace(0.5, 2, 200).astype(np.float32)
    gram = lxe.GramLinearOperator(
        lx.MatrixLinearOperator(jnp.asarray(matrix)), weights=weights, centre=True
    )
    p = weights.astype(np.float64) / weights.astype(np.float64).sum()
    centred = matrix.astype(np.float64) - p @ matrix.astype(np.float64)
    vector = normal((5,), dtype)
    expected = centred.T @ (weights.astype(np.float64) * (centred @ vector))
    assert_close(
        jax.jit(lambda x: gram.mv(x))(vector), expected, 1e5 * np.finfo(dtype).eps
    )


def test_no_parameters():
    gram = lxe.GramLinearOperator.from_samples(
        lambda params, sample: jnp.sum(params) * sample, jnp.ones(0), jnp.ones(5)
    )
    assert gram.as_matrix().shape == (0, 0)
