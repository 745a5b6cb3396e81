"""Answers BackPACK's page on DP-SGD: every figure of docs/studies/backpack.md, and its plots.

python -m benchmarks.runs.backpack [--dir FOLDER]     (MNIST as TFDS prepares it; two minutes)
"""

import argparse
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxdp
from jaxdp import accounting
from jaxdp.datasets import DataConfig, Dataset, load
from jaxdp.models import ModelConfig
from jaxdp.tasks import Task
from jaxdp.tasks.builtin import make_task
from jaxdp.trainer.scoring import make_scorer
from jaxdp.types import Accountant

BATCH, ITERATIONS, LEARNING_RATE, STD, DELTA = 64, 201, 0.1, 2.0, 1e-5
PAGE_CLIPPING_NORM = 0.01  # of gradients of the mean loss
CLIPPING_NORM = BATCH * PAGE_CLIPPING_NORM  # the same for gradients of the examples' own losses
# What the page prints: iteration, loss, accuracy.
PAGE_RUN = [
    (0, 2.309, 0.094), (50, 1.543, 0.562), (100, 0.364, 0.844), (150, 0.216, 0.922),
    (200, 0.239, 0.906),
]  # fmt: skip
LAYERS = ("Conv_0", "Conv_1", "Dense_0", "Dense_1")


class Setup(NamedTuple):
    dataset: Dataset
    task: Task
    params: Any

    def loss(self, params: Any, image: jax.Array, label: jax.Array) -> jax.Array:
        """The loss of an image. It draws nothing, so the key does not matter."""
        return self.task.loss(params, (image, label), jax.random.key(0))


def setup(folder: str | None) -> Setup:
    dataset, data_format = load(DataConfig(name="mnist", dir=folder), print)
    task = make_task(ModelConfig(name="backpack_cnn", activation="relu"), data_format)
    return Setup(dataset, task, task.init(jax.random.key(0), dataset.private.zero()))


def first_batch(s: Setup) -> tuple[np.ndarray, np.ndarray]:
    images, labels = s.dataset.private.fields
    return images[:BATCH], labels[:BATCH]


def individual_gradients(s: Setup) -> list[str]:
    """Returns the page's first table: the gradients, and norms found without making them."""
    transform = jaxdp.per_example_grads(s.loss)
    materialised = jax.jit(lambda p, b: transform(p, b).materialize())(s.params, first_batch(s))
    norms = jax.jit(lambda p, b: transform(p, b).squared_norms())(s.params, first_batch(s))
    lines = [
        "| parameter | shape | individual gradients | squared norms | largest difference |",
        "|---|---|---|---|---|",
    ]
    for layer in LAYERS:
        for name in ("kernel", "bias"):
            g, squares = materialised[layer][name], norms[layer][name]
            wide = np.asarray(g, np.float64).reshape(BATCH, -1)
            exact = np.sqrt(np.sum(wide**2, axis=1))
            difference = np.max(np.abs(np.sqrt(np.asarray(squares, np.float64)) / exact - 1))
            lines.append(
                f"| {layer}/{name} | {s.params[layer][name].shape} | {g.shape} | {squares.shape} "
                f"| {difference:.1e} |"
            )
    return lines


def wrong_factor(s: Setup) -> list[str]:
    """Returns a table of what min(‖g‖/C, 1) lets through where min(C/‖g‖, 1) was meant."""
    right = lambda norm: norm * min(1.0, CLIPPING_NORM / norm)
    wrong = lambda norm: norm * min(1.0, norm / CLIPPING_NORM)
    x, y = first_batch(s)
    gradient = jax.jit(jax.grad(s.loss))

    def norm_of(image: jax.Array, label: int) -> float:
        leaves = jax.tree.leaves(gradient(s.params, image, label))
        return math.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in leaves))

    norms = [norm_of(image, label) for image, label in zip(x, y, strict=True)]
    found = {
        "the shortest gradient of the batch": min(norms),
        "the median": float(np.median(norms)),
        "the longest": max(norms),
    }
    for scale in (10, 1000):
        image, wrong_label = jnp.asarray(x[0], jnp.float32) * scale, (y[0] + 1) % 10
        found[f"an image {scale} times as bright, mislabelled"] = norm_of(image, wrong_label)
    lines = [
        "| example | ‖g‖ / C | moves the sum by, with min(C/‖g‖, 1) | with the page's factor |",
        "|---|---|---|---|",
    ]
    for title, norm in found.items():
        lines.append(
            f"| {title} | {norm / CLIPPING_NORM:.3g} | {right(norm) / CLIPPING_NORM:.3g} C "
            f"| {wrong(norm) / CLIPPING_NORM:.3g} C |"
        )
    return lines


def run(s: Setup) -> tuple[list[float], list[float], Any]:
    """Does the page's run with correct clipping.

    Returns:
      The loss and the accuracy of every batch, and the parameters at the end.
    """
    plan = jaxdp.Plan(
        num_examples=len(s.dataset.private),
        expected_batch_size=BATCH,
        steps=ITERATIONS,
        clipping=jaxdp.clip_individual(CLIPPING_NORM),
        noise_multiplier=STD,
        delta=DELTA,
    )
    tx = optax.chain(jaxdp.privatize(plan, key=jax.random.key(0)), optax.sgd(LEARNING_RATE))
    grads = jaxdp.per_example_grads(s.loss)
    score = jax.vmap(s.loss, (None, 0, 0))

    @jax.jit
    def step(params: Any, state: Any, x: jax.Array, y: jax.Array, mask: jax.Array) -> Any:
        loss = jnp.mean(score(params, x, y), where=mask)
        right = jax.vmap(s.task.scores, (None, 0))(params, (x, y))["accuracy"]
        updates, state = tx.update(grads(params, (x, y), mask), state, params)
        return optax.apply_updates(params, updates), state, loss, jnp.mean(right, where=mask)

    params, state, losses, accuracies = s.params, tx.init(s.params), [], []
    for indices, mask in plan.batches(key=jax.random.key(0)):
        batch = plan.take(s.dataset.private.fields, indices)
        params, state, loss, accuracy = step(params, state, *batch, mask)
        losses.append(float(loss))
        accuracies.append(float(accuracy))
    return losses, accuracies, params


def run_table(losses: list[float], accuracies: list[float]) -> list[str]:
    lines = [
        "| iteration | loss | accuracy | the page's loss | the page's accuracy |",
        "|---|---|---|---|---|",
    ]
    for iteration, loss, accuracy in PAGE_RUN:
        lines.append(
            f"| {iteration} | {losses[iteration]:.3f} | {accuracies[iteration]:.3f} "
            f"| {loss:.3f} | {accuracy:.3f} |"
        )
    return lines


def epsilons(num_examples: int) -> list[str]:
    """Returns a table of ε with the page's noise, by the sampling and the neighbouring relation."""
    q = BATCH / num_examples

    def line(title: str, z: float, accountant: Accountant, **how: Any) -> str:
        mechanism = accounting.Mechanism(
            noise_multiplier=z, steps=ITERATIONS, sampling_probability=q,
            num_examples=num_examples, **how,
        )  # fmt: skip
        value = accounting.epsilon(mechanism, DELTA, accountant)
        return f"| {title} | {z:g} | {math.ceil(value * 10_000) / 10_000:.4f} |"

    shuffled = dict(sampling="shuffled")
    return [
        "| batches, neighbours (accountant) | noise / sensitivity | ε at δ = 1e-5 |",
        "|---|---|---|",
        line("Poisson, one record added or removed (PLD)", STD, "pld"),
        line("Poisson, one record added or removed (RDP)", STD, "rdp"),
        line("shuffled, one record zeroed out (PLD)", STD, "pld", adjacency="zero_out", **shuffled),
        line("shuffled, one record replaced (PLD)", STD / 2, "pld", adjacency="replace_one",
             **shuffled),
    ]  # fmt: skip


def draw(losses: list[float], accuracies: list[float], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for axis, values, title in zip(
        axes, (losses, accuracies), ("loss of the batch", "accuracy on the batch"), strict=True
    ):
        axis.plot(values, color="0.2", linewidth=0.8)
        axis.set(xlabel="iteration", title=title)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", help="where TFDS keeps MNIST; default: TFDS_DATA_DIR")
    parser.add_argument("--figure", type=Path, default=Path("docs/studies/backpack.png"))
    args = parser.parse_args()
    s = setup(args.dir)
    losses, accuracies, params = run(s)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    scores = make_scorer(s.task, s.dataset.test)(params)
    draw(losses, accuracies, args.figure)
    for part in (
        individual_gradients(s),
        wrong_factor(s),
        run_table(losses, accuracies),
        [
            f"Test accuracy after {ITERATIONS} iterations: {scores['accuracy']:.4f}",
            f"The mean of the clipped gradients has norm at most {CLIPPING_NORM:.2f}, the noise on "
            f"it {STD * CLIPPING_NORM * math.sqrt(size) / BATCH:.2f} on average.",
        ],
        epsilons(len(s.dataset.private)),
    ):
        print("\n" + "\n".join(part))
    print(f"\nThe plots are in {args.figure}")


if __name__ == "__main__":
    main()
