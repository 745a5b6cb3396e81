"""The tasks of the built-in models: their loss, their scores, what is done to inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small_dataset import SMALL_FORMAT, small_dataset

from jaxdp.datasets.sources import Format
from jaxdp.models.config import ModelConfig
from jaxdp.tasks.builtin import make_task, scaled

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def data():
    return small_dataset()


@pytest.fixture(scope="module")
def linear(data):
    """The linear model's task, and first parameters."""
    task = make_task(ModelConfig("linear"), SMALL_FORMAT)
    return task, task.init(KEY, data.private.zero())


def test_loss_is_the_cross_entropy_of_one_record(data, linear):
    task, params = linear
    x, y = jax.tree.map(lambda rows: rows[0], data.private.fields)
    dense = params["Dense_0"]
    logits = np.asarray((x / 8.0).reshape(-1) @ dense["kernel"] + dense["bias"], np.float64)
    expected = np.log(np.exp(logits).sum()) - logits[y]
    assert float(task.loss(params, (x, y), KEY)) == pytest.approx(expected, rel=1e-5)


def test_accuracy_counts_test_records(data, linear):
    task, params = linear
    images, labels = data.test.fields
    favourite = int(labels[0])
    bias = jnp.zeros(10).at[favourite].set(1e6)
    params = {"Dense_0": {**params["Dense_0"], "bias": bias}}
    found = [
        float(task.scores(params, record)["accuracy"])
        for record in zip(images, labels, strict=True)
    ]
    np.testing.assert_array_equal(found, labels == favourite)


def test_augmentation_is_for_the_loss_alone(data, linear):
    plain, params = linear
    record = jax.tree.map(lambda rows: rows[0], data.private.fields)
    seen = []

    def augment(key, image):
        seen.append(image.dtype)
        return jnp.where(jax.random.bernoulli(key), image, jnp.zeros_like(image))

    task = make_task(ModelConfig("linear"), SMALL_FORMAT, augment)
    losses = {float(task.loss(params, record, jax.random.key(k))) for k in range(20)}
    black = (np.zeros_like(record[0]), record[1])
    expected = [float(plain.loss(params, r, KEY)) for r in (record, black)]
    np.testing.assert_allclose(sorted(losses), sorted(expected), rtol=1e-6)
    assert set(seen) == {jnp.dtype(jnp.uint8)}  # before it is scaled
    seen.clear()
    same = [t.scores(params, record)["loss"] for t in (task, plain)]
    np.testing.assert_array_equal(*same)
    assert seen == []


def test_inputs_are_scaled_as_the_format_says():
    image = np.array([[[0, 10]], [[20, 30]]], np.uint8)
    made = scaled(Format("image", "class", 10, (10.0, 20.0), (5.0, 10.0), ""), image)
    np.testing.assert_allclose(made, [[[-2, -1]], [[2, 1]]])
    assert made.dtype == jnp.float32
    tokens = scaled(Format("tokens", "tokens", 97, None, None, "", 97), np.array([1, 2], np.uint8))
    assert tokens.dtype == jnp.int32
