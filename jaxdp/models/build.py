"""The model of a run, its loss and scores, and the check that it keeps examples apart."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..datasets.records import Dataset
from ..types import Unit
from . import batchnorm, networks
from .config import RESNET_WIDTH, TOKEN_WIDTH, ModelConfig

PyTree = Any

ROWS_AT_A_TIME = 500  # of the test records, which bounds the memory


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
        return networks.Linear(num_classes)
    activation = networks.ACTIVATIONS[config.activation]
    if config.name == "backpack_cnn":
        return networks.BackpackCNN(num_classes, activation)
    if config.name == "lenet":
        return networks.LeNet(num_classes, activation)
    if config.name == "transformer":
        return networks.Transformer(
            num_classes, config.width or TOKEN_WIDTH, config.layers, config.heads
        )
    norm = networks.Normalisation(config.norm, config.norm_group_size)
    if config.name == "resnet18":
        return networks.ResNet18(num_classes, config.width or RESNET_WIDTH, norm)
    return networks.CNN(num_classes, config.widths, norm, activation)


def init_params(
    model: nn.Module, key: jax.Array, dataset: Dataset, unit: Unit = "example"
) -> PyTree:
    """Draws the parameters, which depend on the key and the shape of a record only.

    Args:
      model: from `make_model`.
      key: secret only if the initial parameters are to be.
      dataset: whose records the model takes.
      unit: what is clipped.

    Raises:
      ValueError: for a model with state beside its parameters, as BatchNorm has; with batch units,
        BatchNorm is fine if there are public records to take its statistics from.
    """
    record = _zero_record(dataset)
    state = dict(jax.eval_shape(model.init, key, record))
    state.pop("params", None)
    statistics = state.pop("batch_stats", {})
    names = ", ".join(map(repr, batchnorm.layers(statistics)))
    if statistics and unit == "example":
        raise ValueError(
            f"the model has BatchNorm in layer {names}: it mixes the examples of a batch, so that "
            "no example has a gradient of its own to clip. Use flax.linen.GroupNorm instead "
            "(--model.norm group), or clip batch units (--clipping.kind batch)"
        )
    if statistics and dataset.public is None:
        raise ValueError(
            f"the model has BatchNorm in layer {names}, whose statistics for evaluation and "
            "release must not come from private records, and there are no public ones: set some "
            "apart, as --data.private train[:80%] --data.public train[80%:], or use GroupNorm "
            "(--model.norm group)"
        )
    if state:
        raise ValueError(
            f"the model keeps state beside its parameters, in {', '.join(map(repr, state))}: it "
            "would carry private data past the noise. Use layers without such state"
        )
    return jax.jit(model.init)(key, record)["params"]


def has_batch_norm(model: nn.Module, dataset: Dataset) -> bool:
    """Whether the records of a batch share statistics."""
    return "batch_stats" in jax.eval_shape(model.init, jax.random.key(0), _zero_record(dataset))


def _zero_record(dataset: Dataset) -> jax.Array:
    inputs = dataset.private.inputs
    return scaled(dataset, jnp.zeros((1, *inputs.shape[1:]), inputs.dtype))


def public_statistics(model: nn.Module, dataset: Dataset) -> Callable[[PyTree], PyTree | None]:
    """Returns what finds BatchNorm's statistics on the public records, at given parameters.

    It gives None for models without BatchNorm. What it needs is compiled once.
    """
    if not has_batch_norm(model, dataset):
        return lambda params: None
    public = dataset.public
    if public is None:
        raise ValueError("BatchNorm needs statistics, and there are no public records: name some")
    statistics = batchnorm.public_statistics(
        model, call=scaling_call(dataset), rows_at_a_time=ROWS_AT_A_TIME
    )
    return lambda params: statistics(params, public.inputs)


def scaling_call(dataset: Dataset) -> batchnorm.Call:
    return lambda model, x: model(scaled(dataset, x))


def logits_of(
    model: nn.Module,
    dataset: Dataset,
    params: PyTree,
    x: jax.Array,
    batch_stats: PyTree | None = None,
) -> jax.Array:
    variables = {"params": params}
    if batch_stats is not None:
        variables["batch_stats"] = batch_stats
    return jnp.asarray(model.apply(variables, scaled(dataset, x)))


def scaled(dataset: Dataset, x: jax.Array) -> jax.Array:
    """What the model sees of an input."""
    if dataset.center is None or dataset.scale is None:
        return x.astype(jnp.int32)
    return (x.astype(jnp.float32) - jnp.asarray(dataset.center)) / jnp.asarray(dataset.scale)
