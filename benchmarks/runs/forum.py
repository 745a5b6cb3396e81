"""Answers "why does the norm exceed max_grad_norm after the noise?" with figures.

python -m benchmarks.runs.forum [--runs NUMBER]     (MNIST as TFDS prepares it; half a minute)

The forum's program in jaxdp: MNIST, one linear layer with ReLU, ε = 1 in one epoch, clipping norm
1, SGD at 0.01, with its δ = 1 / number of batches; and then with a δ that means something. It
prints the gradient's norm before the clipping, after it and after the noise at steps 10, 20 and 30
of many runs, beside the norms that were posted for these steps. See docs/studies/forum.md.
"""

import argparse
import copy
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxdp
from jaxdp.accounting import NoiseRow
from jaxdp.datasets import DataConfig, Records, load

from ..hardware import hardware

POSTED = {  # as printed in the forum at steps 10, 20, ..., by batch size
    100: {"before clipping": (2.7777, 2.7157), "after noise": (0.6592, 0.6331)},
    8: {"before clipping": (10.9764, 2.6596, 0.4995), "after noise": (7.0589, 7.1064, 7.1890)},
}
PLACES = ("before clipping", "after clipping", "after noise")


@dataclass(frozen=True)
class Norms:
    """Norms of the update at one place, over steps and runs."""

    place: str
    mean: float
    low: float  # 1% are shorter
    high: float  # 1% are longer
    posted: tuple[float, ...]


def loss(params: jax.Array, image: jax.Array, label: jax.Array) -> jax.Array:
    logits = jax.nn.relu(params @ (image.reshape(784) / 127.5 - 1))
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def noise_needed(batch_size: int, delta: float, num_examples: int) -> NoiseRow:
    """Returns the noise that one epoch at ε = 1 needs, by RDP as in the forum."""
    table = jaxdp.plan_noise(
        num_examples=num_examples,
        num_parameters=7840,
        batch_sizes=[batch_size],
        epsilon=1.0,
        delta=delta,
        epochs=1,
        accountant="rdp",
    )
    return table.rows[0]


def train(records: Records, row: NoiseRow, runs: int) -> list[Norms]:
    """Takes the first steps of the epoch `runs` times, and measures at the steps posted."""
    posted = POSTED[int(row.batch_size)]
    plan = jaxdp.Plan(
        num_examples=len(records),
        expected_batch_size=row.batch_size,
        steps=10 * len(posted["after noise"]),
        clipping=jaxdp.clip_individual(1.0),
        noise_multiplier=row.noise_multiplier,
    )
    optimizer, unclipped = optax.sgd(0.01), jaxdp.clip_individual(np.inf)
    gradients, privatizer = jaxdp.per_example_grads(loss), jaxdp.privatize(plan)

    @jax.jit
    def step(params: jax.Array, states: tuple, batch: tuple, mask: jax.Array) -> tuple:
        private_state, optimizer_state = states
        total, _ = unclipped.update(gradients(params, batch, mask), unclipped.init(params))
        sums = privatizer.sums(gradients(params, batch, mask), private_state)
        noised, private_state = privatizer.release(sums, private_state, params)
        updates, optimizer_state = optimizer.update(noised, optimizer_state, params)
        at = (total / jnp.sum(mask), sums.gradient / plan.divisor, noised)
        norms = jnp.stack([jnp.linalg.norm(gradient) for gradient in at])
        return optax.apply_updates(params, updates), (private_state, optimizer_state), norms

    seen = []
    for seed in range(runs):  # with seeds, so that the figures repeat: MNIST needs no protection
        key = jax.random.key(seed)
        # As PyTorch initialises a linear layer.
        params = jax.random.uniform(key, (10, 784), minval=-1 / 28, maxval=1 / 28)
        states = (jaxdp.privatize(plan, key=key).init(params), optimizer.init(params))
        batches = copy.copy(plan).batches(*records.fields, key=key)
        for number, (batch, mask) in enumerate(batches, 1):
            params, states, norms = step(params, states, batch, mask)
            if number % 10 == 0:
                seen.append(norms)
    return list(summarise(np.array(jnp.stack(seen)), posted))


def summarise(seen: np.ndarray, posted: dict[str, tuple[float, ...]]) -> Iterator[Norms]:
    """Turns norms `[releases, places]` into means and ranges.

    NaN stands for the mean gradient of an empty batch, which there is not: it is left out.
    """
    for place, norms in zip(PLACES, seen.T, strict=True):
        low, high = np.nanquantile(norms, [0.01, 0.99])
        yield Norms(place, float(np.nanmean(norms)), float(low), float(high), posted.get(place, ()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=100, help="each with its own seed")
    args = parser.parse_args()
    start = time.perf_counter()
    try:
        records = load(DataConfig(name="mnist"), print)[0].private
    except ValueError as error:
        sys.exit(f"error: {error}")
    n = len(records)
    for title, delta_of in (
        ("The forum's δ, 1 / number of batches", lambda size: size / n),
        ("A δ below 1/N: N^-1.1", lambda size: n**-1.1),
    ):
        print(title)
        for size in POSTED:
            row = noise_needed(size, delta_of(size), n)
            print(
                f"\n  batch size {size}, δ = {delta_of(size):.3g}, {row.steps} steps: noise "
                f"multiplier {row.noise_multiplier:g} by RDP,\n  expected noise norm "
                f"{row.noise_multiplier:.4g} · √7840 / {size} = {row.noise_norm:.4g}"
            )
            print(f"  {'norm of the gradient':21}{'mean':>8}{'1% to 99%':>20}   the forum's")
            for norms in train(records, row, args.runs):
                posted = ", ".join(f"{value:.4g}" for value in norms.posted) or "-"
                if norms.posted and "forum" in title:
                    inside = all(norms.low <= value <= norms.high for value in norms.posted)
                    posted += " inside" if inside else " OUTSIDE"
                span = f"{norms.low:.4g} to {norms.high:.4g}"
                print(f"  {norms.place:21}{norms.mean:8.4g}{span:>20}   {posted}", flush=True)
        print()
    print(f"{hardware()}, JAX {jax.__version__}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
