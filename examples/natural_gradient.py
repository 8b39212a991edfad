"""Trains a small network on handwritten digits by natural gradient, matrix-free.

The digits are those of scikit-learn: 1797 images of 8×8 pixels. A network with one
hidden layer, 2410 parameters, is trained on three quarters of them, all at once, to
minimise the cross-entropy with a little weight decay. The natural gradient is G⁻¹ g,
with g the gradient and G the Fisher information of the predicted probabilities p,

    G = 1/m Σₛ Σₖ ∂(2 √pₛₖ) ∂(2 √pₛₖ)ᵀ + (decay + damping) · I,

which is a `lineax_ext.GramLinearOperator` of x ↦ 2 √p(x), solved by some steps of
`lx.CG`. The damping is adapted as in the method of Levenberg and Marquardt. It is
compared, step by step and second by second, with plain gradient descent at several
learning rates.

Prints losses, accuracies and times, draws the losses into `natural_gradient.png`, and
exits with an error if the natural gradient is not the faster one, or wrong.

Run it as `python examples/natural_gradient.py`.
"""

import time

import jax
import jax.numpy as jnp
import lineax as lx
import matplotlib


matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from jaxtyping import Array, Float, Int, PyTree  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

import lineax_ext as lxe  # noqa: E402


jax.config.update("jax_enable_x64", True)

HIDDEN, CLASSES = 32, 10
DECAY, CG_STEPS = 1e-4, 50
SECONDS = 3.0  # for each method


def digits() -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """(images, labels) to train on, and the same to test on."""
    images, labels = load_digits(return_X_y=True)
    images = (images - images.mean()) / images.std()
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = jnp.asarray(images[order]), jnp.asarray(labels[order])
    m = 3 * len(labels) // 4
    return (images[:m], labels[:m]), (images[m:], labels[m:])


def initial(pixels: int) -> PyTree[Array]:
    rng = np.random.default_rng(1)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape))
    return {
        "hidden": (normal(HIDDEN, pixels) / pixels**0.5, jnp.zeros(HIDDEN)),
        "output": (normal(CLASSES, HIDDEN) / HIDDEN**0.5, jnp.zeros(CLASSES)),
    }


def log_probabilities(
    params: PyTree[Array], image: Float[Array, " pixels"]
) -> Float[Array, " classes"]:
    (w1, b1), (w2, b2) = params["hidden"], params["output"]
    return jax.nn.log_softmax(w2 @ jnp.tanh(w1 @ image + b1) + b2)


def amplitudes(
    params: PyTree[Array], image: Float[Array, " pixels"]
) -> Float[Array, " classes"]:
    """2 √p, whose Gram operator is the Fisher information."""
    return 2 * jnp.exp(log_probabilities(params, image) / 2)


def loss(
    params: PyTree[Array],
    images: Float[Array, "samples pixels"],
    labels: Int[Array, " samples"],
) -> Float[Array, ""]:
    predicted = jax.vmap(log_probabilities, (None, 0))(params, images)
    entropy = -jnp.mean(jnp.take_along_axis(predicted, labels[:, None], axis=1))
    squares = sum(jnp.sum(x**2) for x in jax.tree.leaves(params))
    return entropy + DECAY / 2 * squares


def accuracy(params, images, labels) -> float:
    predicted = jax.vmap(log_probabilities, (None, 0))(params, images)
    return float(jnp.mean(jnp.argmax(predicted, axis=1) == labels))


def fisher(params, images, damping) -> lxe.GramLinearOperator:
    m = len(images)
    return lxe.GramLinearOperator.from_samples(
        amplitudes, params, images, weights=jnp.full(m, 1 / m), shift=DECAY + damping
    )


def natural_step(state, images, labels):
    params, damping = state
    value, gradient = jax.value_and_grad(loss)(params, images, labels)
    # A rough solution is a good step: to a tenth, and no more than a few steps.
    cg = lx.CG(rtol=0.1, atol=1e-6, max_steps=CG_STEPS)
    gram = fisher(params, images, damping)
    step = lx.linear_solve(gram, gradient, cg, throw=False).value
    tried = jax.tree.map(lambda x, dx: x - dx, params, step)
    accept = loss(tried, images, labels) < value
    params = jax.tree.map(lambda x, y: jnp.where(accept, y, x), params, tried)
    return value, (params, damping * jnp.where(accept, 0.5, 4.0))


def gradient_step(learning_rate: float):
    def step(state, images, labels):
        params, damping = state
        value, gradient = jax.value_and_grad(loss)(params, images, labels)
        params = jax.tree.map(lambda x, g: x - learning_rate * g, params, gradient)
        return value, (params, damping)

    return step


def train(step, params, data):
    """Steps for `SECONDS`: the parameters, and the loss and the time before each."""
    state = params, jnp.asarray(1.0)
    compiled = jax.jit(step).lower(state, *data).compile()
    losses, times = [], []
    start = time.perf_counter()
    while not times or times[-1] < SECONDS:
        times.append(time.perf_counter() - start)
        value, state = compiled(state, *data)
        losses.append(float(value))
    return state[0], np.array(losses), np.array(times)


def worst_error(params, images) -> float:
    """Of G from its operator, against NumPy from the Jacobian of the logarithms."""
    jacobian = jax.vmap(jax.jacrev(log_probabilities), (None, 0))(params, images)
    rows = np.concatenate(
        [np.reshape(x, (len(images), CLASSES, -1)) for x in jax.tree.leaves(jacobian)],
        axis=-1,
    )
    p = np.exp(jax.vmap(log_probabilities, (None, 0))(params, images))
    expected = np.einsum("sk,ski,skj->ij", p / len(images), rows, rows, optimize=True)
    expected += DECAY * np.eye(len(expected))
    found = np.asarray(fisher(params, images, 0.0).as_matrix())
    return np.max(np.abs(found - expected)) / np.max(np.abs(expected))


def draw(runs, path: str) -> None:
    plt.rcParams.update({"font.size": 14})
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    for name, (_, losses, times) in runs.items():
        axes[0].semilogy(np.arange(1, losses.size + 1), losses, label=name)
        axes[1].semilogy(times, losses, label=name)
    axes[0].set(xlabel="step", ylabel="cross-entropy of the training digits")
    axes[0].set_xscale("log")
    axes[1].set(xlabel="time in s", xlim=(-0.03 * SECONDS, 1.05 * SECONDS))
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[1].legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    data, unseen = digits()
    params = initial(data[0].shape[1])
    size = sum(x.size for x in jax.tree.leaves(params))
    print(
        f"{len(data[0])} digits, {size} parameters, {SECONDS:.0f} s for each method\n"
    )

    steps = {"natural gradient": natural_step}
    for rate in (0.1, 0.5, 2.0):
        steps[f"gradient descent, rate {rate}"] = gradient_step(rate)
    runs = {}
    print("                              steps   loss       accuracy on unseen digits")
    for name, step in steps.items():
        print(f"  {name:<27} ", end="", flush=True)
        found, losses, _ = runs[name] = train(step, params, data)
        unseen_accuracy = accuracy(found, *unseen)
        print(f"{losses.size:5d}   {losses[-1]:.2e}   {unseen_accuracy:.1%}")

    natural = runs.pop("natural gradient")
    best = min(runs, key=lambda name: runs[name][1][-1])
    target = runs[best][1][-1]
    reached = int(np.argmax(natural[1] <= target))
    print(
        f"\nThe loss after {runs[best][1].size} steps of the best {best} is that after "
        f"{reached} of natural gradient, {natural[2][reached]:.2f} s."
    )
    draw({"natural gradient": natural, **runs}, "natural_gradient.png")
    print("Drawn into natural_gradient.png")

    if not natural[1][-1] < target:
        raise SystemExit("natural gradient was not the faster one")
    error = worst_error(params, data[0][:50])
    if error > 1e-12:
        raise SystemExit(f"the Fisher information is wrong by {error:.0e}")


if __name__ == "__main__":
    main()
