"""The models that are measured, each with the loss of one example and a random batch."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


@dataclass(frozen=True)
class Problem:
    loss: Callable[..., jax.Array]  # (params, x, y) of one example
    params: Any
    batch: tuple[jax.Array, jax.Array]
    microbatch_size: int | None = None
    dense_fits: bool = True  # whether all per-example gradients fit into an ordinary memory


class Block(nn.Module):
    """Attention and a dense network, each after LayerNorm and added to its input."""

    width: int
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads)(h, h)
        h = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
        return x + nn.Dense(self.width)(h)


class Transformer(nn.Module):
    width: int
    layers: int = 4
    heads: int = 4
    vocabulary: int = 1000

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(self.vocabulary, self.width)(tokens)
        position = self.param("position", nn.initializers.normal(0.02), x.shape)
        x = x + position
        for _ in range(self.layers):
            x = Block(self.width, self.heads)(x)
        return nn.Dense(self.vocabulary)(nn.LayerNorm()(x))


class ViT(nn.Module):
    """For 32 × 32 images, in 64 patches."""

    width: int
    layers: int = 4
    heads: int = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(self.width, (4, 4), strides=4)(x).reshape(-1, self.width)
        x = x + self.param("position", nn.initializers.normal(0.02), x.shape)
        for _ in range(self.layers):
            x = Block(self.width, self.heads)(x)
        return nn.Dense(10)(jnp.mean(nn.LayerNorm()(x), axis=0))


class ResNet18(nn.Module):
    """For 32 × 32 images, with GroupNorm."""

    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(nn.Conv, kernel_size=(3, 3), use_bias=False)
        norm = partial(nn.GroupNorm, 32)
        x = nn.relu(norm()(conv(64)(x)))
        for stage, features in enumerate([64, 128, 256, 512]):
            for block in range(2):
                strides = 2 if stage > 0 and block == 0 else 1
                y = nn.relu(norm()(conv(features, strides=strides)(x)))
                y = norm()(conv(features)(y))
                if x.shape != y.shape:
                    x = norm()(conv(features, kernel_size=(1, 1), strides=strides)(x))
                x = nn.relu(x + y)
        return nn.Dense(self.classes)(jnp.mean(x, axis=(0, 1)))


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


def _classifier(
    model: nn.Module, shape: tuple[int, ...], batch: int, dense_fits: bool = True
) -> Problem:
    x = jax.random.normal(jax.random.key(0), (batch, *shape))
    y = jax.random.randint(jax.random.key(1), (batch,), 0, 10)
    params = model.init(jax.random.key(2), x[0])

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return -jax.nn.log_softmax(model.apply(params, x))[y]

    return Problem(loss, params, (x, y), dense_fits=dense_fits)


def _language_model(
    model: Transformer, length: int, batch: int, microbatch_size: int | None = None
) -> Problem:
    shape = (batch, length)
    x = jax.random.randint(jax.random.key(0), shape, 0, model.vocabulary)
    y = jax.random.randint(jax.random.key(1), shape, 0, model.vocabulary)
    params = model.init(jax.random.key(2), x[0])

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        log_probabilities = jax.nn.log_softmax(model.apply(params, x))
        return -jnp.mean(jnp.take_along_axis(log_probabilities, y[:, None], axis=1))

    return Problem(loss, params, (x, y), microbatch_size)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "small_cnn": lambda: _classifier(SmallCNN(), (28, 28, 1), 256),
    "mlp_small": lambda: _classifier(MLP(512), (512,), 256),
    "transformer_d256_t64": lambda: _language_model(Transformer(256), 64, 64),
    "transformer_d256_t64_micro16": lambda: _language_model(Transformer(256), 64, 64, 16),
    "transformer_d256_t256": lambda: _language_model(Transformer(256), 256, 16),
    "transformer_d512_t64": lambda: _language_model(Transformer(512, heads=8), 64, 32),
    "vit_d256": lambda: _classifier(ViT(256), (32, 32, 3), 64),
    "resnet18_gn": lambda: _classifier(ResNet18(), (32, 32, 3), 32),
    "mlp_wide": lambda: _classifier(MLP(2048), (2048,), 256, dense_fits=False),
}
SUITES = {
    "quick": ["small_cnn", "mlp_small", "transformer_d256_t64"],
    "full": list(PROBLEMS),
}
