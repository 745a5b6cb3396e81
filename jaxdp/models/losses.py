"""The losses of the built-in models."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ..datasets.records import Dataset
from ..gradients.unit_loss import mean_loss
from . import batchnorm
from .build import PyTree, has_batch_norm, logits_of, scaling_call


def make_loss(model: nn.Module, dataset: Dataset) -> Callable[..., jax.Array]:
    """Returns `loss(params, x, y)`: the cross-entropy of one record, the mean over its labels."""

    def loss(params: PyTree, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = logits_of(model, dataset, params, x[None])[0]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))

    return loss


def make_unit_loss(
    model: nn.Module, dataset: Dataset, microbatch_size: int | None = None
) -> Callable[..., jax.Array]:
    """Returns `loss(params, x, y, mask)`: the mean of the records' losses over a batch unit.

    Args:
      model: from `make_model`.
      dataset: whose records the model takes.
      microbatch_size: how many records are differentiated at a time. BatchNorm takes the whole
        unit at once, whatever it is.
    """
    if has_batch_norm(model, dataset):
        return batchnorm.unit_loss(model, cross_entropies, call=scaling_call(dataset))
    return mean_loss(make_loss(model, dataset), microbatch_size=microbatch_size)


def cross_entropies(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """`[n]`, for every record the mean over its labels."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(losses.reshape(len(losses), -1), axis=1)
