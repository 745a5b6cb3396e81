"""A small task of plain functions, and `fit` on it as the tests call it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxdp
from jaxdp.datasets.dataset import Dataset
from jaxdp.tasks.task import Task
from jaxdp.trainer.fit import fit
from jaxdp.trainer.plan_settings import PlanSettings

STEPS = 8
PLAN = PlanSettings(
    expected_batch_size=32, steps=STEPS, epsilon=8.0, clipping=jaxdp.clip_individual(1.0)
)
SGD = optax.sgd(0.5, momentum=0.9)


def init(key, record):
    features = record["x"].shape[0]
    return [{"w": 0.1 * jax.random.normal(key, (features, 2))}, (jnp.zeros(2),)]


def logits(params, x):
    (first, (bias,)) = params
    return x @ first["w"] + bias


def loss(params, record, key):
    x = record["x"] * jax.random.bernoulli(key, 0.9, record["x"].shape)
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), record["y"])


def scores(params, record):
    return {"right": jnp.argmax(logits(params, record["x"])) == record["y"]}


TASK = Task(init, loss, scores, lambda p, record: logits(p, record["x"]), name="two classes")


def rows(count, seed=0):
    x = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)
    return {"x": x, "y": (x[:, 0] > 0).astype(np.int32)}


DATA = Dataset(private=rows(200), test=rows(60, seed=1), name="visits")


def fitted(folder=None, task=TASK, data=DATA, plan=PLAN, optimizer=SGD, **options):
    return fit(
        task,
        data,
        plan,
        optimizer=optimizer,
        output=folder,
        **{"checkpoint_seconds": 0.0, "keep_checkpoints": 3, **options},
    )
