"""Convolutional networks for 32 × 32 images."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxdp.models.wide_resnet import WideResNet

from .problem import Problem, images, of_model, outputs


class ResNet18(nn.Module):
    """With GroupNorm."""

    width: int = 64
    groups: int = 32
    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(nn.Conv, kernel_size=(3, 3), use_bias=False)
        norm = partial(nn.GroupNorm, self.groups)
        x = nn.relu(norm()(conv(self.width)(x)))
        for stage in range(4):
            features = self.width * 2**stage
            for block in range(2):
                strides = 2 if stage > 0 and block == 0 else 1
                y = nn.relu(norm()(conv(features, strides=strides)(x)))
                y = norm()(conv(features)(y))
                if x.shape != y.shape:
                    x = norm()(conv(features, kernel_size=(1, 1), strides=strides)(x))
                x = nn.relu(x + y)
        return nn.Dense(self.classes)(jnp.mean(x, axis=(0, 1)))


def resnet18_gn(small: bool = False) -> Problem:
    width, groups, side, rows = (4, 2, 8, 4) if small else (64, 32, 32, 32)
    title = f"ResNet-18 with GroupNorm, batch {rows}"
    return of_model(ResNet18(width, groups), images(rows, side, side, 3), title)


class DepthwiseCNN(nn.Module):
    """Convolutions of each channel on its own, then of one pixel (MobileNet), with GroupNorm."""

    widths: tuple[int, ...]
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = partial(nn.GroupNorm, self.groups)
        x = nn.relu(norm()(nn.Conv(self.widths[0], (3, 3), use_bias=False)(x)))
        for i, features in enumerate(self.widths):
            channels, strides = x.shape[-1], 2 if i % 2 else 1
            depthwise = nn.Conv(
                channels, (3, 3), strides, feature_group_count=channels, use_bias=False
            )
            x = nn.relu(norm()(depthwise(x)))
            x = nn.relu(norm()(nn.Conv(features, (1, 1), use_bias=False)(x)))
        return nn.Dense(10)(jnp.mean(x, axis=(0, 1)))


def depthwise_cnn(small: bool = False) -> Problem:
    widths, groups, side, rows = (
        ((4, 8), 2, 8, 4) if small else ((64, 128, 128, 256, 256), 16, 32, 16)
    )
    title = f"depthwise-separable CNN, batch {rows}"
    return of_model(DepthwiseCNN(widths, groups), images(rows, side, side, 3), title)


class OfOneImage(nn.Module):
    """A network for batches, `[B, H, W, C]`, of one image."""

    network: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.network(x[None])[0]


def wrn_weight_standardised(small: bool = False) -> Problem:
    layers, widening, side, rows = (10, 1, 8, 4) if small else (16, 4, 32, 16)
    title = f"WRN-{layers}-{widening} with weight standardisation, batch {rows}"
    problem = of_model(
        OfOneImage(WideResNet(10, layers, widening)), images(rows, side, side, 3), title
    )
    return replace(problem, agreement=0.3 if small else 0.005)


class UNet(nn.Module):
    """Halves the image at every width and doubles it again, beside what it was on the way down."""

    widths: tuple[int, ...]
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def twice(x: jax.Array, features: int) -> jax.Array:
            for _ in range(2):
                x = nn.relu(nn.GroupNorm(self.groups)(nn.Conv(features, (3, 3))(x)))
            return x

        channels, skipped = x.shape[-1], []
        for features in self.widths:
            x = twice(x, features)
            skipped.append(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = twice(x, 2 * self.widths[-1])
        for features in reversed(self.widths):
            x = nn.ConvTranspose(features, (2, 2), (2, 2))(x)
            x = twice(jnp.concatenate([x, skipped.pop()], axis=-1), features)
        return nn.Conv(channels, (1, 1))(x)


def unet(small: bool = False) -> Problem:
    """Predicts the noise in an image."""
    widths, groups, side, rows = ((4, 8), 2, 8, 4) if small else ((32, 64, 128), 8, 32, 16)
    model = UNet(widths, groups)
    x, _ = images(rows, side, side, 3)
    params = jax.jit(model.init)(jax.random.key(2), x[0])
    noise = jax.random.normal(jax.random.key(1), x.shape)

    def loss(params: Any, x: jax.Array, noise: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(outputs(model, params, x + noise) - noise))

    return Problem(loss, params, (x, noise), title=f"U-Net, batch {rows}")
