"""A small regression that the loop trains on: the frame of a run without data sets or files."""

import copy

import jax
import jax.numpy as jnp
import numpy as np

from jaxdp import Plan, clip_individual, privatize
from jaxdp.datasets.feeding import Batch
from jaxdp.trainer import loop
from jaxdp.trainer.config import TrainingConfig
from jaxdp.trainer.optimizer import make_optimizer
from jaxdp.trainer.signals import StopRequest
from jaxdp.trainer.step import init_state, make_train_step

N = 40


def loss(params, record, key, *, shared):
    x, y = record
    return (params["w"] @ x + params["b"] - y) ** 2


class CountedSteps:
    """The payment of a run without a ledger: a count."""

    def __init__(self):
        self.count = 0

    def pay(self, step):
        self.count = step + 1

    def may_stop(self, step):
        return True


class Problem:
    """A small regression; `traces` counts how often its loss is traced."""

    def __init__(self, steps=12, key=None, sampling_key=None, batch=10):
        rng = np.random.default_rng(0)
        self.records = (rng.normal(size=(N, 3)).astype("f4"), rng.normal(size=N).astype("f4"))
        self.plan = Plan(
            num_examples=N,
            expected_batch_size=batch,
            steps=steps,
            clipping=clip_individual(1.0),
            noise_multiplier=1.0,
        )
        self.traces = 0
        privatizer = privatize(self.plan, key=key)
        optimizer = make_optimizer(TrainingConfig(learning_rate=0.1), steps)
        params = {"w": jnp.ones(3), "b": jnp.zeros(())}
        self.state = init_state(params, privatizer, optimizer)
        step = make_train_step(self._loss, privatizer, optimizer, 4)
        self.step = lambda state, batch, mask: step(state, batch, mask, frozen=None)
        self.samples = lambda: copy.copy(self.plan).batches(key=sampling_key)
        self.batches = lambda: ((self.take(rows), mask) for rows, mask in self.samples())

    def take(self, rows):
        return Batch(self.plan.take(self.records, rows), rows, jax.random.key(0))

    def _loss(self, *args, **options):
        self.traces += 1
        return loss(*args, **options)

    def run(self, stop=None, watch=lambda metrics: None, visitors=()):
        self.payment = CountedSteps()
        stop = stop or StopRequest()
        self.state = loop.train(
            self.step,
            self.state,
            self.batches(),
            payment=self.payment,
            stop=lambda: stop.requested,
            watch=watch,
            visitors=visitors,
        )
        return self.state.params
