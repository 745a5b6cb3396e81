"""Small Flax models, their loss and scores, and the check that a model keeps examples apart."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from .config import ModelConfig
from .data import Dataset

PyTree = Any
ACTIVATIONS = {"tanh": jnp.tanh, "relu": nn.relu}
ROWS_AT_A_TIME = 500  # of the test records, which bounds the memory


class CNN(nn.Module):
    """Convolutions 3x3 with tanh and 2x2 average pooling, then a linear layer.

    tanh rather than ReLU, because bounded activations keep gradients near one size, so that
    clipping loses less (Papernot et al. 2020, arXiv 2007.14191).
    """

    num_classes: int
    widths: tuple[int, ...]
    norm_group_size: int

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        x = x_BxHxWxC
        for width in self.widths:
            if min(x.shape[1:3]) < 2:
                raise ValueError(
                    f"model.widths is {self.widths}, and each of these convolutions halves the "
                    f"image: too many for inputs of shape {x_BxHxWxC.shape[1:]}"
                )
            x = nn.Conv(width, (3, 3))(x)
            if self.norm_group_size:
                # A large epsilon: blank images must not have their rounding errors blown up.
                x = nn.GroupNorm(None, self.norm_group_size, epsilon=1e-2)(x)
            x = nn.avg_pool(jnp.tanh(x), (2, 2), (2, 2))
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


class Linear(nn.Module):
    """Multinomial logistic regression on the pixels."""

    num_classes: int

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        return nn.Dense(self.num_classes)(x_BxHxWxC.reshape(len(x_BxHxWxC), -1))


class BackpackCNN(nn.Module):
    """The CNN of BackPACK's example of DP-SGD, for images of 28x28 pixels: 26,010 parameters."""

    num_classes: int
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        if min(x_BxHxWxC.shape[1:3]) < 13:
            raise ValueError(
                f"model.name is backpack_cnn, for images of at least 13x13 pixels: these inputs "
                f"have shape {x_BxHxWxC.shape[1:]}. Choose cnn"
            )
        x = jnp.pad(x_BxHxWxC, ((0, 0), (3, 4), (3, 4), (0, 0)))
        for channels, kernel in ((16, 8), (32, 4)):
            x = nn.Conv(channels, (kernel, kernel), strides=2, padding="VALID")(x)
            x = nn.max_pool(self.activation(x), (2, 2), (1, 1))
        x = self.activation(nn.Dense(32)(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes)(x)


class Transformer(nn.Module):
    """A decoder that predicts every next token from those before it."""

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


def make_model(config: ModelConfig, dataset: Dataset) -> nn.Module:
    """Builds the model that the configuration names.

    Raises:
      ValueError: for a model of images with tokens, or the other way round.
    """
    num_classes = dataset.num_classes
    if (config.name == "transformer") != (dataset.center is None):
        kind, right = ("images", "cnn") if config.name == "transformer" else ("text", "transformer")
        raise ValueError(
            f"model.name is {config.name}, and the data are {kind}: choose --model.name {right}"
        )
    if config.name == "linear":
        return Linear(num_classes)
    if config.name == "backpack_cnn":
        return BackpackCNN(num_classes, ACTIVATIONS[config.activation])
    if config.name == "transformer":
        return Transformer(num_classes, config.width, config.layers, config.heads)
    return CNN(num_classes, config.widths, config.norm_group_size)


def init_params(model: nn.Module, key: jax.Array, dataset: Dataset) -> PyTree:
    """Draws the parameters, which depend on the key and the shape of a record only.

    Raises:
      ValueError: for a model with state beside its parameters, as BatchNorm has.
    """
    inputs = dataset.private.inputs
    record = _scaled(dataset, jnp.zeros((1, *inputs.shape[1:]), inputs.dtype))
    state = dict(jax.eval_shape(model.init, key, record))
    state.pop("params", None)
    if "batch_stats" in state:
        layers = ", ".join(repr(name) for name in _layers(state["batch_stats"]))
        raise ValueError(
            f"the model has BatchNorm in layer {layers}: it mixes the examples of a batch, so that "
            "no example has a gradient of its own to clip. Use flax.linen.GroupNorm instead"
        )
    if state:
        raise ValueError(
            f"the model keeps state beside its parameters, in {', '.join(map(repr, state))}: it "
            "would carry private data past the noise. Use layers without such state"
        )
    return jax.jit(model.init)(key, record)["params"]


def make_loss(model: nn.Module, dataset: Dataset) -> Callable[..., jax.Array]:
    """Returns `loss(params, x, y)`: the cross-entropy of one record, the mean over its labels."""

    def loss(params: PyTree, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = _logits(model, dataset, params, x[None])[0]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))

    return loss


class Scores(NamedTuple):
    """Means over the labels of the test records."""

    accuracy: float
    loss: float  # cross-entropy in nats: its exponential is the perplexity


def evaluate(model: nn.Module, dataset: Dataset, params: PyTree) -> Scores:
    """Scores a model on the test records."""

    @jax.jit
    def totals(params: PyTree, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = _logits(model, dataset, params, x)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return jnp.sum(jnp.argmax(logits, axis=-1) == y), jnp.sum(losses)

    right, loss, test = 0.0, 0.0, dataset.test
    for start in range(0, len(test), ROWS_AT_A_TIME):
        rows = slice(start, start + ROWS_AT_A_TIME)
        part = totals(params, test.inputs[rows], test.labels[rows])
        right, loss = right + float(part[0]), loss + float(part[1])
    return Scores(right / test.labels.size, loss / test.labels.size)


def _logits(model: nn.Module, dataset: Dataset, params: PyTree, x: jax.Array) -> jax.Array:
    return jnp.asarray(model.apply({"params": params}, _scaled(dataset, x)))


def _scaled(dataset: Dataset, x: jax.Array) -> jax.Array:
    """What the model sees of an input."""
    if dataset.center is None or dataset.scale is None:
        return x.astype(jnp.int32)
    return (x.astype(jnp.float32) - jnp.asarray(dataset.center)) / jnp.asarray(dataset.scale)


def _layers(collection: Any, path: str = "") -> list[str]:
    """The names of the layers that hold the arrays of a collection."""
    if any(not hasattr(value, "items") for value in collection.values()):
        return [path or "(top)"]
    names = []
    for key, value in collection.items():
        names += _layers(value, f"{path}/{key}" if path else key)
    return names
