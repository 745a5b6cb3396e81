"""Small Flax models, and the check that a model keeps examples apart."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from .config import ModelConfig
from .data import Dataset

PyTree = Any


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


def make_model(config: ModelConfig, num_classes: int) -> nn.Module:
    """Builds the model that the configuration names."""
    if config.name == "linear":
        return Linear(num_classes)
    return CNN(num_classes, config.widths, config.norm_group_size)


def init_params(model: nn.Module, key: jax.Array, dataset: Dataset) -> PyTree:
    """Draws the parameters, which depend on the key and the shape of a record only.

    Raises:
      ValueError: for a model with state beside its parameters, as BatchNorm has.
    """
    record = jnp.zeros((1, *dataset.private.inputs.shape[1:]))
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
    """Returns `loss(params, x, y)`: the cross-entropy of one record."""

    def loss(params: PyTree, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = _logits(model, dataset, params, x[None])[0]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y)

    return loss


def accuracy(model: nn.Module, dataset: Dataset, params: PyTree) -> float:
    """The share of the test records that the model gets right."""
    logits = jax.jit(lambda p, x: _logits(model, dataset, p, x))(params, dataset.test.inputs)
    return float(jnp.mean(jnp.argmax(logits, axis=-1) == dataset.test.labels))


def _logits(model: nn.Module, dataset: Dataset, params: PyTree, x: jax.Array) -> jax.Array:
    x = (x.astype(jnp.float32) - dataset.center) / dataset.scale
    return jnp.asarray(model.apply({"params": params}, x))


def _layers(collection: Any, path: str = "") -> list[str]:
    """The names of the layers that hold the arrays of a collection."""
    if any(not hasattr(value, "items") for value in collection.values()):
        return [path or "(top)"]
    names = []
    for key, value in collection.items():
        names += _layers(value, f"{path}/{key}" if path else key)
    return names
