"""The tasks of the built-in models: their data scaled, their model applied, their loss."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from ..datasets.sources import Format
from ..models.build import make_model
from ..models.config import ModelConfig
from ..models.networks import MEAN
from ..types import ComputeDtype
from .supervised import classifier, language_model, regressor
from .task import Task


def make_task(
    config: ModelConfig,
    data: Format,
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    views: int = 1,
    compute_dtype: ComputeDtype = "float32",
) -> Task:
    """Returns the task that a configuration names.

    Args:
      config: the options of the model.
      data: what the records are: pairs (input, label).
      augment: `(key, input) -> input`, before it is scaled.
      views: how many times a record is augmented in a step.
      compute_dtype: of the model in the loss.

    Raises:
      ValueError: for a model that is for other records.
    """
    model, preprocess = make_model(config, data), lambda x: scaled(data, x)
    if data.target == "tokens":  # which nothing augments
        return language_model(model, preprocess=preprocess, compute_dtype=compute_dtype)
    make: Callable[..., Task] = classifier
    if data.target == "number":
        make = partial(regressor, target_center=data.target_center, target_scale=data.target_scale)
    task = make(
        model,
        preprocess=preprocess,
        augment=augment,
        views=views,
        batch_norm=config.norm == "batch",
        compute_dtype=compute_dtype,
    )
    if not config.centred:
        return task
    return replace(task, measured=lambda record: {MEAN: preprocess(record[0])})


def scaled(data: Format, x: jax.Array) -> jax.Array:
    """Returns the inputs of a model, float32, or int32 for tokens."""
    if data.center is None or data.scale is None:
        return x.astype(jnp.int32)
    return (x.astype(jnp.float32) - jnp.asarray(data.center)) / jnp.asarray(data.scale)
