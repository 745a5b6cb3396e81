"""Records of the shape that a configuration's data set has."""

import numpy as np

from jaxdp.datasets import Format
from jaxdp.datasets.scattering import scattering

SHAPES = {"mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


def stand_in(config):
    """Two random records of the shape that the configuration's data set has, and their format."""
    rng = np.random.default_rng(0)
    if config.data.name == "text":
        make = lambda: rng.integers(0, 97, (2, config.data.window), np.uint8)
        return (make(), make().astype(np.int32)), Format("tokens", "tokens", 97, None, None, "", 97)
    if config.data.kind == "table":
        features = rng.normal(size=(2, 107)).astype(np.float32)
        if config.data.label == "income":
            labels = np.array([0, 1], np.int32)
            return (features, labels), Format("features", "class", 2, 0.0, 1.0, "")
        hours = np.array([40, 0], np.float32)
        return (features, hours), Format("features", "number", 1, 0.0, 1.0, "", None, 49.5, 49.5)
    if config.data.name == "imdb_reviews":
        tokens = rng.integers(0, 90, (2, config.data.length)).astype(np.int32)
        return (tokens, np.array([0, 1])), Format("tokens", "class", 2, None, None, "", 8192)
    shape = SHAPES.get(config.data.name, (8, 8, 1))
    images = rng.integers(0, 255, (2, *shape), np.uint8)
    if config.data.features == "scattering":
        images = np.asarray(
            scattering(images, normalised=True, mirrored=config.data.mirrored), np.float16
        )
        return (images, np.array([0, 9], np.int32)), Format("image", "class", 10, 0.0, 1.0, "")
    return (images, np.array([0, 9], np.int32)), Format("image", "class", 10, 127.5, 127.5, "")
