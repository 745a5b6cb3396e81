"""Trains a config without privacy.

python -m benchmarks.runs.without_privacy CONFIG.py [OPTIONS]

Plain training by the mean gradient, neither clipped nor noised, with the model, sampling, number of
steps, optimizer and test records of `python -m jaxdp.train CONFIG.py [OPTIONS]`. The learning rate
that suits clipped gradients may not suit these: --training.learning-rate. The first step of a
centred model takes the plain mean of its batch.
"""

import functools
import math
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdp.datasets.feeding import record_keys
from jaxdp.trainer import averages, freezing, parsing
from jaxdp.trainer.command import make_job
from jaxdp.trainer.config import Config
from jaxdp.trainer.scoring import Scores
from jaxdp.trainer.setup import Run, start_run

from ..hardware import hardware


class Plain(NamedTuple):
    """What plain training gave.

    Attributes:
      run: what was trained; its state is that before the first step.
      params: after the last step.
      scores: of the test records, after the last step.
      seconds: of the steps, compiling included.
    """

    run: Run
    params: Any
    scores: Scores
    seconds: float


def train(config: Config) -> Plain:
    """Trains a config without clipping and noise.

    Raises:
      ValueError: for a config that clips batch units.
    """
    run = start_run(make_job(config))
    if run.plan.clipping.unit != "example":
        raise ValueError(
            "this program trains by the gradients of examples: leave out the batch units of the "
            "clipping"
        )
    learner, optimizer = run.learner, run.job.averaging_optimizer
    gradient = jax.grad(learner.unit_loss)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any, batch: Any, mask: jax.Array, shared: Any) -> Any:
        params, optimizer_state = state
        keys = record_keys(batch.key, batch.ids)
        updates, optimizer_state = optimizer.update(
            gradient(params, batch.records, keys, mask, shared=shared), optimizer_state, params
        )
        return optax.apply_updates(params, updates), optimizer_state

    @jax.jit
    def means(batch: Any, mask: jax.Array) -> Any:
        assert learner.numbers_of is not None
        mean = lambda x: jnp.tensordot(mask.astype(x.dtype), x, 1) / jnp.sum(mask)
        return jax.tree.map(mean, jax.vmap(learner.numbers_of)(batch.records))

    measured = learner.measured
    state, start = (learner.params, optimizer.init(learner.params)), time.perf_counter()
    for number, (batch, mask) in enumerate(run.batches()):
        if number == 0 and learner.numbers_of is not None:
            measured = means(batch, mask)
            continue
        state = step(state, batch, mask, (learner.frozen, measured))
    params, optimizer_state = jax.block_until_ready(state)
    seconds = time.perf_counter() - start
    average = averages.averaged(optimizer_state)
    params = params if average is None else average
    params = freezing.merge(params, learner.frozen, measured)
    return Plain(run, params, run.score(params), seconds)


def main(args: list[str]) -> None:
    try:
        config = parsing.parse(args)
        run, _, scores, seconds = train(config)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"{config.name} without privacy: {run.plan.steps} steps in {seconds:.0f} s, {hardware()}")
    print("test", ", ".join(f"{name} {score:.4f}" for name, score in scores.items()), end="")
    is_text = run.job.data.window is not None
    print(f", perplexity {math.exp(scores['loss']):.3f}" if is_text else "")


if __name__ == "__main__":
    main(sys.argv[1:])
