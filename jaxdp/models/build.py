"""Builds a built-in model."""

import flax.linen as nn

from ..datasets.sources import Format
from . import networks
from .config import RESNET_WIDTH, TOKEN_WIDTH, ModelConfig


def make_model(config: ModelConfig, data: Format) -> nn.Module:
    """Returns the network that the configuration names, for the classes of a data set.

    Raises:
      ValueError: for an image model on text, or a text model on images.
    """
    if (config.name == "transformer") != data.is_text:
        kind, right = ("images", "cnn") if config.name == "transformer" else ("text", "transformer")
        raise ValueError(
            f"model.name is {config.name}, but the data are {kind}: choose --model.name {right}"
        )
    if config.name == "linear":
        return networks.Linear(data.num_classes)
    activation = networks.ACTIVATIONS[config.activation]
    if config.name == "backpack_cnn":
        return networks.BackpackCNN(data.num_classes, activation)
    if config.name == "lenet":
        return networks.LeNet(data.num_classes, activation)
    if config.name == "transformer":
        return networks.Transformer(
            data.num_classes, config.width or TOKEN_WIDTH, config.layers, config.heads
        )
    norm = networks.Normalisation(config.norm, config.norm_group_size)
    if config.name == "resnet18":
        return networks.ResNet18(data.num_classes, config.width or RESNET_WIDTH, norm)
    return networks.CNN(data.num_classes, config.widths, norm, activation)
