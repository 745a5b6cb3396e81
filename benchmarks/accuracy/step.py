"""Times a step of the linear layer on scattering features against its two matrix products.

python -m benchmarks.accuracy.step [--batch-size 8192] [--turns 5]

A step is what `python -m jaxdp.train` does for one: the rows of a batch are taken out of float16
features in memory; then the private gradient with its norms, clipping and noise, and the update.
The two products are `x @ w` and `x.T @ c` of such a batch in float32: the least that a step could
take. Everything is compiled before. Printed are medians of the turns, in which all take turns, and
the memory of the compiled step with the batch.
"""

import argparse
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxdp
from jaxdp.datasets.feeding import feed
from jaxdp.datasets.records import Records
from jaxdp.dpsgd import keys
from jaxdp.models import networks
from jaxdp.tasks import classifier
from jaxdp.trainer.step import init_state, make_train_step

from ..engine.timing import compile_program, ratio, take_turns
from ..hardware import hardware

RECORDS, CLASSES = 16_384, 10
SHAPES = {"28x28 pixels": (7, 7, 81), "32x32 pixels in colours": (8, 8, 243)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=8192)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    print(f"Batches of {options.batch_size:,}, {hardware()}, JAX {jax.__version__}")
    for name, shape in SHAPES.items():
        measure(name, shape, options.batch_size, options.turns)


def measure(name: str, shape: tuple[int, ...], batch_size: int, turns: int) -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((RECORDS, *shape), np.float32).astype(np.float16)
    labels = rng.integers(0, CLASSES, RECORDS).astype(np.int32)
    plan = jaxdp.Plan(
        num_examples=RECORDS,
        expected_batch_size=batch_size,
        steps=10_000,
        noise_multiplier=3.0,
        delta=1e-5,
        clipping=jaxdp.clip_individual(0.1),
    )
    task = classifier(networks.Linear(CLASSES), preprocess=lambda x: x.astype(jnp.float32))
    params = task.init(jax.random.key(0), (features[0], labels[0]))
    privatizer, optimizer = jaxdp.privatize(plan), optax.sgd(16.0, momentum=0.9)

    loss = lambda params, record, key, shared: task.loss(params, record, key)
    train_step = make_train_step(loss, privatizer, optimizer, microbatch_size=256)
    key = jaxdp.secret_key()
    batches = feed(
        Records((features, labels)),
        plan.batches(key=key),
        step_key=lambda step: keys.jax_key(key, "loss", step),
        placement="host",
    )
    batch, mask = next(batches)
    state = init_state(params, privatizer, optimizer)
    program = compile_program(train_step, state, batch, mask, None)
    x = jnp.asarray(features[:batch_size].reshape(batch_size, -1), jnp.float32)
    w, c = jnp.zeros((x.shape[1], CLASSES)), jnp.ones((batch_size, CLASSES))
    products = jax.jit(lambda x, w, c: (x @ w, x.T @ c))

    def take_step() -> None:
        nonlocal state
        taken, mask = next(batches)
        state, _ = jax.block_until_ready(train_step(state, taken, mask, None))

    def compute() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(train_step(state, batch, mask, None))

    runs = {
        "products": lambda: jax.block_until_ready(products(x, w, c)),
        "step": take_step,
        "compute": compute,
    }
    times = take_turns(runs, turns)
    batches.close()
    for part, told in (
        ("products", "the two matrix products"),
        ("step", "a step with its batch"),
        ("compute", "a step, the batch being there"),
    ):
        seconds = statistics.median(times[part])
        print(
            f"{name}: {told}: {1e3 * seconds:.0f} ms, {ratio(times, part, 'products'):.2f} x "
            "the products"
        )
    if program.needed_gb is not None:
        print(f"{name}: memory of the compiled step with its batch: {program.needed_gb:.2f} GB")


if __name__ == "__main__":
    main()
