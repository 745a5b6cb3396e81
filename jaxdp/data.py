"""Data sets as arrays in memory, with the private and the test records told apart."""

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Records:
    """Labelled records: `inputs [n, ...]` of any dtype and `labels [n] int32`."""

    inputs: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.labels) or len(self.labels) == 0:
            raise ValueError(
                f"there are {len(self.inputs)} inputs and {len(self.labels)} labels: give one "
                "label for each input, and at least one of both"
            )

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """What is trained on (private) and what is only scored (test).

    Attributes:
      private: the records that the guarantee protects; their number N is published.
      test: records that are never trained on.
      num_classes: labels are 0 .. num_classes - 1.
      center, scale: the model sees (input - center) / scale. Constants of the file format or
        published ones: taken from private data they would leak it.
      scaling: where those two come from, in words for the privacy statement.
    """

    private: Records
    test: Records
    num_classes: int
    center: float
    scale: float
    scaling: str

    def __post_init__(self) -> None:
        for name, records in (("private", self.private), ("test", self.test)):
            low, high = records.labels.min(), records.labels.max()
            if low < 0 or high >= self.num_classes:
                raise ValueError(
                    f"the labels of the {name} records go from {low} to {high}: expected 0 to "
                    f"{self.num_classes - 1}"
                )


def load(name: Literal["digits"]) -> Dataset:
    """Loads a data set by the name that the configuration gives it."""
    return {"digits": load_digits}[name]()


def load_digits() -> Dataset:
    """1,797 handwritten digits, 8x8 pixels of 0 to 16, split 1,437 / 360 and stratified by class.

    They come with scikit-learn, so nothing is downloaded. The split is part of the data set: it is
    the same in every run, whatever the seed.

    References:
      Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI repository.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    rows = np.arange(len(digits.target))
    private, test = train_test_split(rows, test_size=360, stratify=digits.target, random_state=0)
    images = digits.images.astype(np.uint8)[..., None]  # [1797, 8, 8, 1]
    labels = digits.target.astype(np.int32)
    return Dataset(
        private=Records(images[private], labels[private]),
        test=Records(images[test], labels[test]),
        num_classes=10,
        center=0.0,
        scale=8.0,
        scaling="pixels of 0 to 16, the range of the file format, are divided by 8",
    )
