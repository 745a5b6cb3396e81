"""Builds a model and its parameters, and refuses models that mix examples or keep state."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..datasets.records import Dataset
from ..types import PyTree, Unit
from . import batchnorm, networks
from ._forward import ROWS_AT_A_TIME, scaled, scaling_call
from .config import RESNET_WIDTH, TOKEN_WIDTH, ModelConfig


def make_model(config: ModelConfig, dataset: Dataset) -> nn.Module:
    """Returns the network that the configuration names, for the classes of a data set.

    Raises:
      ValueError: for an image model on text, or a text model on images.
    """
    num_classes = dataset.num_classes
    if (config.name == "transformer") != (dataset.center is None):
        kind, right = ("images", "cnn") if config.name == "transformer" else ("text", "transformer")
        raise ValueError(
            f"model.name is {config.name}, but the data are {kind}: choose --model.name {right}"
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
    """Draws the parameters. They depend only on the key and the shape of a record.

    Args:
      model: from `make_model`, or a Flax linen module of your own.
      key: need not be secret, unless the initial parameters are.
      dataset: the data set of the model's records.
      unit: whose gradient is clipped, an example's or a batch unit's.

    Returns:
      The collection "params".

    Raises:
      ValueError: for a model with state beside its parameters. BatchNorm, which has some, is
        allowed with batch units and public records to take its statistics from (privacy rule 16).
    """
    record = _zero_record(dataset)
    state = dict(jax.eval_shape(model.init, key, record))
    state.pop("params", None)
    statistics = state.pop("batch_stats", {})
    names = ", ".join(map(repr, batchnorm.layer_names(statistics)))
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
    """Returns whether the model has BatchNorm, so that the records of a batch share statistics."""
    return "batch_stats" in jax.eval_shape(model.init, jax.random.key(0), _zero_record(dataset))


def _zero_record(dataset: Dataset) -> jax.Array:
    inputs = dataset.private.inputs
    return scaled(dataset, jnp.zeros((1, *inputs.shape[1:]), inputs.dtype))


def public_statistics(model: nn.Module, dataset: Dataset) -> Callable[[PyTree], PyTree | None]:
    """Returns a function that finds BatchNorm's statistics at given parameters.

    It uses the public records, and compiles once. For a model without BatchNorm, the function
    returns None.

    Raises:
      ValueError: for a model with BatchNorm, if there are no public records.
    """
    if not has_batch_norm(model, dataset):
        return lambda params: None
    public = dataset.public
    if public is None:
        raise ValueError(
            "the statistics of BatchNorm need public records, and there are none: set some apart "
            "with --data.public"
        )
    statistics = batchnorm.public_statistics(
        model, call=scaling_call(dataset), rows_at_a_time=ROWS_AT_A_TIME
    )
    return lambda params: statistics(params, public.inputs)
