"""The options of the model."""

from dataclasses import dataclass
from typing import Literal

from ..datasets.config import require

TOKEN_WIDTH = 128  # of the transformer, where model.width is None

EMBEDDING_WIDTH = 32  # of the embedding, where model.width is None

WIDENING = 4  # of the wide_resnet, where model.width is None

WRN_LAYERS = 16  # of the wide_resnet, where model.layers is None

BLOCKS = 2  # of the transformer, where model.layers is None

RESNET_WIDTH = 64  # of the first convolution of the resnet18, where model.width is None


@dataclass(frozen=True)
class ModelConfig:
    """Which network, how large it is, and what normalises and activates its layers."""

    name: Literal[
        "cnn",
        "linear",
        "mlp",
        "lenet",
        "resnet18",
        "backpack_cnn",
        "scattering_cnn",
        "wide_resnet",
        "embedding",
        "transformer",
    ] = "cnn"
    """cnn: convolutions with average pooling, then a linear layer, for images.
    linear: that layer, for images and tables.
    mlp: hidden layers, then that layer, for images and tables.
    lenet, resnet18: as published, for 32x32 images.
    wide_resnet: WRN-d-k with GroupNorm and standardised weights, for 32x32 images.
    backpack_cnn: two convolutions and two dense layers, for 28x28 images.
    scattering_cnn: convolutions with max-pooling between them, then a linear layer, for features.
    embedding: the mean of the tokens' embeddings, then a linear layer, for documents.
    transformer: predicts the characters of a text."""

    widths: tuple[int, ...] = (16,)
    """Channels of every convolution of the cnn and the scattering_cnn.
    Or units of every hidden layer of the mlp."""

    norm: Literal["group", "batch", "none"] = "group"
    """Normalisation after every convolution of the cnn and the resnet18.
    batch: BatchNorm, for batch units (clipping.kind batch) only.
    It needs public records (data.public) for its statistics."""

    norm_group_size: int = 1
    """Channels per group of the GroupNorm; 0 for no normalisation."""

    activation: Literal["tanh", "relu"] = "tanh"
    """Of the cnn, the mlp, the lenet, the backpack_cnn and the scattering_cnn."""

    width: int | None = None
    """Of the transformer and the embedding: numbers for every token; None: 128 and 32.
    Of the resnet18: channels of its first convolution; None: 64.
    Of the wide_resnet: k of WRN-d-k; None: 4."""

    layers: int | None = None
    """Of the transformer: blocks; None: 2.
    Of the wide_resnet: d of WRN-d-k; None: 16."""

    heads: int = 4
    """Attention heads in a block of the transformer; a divisor of the width."""

    centred: bool = False
    """Whether the network gets its inputs less their mean, position by position.
    The first step measures it privately, in the place of an update: it costs no more ε.
    It needs individual clipping. For training.frozen, other parameters are then network/..."""

    def __post_init__(self) -> None:
        widths, size, width = self.widths, self.norm_group_size, self.width
        require(
            isinstance(widths, tuple) and all(width >= 1 for width in widths),
            "model.widths",
            widths,
            "a tuple of whole numbers, all at least 1",
        )
        require(width is None or width >= 1, "model.width", width, "at least 1")
        grouped = (width or RESNET_WIDTH,) if self.name == "resnet18" else widths
        grouped = grouped if self.name in ("cnn", "resnet18") else ()
        require(
            size == 0 or (size > 0 and all(width % size == 0 for width in grouped)),
            "model.norm-group-size",
            size,
            f"0, or a number that divides every one of the widths {grouped}",
        )
        require(
            self.norm != "batch" or self.name in ("cnn", "resnet18"),
            "model.norm",
            self.norm,
            f"another, or choose cnn or resnet18: model.name = {self.name} has no such layer",
        )
        require(
            self.name != "resnet18" or self.norm == "batch" or (self.norm == "group" and size > 0),
            "model.norm",
            f"{self.norm} with groups of {size}",
            "group or batch: a resnet18 does not train without normalisation",
        )
        require(self.layers is None or self.layers >= 1, "model.layers", self.layers, "at least 1")
        if self.name == "wide_resnet":
            layers = self.layers or WRN_LAYERS
            require(
                layers >= 10 and layers % 6 == 4, "model.layers", layers, "10, 16, 22, 28, 34, ..."
            )
        require(
            self.heads >= 1
            and (self.name != "transformer" or (width or TOKEN_WIDTH) % self.heads == 0),
            "model.heads",
            self.heads,
            f"a number that divides model.width = {width or TOKEN_WIDTH}",
        )
