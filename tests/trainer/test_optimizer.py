"""Optimizers: those of Optax, with the numbers that the options say."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdp.trainer.config import TrainingConfig
from jaxdp.trainer.optimizer import make_optimizer


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TrainingConfig(optimizer="sgd", momentum=0.0, schedule="constant"), optax.sgd(0.7)),
        (TrainingConfig(momentum=0.5, schedule="constant"), optax.sgd(0.7, momentum=0.5)),
        (TrainingConfig(optimizer="adam", schedule="constant"), optax.adam(0.7)),
        (
            TrainingConfig(momentum=0.0),
            optax.sgd(optax.cosine_decay_schedule(0.7, 8, alpha=0.1)),
        ),
    ],
    ids=["sgd", "momentum", "adam", "cosine"],
)
def test_optimizers_are_optax_s(config, expected):
    config = TrainingConfig(**{**vars(config), "learning_rate": 0.7})
    params, made = jnp.arange(3.0), make_optimizer(config, 8)
    results = []
    for optimizer in (made, expected):
        p, state = params, optimizer.init(params)
        for _ in range(8):
            updates, state = optimizer.update(jnp.sin(p), state, p)
            p = optax.apply_updates(p, updates)
        results.append(p)
    np.testing.assert_allclose(*results, rtol=1e-6)
