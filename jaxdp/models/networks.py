"""The networks, as Flax linen modules.

Those for images take `[B, H, W, C]` and return logits `[B, num_classes]`, or one number each.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..datasets.sources import PADDING

Activation = Callable[[jax.Array], jax.Array]

ACTIVATIONS: dict[str, Activation] = {"tanh": jnp.tanh, "relu": nn.relu}


class Normalisation(NamedTuple):
    """The layer between a convolution and its activation.

    BatchNorm is written for evaluation, with given statistics. The module `batchnorm` trains it.

    Attributes:
      kind: group for GroupNorm, batch for BatchNorm, none for no layer.
      group_size: channels in a group of GroupNorm; 0 for no layer.
    """

    kind: Literal["group", "batch", "none"]
    group_size: int = 1

    def __call__(self, x: jax.Array, epsilon: float, name: str | None = None) -> jax.Array:
        if self.kind == "batch":
            return nn.BatchNorm(
                use_running_average=True, epsilon=epsilon, use_fast_variance=False, name=name
            )(x)
        if self.kind == "group" and self.group_size:
            return nn.GroupNorm(None, self.group_size, epsilon=epsilon, name=name)(x)
        return x


class CNN(nn.Module):
    """Convolutions 3x3 with an activation and 2x2 average pooling, then a linear layer.

    The default activation is tanh and not ReLU: bounded activations keep gradients near one size,
    so that clipping loses less (Papernot et al. 2020, arXiv 2007.14191).
    """

    num_classes: int
    widths: tuple[int, ...]
    norm: Normalisation
    activation: Activation

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        x = x_BxHxWxC
        for width in self.widths:
            if min(x.shape[1:3]) < 2:
                raise ValueError(
                    f"model.widths is {self.widths}, and each of these convolutions halves the "
                    f"image: give fewer for inputs of shape {x_BxHxWxC.shape[1:]}"
                )
            x = nn.Conv(width, (3, 3))(x)
            # A large epsilon, so that rounding errors in blank images are not blown up.
            x = self.norm(x, epsilon=1e-2)
            x = nn.avg_pool(self.activation(x), (2, 2), (2, 2))
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


class ScatteringCNN(nn.Module):
    """Convolutions 3x3 with max-pooling 2x2 between them, then a linear layer, `[B, H, W, C]`.

    References:
      Tramèr & Boneh 2021, Differentially Private Learning Needs Better Features (arXiv 2011.11660),
      appendix C.2, with widths of 64 and 64.
    """

    num_classes: int
    widths: tuple[int, ...]
    activation: Activation

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        x = x_BxHxWxC
        for i, width in enumerate(self.widths):
            if i > 0:
                if min(x.shape[1:3]) < 2:
                    raise ValueError(
                        f"model.widths is {self.widths}, and pooling between these convolutions "
                        f"halves the inputs: give fewer for those of shape {x_BxHxWxC.shape[1:]}"
                    )
                x = nn.max_pool(x, (2, 2), (2, 2))
            x = self.activation(nn.Conv(width, (3, 3))(x))
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


class Linear(nn.Module):
    """One linear layer on the pixels or features, `[B, ...]`."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


class MLP(nn.Module):
    """Hidden layers with an activation, then a linear layer, on `[B, ...]`."""

    num_classes: int
    widths: tuple[int, ...]
    activation: Activation

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(len(x), -1)
        for width in self.widths:
            x = self.activation(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)


class OneNumber(nn.Module):
    """The only output of a network, `[B, ...] -> [B]`."""

    network: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.network(x)[:, 0]


MEAN = "mean"  # the parameter of `Centred`


class Centred(nn.Module):
    """A network on inputs less their mean, a parameter that is measured and not trained."""

    network: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.network(x - self.param(MEAN, nn.initializers.zeros, x.shape[1:]))


class Embedding(nn.Module):
    """The mean of the embeddings of a document's tokens, then a linear layer, `[B, T] -> [B, C]`.

    Tokens that fill up a document (PADDING) are left out of its mean.
    """

    num_classes: int
    vocabulary: int
    width: int

    @nn.compact
    def __call__(self, tokens_BxT: jax.Array) -> jax.Array:
        mask_BxT = tokens_BxT != PADDING
        x_BxTxD = nn.Embed(self.vocabulary, self.width)(tokens_BxT)
        total_BxD = jnp.sum(x_BxTxD * mask_BxT[..., None], 1)
        count_Bx1 = jnp.sum(mask_BxT, 1, keepdims=True)
        return nn.Dense(self.num_classes)(total_BxD / jnp.maximum(count_Bx1, 1))


class BackpackCNN(nn.Module):
    """The CNN of BackPACK's example of DP-SGD, for images of 28x28 pixels: 26,010 parameters."""

    num_classes: int
    activation: Activation

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        if min(x_BxHxWxC.shape[1:3]) < 13:
            raise ValueError(
                f"model.name is backpack_cnn, for images of at least 13x13 pixels, but inputs have "
                f"shape {x_BxHxWxC.shape[1:]}: choose cnn"
            )
        x = jnp.pad(x_BxHxWxC, ((0, 0), (3, 4), (3, 4), (0, 0)))
        for channels, kernel in ((16, 8), (32, 4)):
            x = nn.Conv(channels, (kernel, kernel), strides=2, padding="VALID")(x)
            x = nn.max_pool(self.activation(x), (2, 2), (1, 1))
        x = self.activation(nn.Dense(32)(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes)(x)


class LeNet(nn.Module):
    """LeNet-5: two convolutions 5x5 with average pooling, then three dense layers.

    Smaller images are padded to 32x32.

    References:
      LeCun et al. 1998, Gradient-Based Learning Applied to Document Recognition.
    """

    num_classes: int
    activation: Activation

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        short = [max(0, 32 - side) for side in x_BxHxWxC.shape[1:3]]
        x = jnp.pad(x_BxHxWxC, ((0, 0), *((n // 2, n - n // 2) for n in short), (0, 0)))
        for channels in (6, 16):
            x = self.activation(nn.Conv(channels, (5, 5), padding="VALID")(x))
            x = nn.avg_pool(x, (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        for features in (120, 84):
            x = self.activation(nn.Dense(features)(x))
        return nn.Dense(self.num_classes)(x)


class ResidualBlock(nn.Module):
    """Two convolutions 3x3, and a shortcut past them.

    The shortcut has a convolution 1x1 where input and output differ in shape.
    """

    width: int
    stride: int
    norm: Normalisation

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        x = shortcut = x_BxHxWxC
        x = _conv(self.width, 3, self.stride, "conv1")(x)
        x = nn.relu(self.norm(x, EPSILON, "norm1"))
        x = self.norm(_conv(self.width, 3, 1, "conv2")(x), EPSILON, "norm2")
        if shortcut.shape != x.shape:
            shortcut = _conv(self.width, 1, self.stride, "shortcut_conv")(shortcut)
            shortcut = self.norm(shortcut, EPSILON, "shortcut_norm")
        return nn.relu(x + shortcut)


class ResNet18(nn.Module):
    """ResNet-18 for small images: its first convolution is 3x3, and no pooling follows it.

    With a normalisation it has 62 parameter tensors. With width 64 and 10 classes they hold
    11,173,962 numbers.

    References:
      He et al. 2016, Deep Residual Learning for Image Recognition (arXiv 1512.03385).
    """

    num_classes: int
    width: int
    norm: Normalisation

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        x = _conv(self.width, 3, 1, "conv")(x_BxHxWxC)
        x = nn.relu(self.norm(x, EPSILON, "norm"))
        for stage in range(4):
            for block in range(2):
                stride = 2 if stage > 0 and block == 0 else 1
                name = f"stage{stage + 1}_block{block + 1}"
                x = ResidualBlock(self.width * 2**stage, stride, self.norm, name=name)(x)
        return nn.Dense(self.num_classes, name="head")(jnp.mean(x, axis=(1, 2)))


EPSILON = 1e-5  # of the residual network's normalisation


def _conv(width: int, size: int, stride: int, name: str) -> nn.Conv:
    return nn.Conv(
        width,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        kernel_init=nn.initializers.he_normal(),
        name=name,
    )


class Transformer(nn.Module):
    """A decoder: predicts each next token from the tokens up to it, `[B, T] -> [B, T, classes]`."""

    num_classes: int
    width: int
    layers: int
    heads: int

    @nn.compact
    def __call__(self, tokens_BxT: jax.Array) -> jax.Array:
        length = tokens_BxT.shape[1]
        positions = self.param("positions", nn.initializers.normal(0.02), (length, self.width))
        x_BxTxD = nn.Embed(self.num_classes, self.width)(tokens_BxT) + positions
        causal = nn.make_causal_mask(tokens_BxT)
        for _ in range(self.layers):
            h = nn.LayerNorm()(x_BxTxD)
            x_BxTxD += nn.MultiHeadDotProductAttention(self.heads)(h, mask=causal)
            h = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x_BxTxD)))
            x_BxTxD += nn.Dense(self.width)(h)
        return nn.Dense(self.num_classes)(nn.LayerNorm()(x_BxTxD))
