"""How a model is applied to the records of a data set: their inputs are scaled first."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..datasets.records import Dataset
from ..types import PyTree
from .batchnorm import Call

ROWS_AT_A_TIME = 500  # records in a pass over many of them, which bounds its memory


def scaled(dataset: Dataset, x: jax.Array) -> jax.Array:
    """Returns the inputs of a model, float32, or int32 for tokens."""
    if dataset.center is None or dataset.scale is None:
        return x.astype(jnp.int32)
    return (x.astype(jnp.float32) - jnp.asarray(dataset.center)) / jnp.asarray(dataset.scale)


def scaling_call(dataset: Dataset) -> Call:
    """Returns a function that applies a model to records as they are stored."""
    return lambda model, x: model(scaled(dataset, x))


def logits_of(
    model: nn.Module,
    dataset: Dataset,
    params: PyTree,
    x: jax.Array,
    batch_stats: PyTree | None = None,
) -> jax.Array:
    """Returns the logits `[B, ..., num_classes]` of records as they are stored, `[B, ...]`."""
    variables = {"params": params}
    if batch_stats is not None:
        variables["batch_stats"] = batch_stats
    return jnp.asarray(model.apply(variables, scaled(dataset, x)))
