"""Scores on the test records."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small_dataset import small_dataset

from jaxdp import models
from jaxdp.models.config import ModelConfig


def test_accuracy_counts_test_records():
    dataset = small_dataset()
    model = models.make_model(ModelConfig("linear"), small_dataset())
    params = models.init_params(model, jax.random.key(0), dataset)
    favourite = int(dataset.test.labels[0])
    bias = jnp.zeros(10).at[favourite].set(1e6)
    params = {"Dense_0": {**params["Dense_0"], "bias": bias}}
    share = np.mean(dataset.test.labels == favourite)
    assert models.evaluate(model, dataset, params).accuracy == pytest.approx(share)
