"""A small data set of random images in memory."""

import numpy as np

from jaxdp.datasets.records import Dataset, Records


def small_dataset() -> Dataset:
    rng = np.random.default_rng(0)
    records = lambda n: Records(
        rng.integers(0, 17, (n, 8, 8, 1)).astype(np.uint8), rng.integers(0, 10, n).astype(np.int32)
    )
    return Dataset(records(6), records(5), 10, 0.0, 8.0, "")
