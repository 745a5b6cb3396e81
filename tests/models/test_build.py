"""Models that mix examples or keep state are refused by name."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from helpers.small_dataset import small_dataset

from jaxdp import models


class Net(nn.Module):
    norm: nn.Module

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3))(x)
        return nn.Dense(10)(self.norm(x).reshape(len(x), -1))


def test_batch_norm_is_refused_by_the_layer_s_name():
    net = Net(nn.BatchNorm(use_running_average=False))
    with pytest.raises(ValueError, match=r"BatchNorm in layer 'norm'.*flax\.linen\.GroupNorm"):
        models.init_params(net, jax.random.key(0), small_dataset())


def test_other_state_is_refused():
    class Counter(nn.Module):
        @nn.compact
        def __call__(self, x):
            seen = self.variable("memory", "seen", lambda: jnp.zeros(()))
            seen.value += x.sum()
            return nn.Dense(10)(x.reshape(len(x), -1))

    with pytest.raises(ValueError, match="state beside its parameters, in 'memory'"):
        models.init_params(Counter(), jax.random.key(0), small_dataset())
