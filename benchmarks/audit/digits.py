"""Audits the step of configs/digits_linear.py: `python -m benchmarks.audit.digits [PICTURE]`.

The batch is all records (q = 1), so that a step has no privacy but that of its noise.
"""

import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

import jaxdp
from jaxdp.audit import audit_step
from jaxdp.datasets import loading
from jaxdp.datasets.config import DataConfig
from jaxdp.trainer.config import Config

from ..hardware import hardware

ROWS = 64  # of the batch that is audited
RELEASES = 100_000


class Problem(NamedTuple):
    """A step to audit: the arguments of `audit_step`."""

    plan: jaxdp.Plan
    grads: Callable[..., Any]
    params: Any
    batch: Any


def problem(epsilon: float) -> Problem:
    """The digits by a linear model, with the noise multiplier of the config at this ε."""
    data, _ = loading.load(DataConfig(), lambda line: None, ())
    settings = Config().plan
    n = len(data.private)
    of_config = jaxdp.Plan(
        num_examples=n,
        expected_batch_size=settings.expected_batch_size,
        steps=settings.steps,
        epsilon=epsilon,
        clipping=jaxdp.clip_individual(1.0),
    )
    plan = jaxdp.Plan(
        num_examples=n,
        expected_batch_size=n,
        steps=2,
        noise_multiplier=float(of_config.noise_multipliers()[0]),
        clipping=jaxdp.clip_individual(1.0),
    )
    records = data.private.take(range(ROWS))
    images, labels = (np.asarray(field) for field in records)
    params = {"kernel": jnp.zeros((images[0].size, 10)), "bias": jnp.zeros(10)}

    def loss(params: Any, image: Any, label: Any) -> Any:
        logits = image.reshape(-1) @ params["kernel"] + params["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, label)

    grads = jaxdp.per_example_grads(loss)
    batch = (images.astype(np.float32) / 16, labels)
    return Problem(plan, lambda params, batch, mask: grads(params, batch, mask), params, batch)


def main(args: list[str]) -> None:
    """Prints an audit for each ε; a picture of that at ε = 3."""
    print(hardware())
    for epsilon in (1.0, 3.0, 8.0):
        p = problem(epsilon)
        start = time.monotonic()
        found = audit_step(
            p.plan,
            jaxdp.privatize(p.plan),
            p.grads,
            p.params,
            p.batch,
            which=["coordinate"],
            releases=RELEASES,
            steps=1,
        )
        print(
            f"noise multiplier of epsilon = {epsilon:g}: mu {found.mu:.4f} of "
            f"{found.claimed_mu:.4f} ({found.mu / found.claimed_mu:.1%}), epsilon "
            f"{found.epsilon:.3f} of {found.claimed_epsilon:.3f} at delta {found.delta:.3g}; "
            f"{time.monotonic() - start:.0f} s",
            flush=True,
        )
        if args and epsilon == 3.0:
            found.plot(args[0])


if __name__ == "__main__":
    main(sys.argv[1:])
