"""A small data set of random images in memory."""

import numpy as np

from jaxdp.datasets.dataset import Dataset
from jaxdp.datasets.sources import Format

SMALL_FORMAT = Format("image", "class", 10, 0.0, 8.0, "")


def small_dataset() -> Dataset:
    """Pairs (image, label) of `SMALL_FORMAT`."""
    rng = np.random.default_rng(0)
    rows = lambda n: (
        rng.integers(0, 17, (n, 8, 8, 1)).astype(np.uint8),
        rng.integers(0, 10, n).astype(np.int32),
    )
    return Dataset(rows(6), rows(5))
