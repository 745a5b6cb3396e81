"""Losses of the built-in models."""

import jax
import numpy as np
import pytest
from helpers.small_dataset import small_dataset

from jaxdp import models
from jaxdp.models.config import ModelConfig


def test_loss_is_the_cross_entropy_of_one_record():
    dataset = small_dataset()
    model = models.make_model(ModelConfig("linear"), small_dataset())
    params = models.init_params(model, jax.random.key(0), dataset)
    x, y = dataset.private.inputs[0], dataset.private.labels[0]
    dense = params["Dense_0"]
    logits = np.asarray((x / 8.0).reshape(-1) @ dense["kernel"] + dense["bias"], np.float64)
    expected = np.log(np.exp(logits).sum()) - logits[y]
    assert float(models.make_loss(model, dataset)(params, x, y)) == pytest.approx(
        expected, rel=1e-5
    )
