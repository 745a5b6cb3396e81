"""Builds a built-in model."""

import flax.linen as nn

from ..datasets.sources import Format
from . import networks
from .config import (
    BLOCKS,
    EMBEDDING_WIDTH,
    RESNET_WIDTH,
    TOKEN_WIDTH,
    WIDENING,
    WRN_LAYERS,
    ModelConfig,
)
from .wide_resnet import WideResNet

IMAGE_MODELS = (
    "cnn",
    "linear",
    "mlp",
    "lenet",
    "resnet18",
    "backpack_cnn",
    "scattering_cnn",
    "wide_resnet",
)

# What the models are for: the inputs and the target of a record. The first one is recommended.
MODELS = {
    ("image", "class"): IMAGE_MODELS,
    ("image", "number"): IMAGE_MODELS,
    ("features", "class"): ("linear", "mlp"),
    ("features", "number"): ("linear", "mlp"),
    ("tokens", "class"): ("embedding",),
    ("tokens", "number"): ("embedding",),
    ("tokens", "tokens"): ("transformer",),
}

KINDS = {
    "image": "images",
    "features": "numbers of a table",
    "tokens": "documents",
    "mixed": "numbers with documents",
}


def make_model(config: ModelConfig, data: Format) -> nn.Module:
    """Returns the network that the configuration names, for the records of a data set.

    Raises:
      ValueError: for a model that is for other records.
    """
    fitting = MODELS.get((data.inputs, data.target), ())
    if config.name not in fitting:
        kind = "a text" if data.target == "tokens" else KINDS[data.inputs]
        cure = f"choose --model.name {fitting[0]}" if fitting else "give a task of your own (--own)"
        raise ValueError(f"model.name is {config.name}, but the data are {kind}: {cure}")
    network = _network(config, data)
    if data.target == "number":
        network = networks.OneNumber(network)
    if not config.centred:
        return network
    if data.inputs == "tokens":
        raise ValueError("model.centred is True, and tokens have no mean: leave it out")
    return networks.Centred(network)


def _network(config: ModelConfig, data: Format) -> nn.Module:
    activation = networks.ACTIVATIONS[config.activation]
    norm = networks.Normalisation(config.norm, config.norm_group_size)
    outputs = data.outputs
    if config.name == "linear":
        return networks.Linear(outputs)
    if config.name == "mlp":
        return networks.MLP(outputs, config.widths, activation)
    if config.name == "backpack_cnn":
        return networks.BackpackCNN(outputs, activation)
    if config.name == "scattering_cnn":
        return networks.ScatteringCNN(outputs, config.widths, activation)
    if config.name == "wide_resnet":
        return WideResNet(outputs, config.layers or WRN_LAYERS, config.width or WIDENING)
    if config.name == "lenet":
        return networks.LeNet(outputs, activation)
    if config.name == "resnet18":
        return networks.ResNet18(outputs, config.width or RESNET_WIDTH, norm)
    if config.name == "embedding":
        assert data.vocabulary is not None
        return networks.Embedding(outputs, data.vocabulary, config.width or EMBEDDING_WIDTH)
    if config.name == "transformer":
        width = config.width or TOKEN_WIDTH
        return networks.Transformer(outputs, width, config.layers or BLOCKS, config.heads)
    return networks.CNN(outputs, config.widths, norm, activation)
