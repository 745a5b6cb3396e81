"""The losses of the built-in models."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ..datasets.records import Dataset
from ..gradients.unit_loss import mean_loss
from ..types import PyTree
from . import batchnorm
from ._forward import logits_of, scaling_call
from .build import has_batch_norm


def make_loss(model: nn.Module, dataset: Dataset) -> Callable[..., jax.Array]:
    """Returns a function `loss(params, x, y) -> scalar`, the loss of one record.

    It is the cross-entropy in nats, the mean over the labels if the record has several.

    Args:
      model: from `make_model`.
      dataset: the data set of the records.
    """

    def loss(params: PyTree, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = logits_of(model, dataset, params, x[None])[0]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))

    return loss


def make_unit_loss(
    model: nn.Module, dataset: Dataset, microbatch_size: int | None = None
) -> Callable[..., jax.Array]:
    """Returns a function `loss(params, x, y, mask) -> scalar`, the mean loss of a batch unit.

    Args:
      model: from `make_model`.
      dataset: the data set of the records.
      microbatch_size: how many records are differentiated at a time; None: all. A model with
        BatchNorm always takes the whole unit at once.
    """
    if has_batch_norm(model, dataset):
        return batchnorm.unit_loss(model, _cross_entropies, call=scaling_call(dataset))
    return mean_loss(make_loss(model, dataset), microbatch_size=microbatch_size)


def _cross_entropies(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the loss of each record, `[n]`."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(losses.reshape(len(losses), -1), axis=1)
