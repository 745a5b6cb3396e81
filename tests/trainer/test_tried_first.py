"""What a task and an optimizer do at the end of a run is tried before its first step."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

for module in ("tyro", "safetensors"):
    pytest.importorskip(module)

import flax.linen as nn  # noqa: E402

import jaxdp  # noqa: E402

X, Y = np.random.default_rng(0).normal(size=(60, 4)).astype("f4"), np.arange(60) % 3
DATA = jaxdp.Dataset((X[:50], Y[:50]), (X[50:], Y[50:]))
PLAN = jaxdp.PlanSettings(
    expected_batch_size=20, steps=2, noise_multiplier=1.0, clipping=jaxdp.clip_individual(1.0)
)


def loss(params, record, key):
    x, y = record
    return (x @ params["w"] + x @ params["v"] - y) ** 2


def task(**changes):
    shared = jnp.ones(4)  # one array for two parameters
    functions = dict(init=lambda key, record: {"w": shared, "v": shared}, loss=loss)
    return jaxdp.Task(**{**functions, **changes})


def fit(folder, task, data=DATA, optimizer=None):
    optimizer = optax.sgd(0.1) if optimizer is None else optimizer
    return jaxdp.fit(task, data, PLAN, optimizer=optimizer, output=folder / "run")


@pytest.mark.slow
def test_arrays_that_are_shared_are_copied_before_steps_use_their_memory(tmp_path):
    keeps_parameters = optax.contrib.prodigy(1.0)  # its state holds the first ones as they are
    assert fit(tmp_path, task(), optimizer=keeps_parameters).finished


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"task": task(scores=lambda params, record: jnp.zeros(()))},
            r"the task's scores are .*: return a dict of numbers for one record",
        ),
        (
            {"task": task(scores=lambda params, record: {"loss": jnp.zeros(3)})},
            r"the task's scores are .*: return a dict of numbers for one record",
        ),
        ({"task": task(predict=lambda params, x: x @ params["nothing"])}, "nothing"),
        ({"optimizer": optax.lbfgs()}, r"the optimizer can't be used .* as optax\.adam"),
        (
            {"task": jaxdp.tasks.classifier(nn.Dense(2))},
            "row 2 of the private records: its label is none of the model's 2 classes, 0 to 1",
        ),
        (
            {
                "task": jaxdp.tasks.classifier(nn.Dense(3)),
                "data": jaxdp.Dataset((X, Y), (X[:3], np.array([0, 1, -1]))),
            },
            "row 2 of the test records: its label is none",
        ),
    ],
    ids=["no dict", "no number", "predict", "optimizer", "label", "negative label"],
)
def test_what_would_fail_later_is_told_before_anything_is_spent(changes, says, tmp_path):
    with pytest.raises((ValueError, KeyError), match=says):
        fit(tmp_path, **{"task": task(), **changes})
    assert list(tmp_path.iterdir()) == []
