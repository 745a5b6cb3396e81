"""A network of dense layers and one of convolutions, small as in many papers on DP-SGD."""

import jax
from flax import linen as nn

from .problem import Problem, images, of_model


class SmallCNN(nn.Module):
    """The 26k-parameter network of many DP-SGD papers, for 28 × 28 images."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(16, (8, 8), strides=2, padding="SAME")(x))
        x = nn.max_pool(x, (2, 2), strides=(1, 1))
        x = nn.relu(nn.Conv(32, (4, 4), strides=2, padding="VALID")(x))
        x = nn.max_pool(x, (2, 2), strides=(1, 1))
        x = nn.relu(nn.Dense(32)(x.reshape(-1)))
        return nn.Dense(10)(x)


class MLP(nn.Module):
    width: int
    layers: int = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(self.layers):
            x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(10)(x)


def small_cnn(small: bool = False) -> Problem:
    rows = 4 if small else 256
    title = f"CNN with 26,000 parameters, batch {rows}"
    return of_model(SmallCNN(), images(rows, 28, 28, 1), title)


def mlp(width: int, small: bool = False) -> Problem:
    width, rows = (8, 4) if small else (width, 256)
    title = f"MLP, 4 layers of {width}, batch {rows}"
    return of_model(MLP(width), images(rows, width), title)
