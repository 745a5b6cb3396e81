"""Records in memory: the private, public and test ones of a data set."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Records:
    """Labelled records.

    Attributes:
      inputs: `[n, ...]` of any dtype.
      labels: `[n, ...]`, whole numbers.
      ids: `[n] int32`, the records' numbers in the whole data set: they stay the same whatever
        other records are chosen. None: 0 to n - 1.

    Raises:
      ValueError: for arrays of different lengths, or without records.
    """

    inputs: np.ndarray
    labels: np.ndarray
    ids: np.ndarray | None = None

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.labels) or len(self.labels) == 0:
            raise ValueError(
                f"there are {len(self.inputs)} inputs and {len(self.labels)} labels: give one "
                "label for each input, and at least one of both"
            )
        if self.ids is not None and self.ids.shape != (len(self.labels),):
            raise ValueError(
                f"ids has shape {self.ids.shape}: give one for each of {len(self.labels)} records"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def numbers(self) -> np.ndarray:
        """Returns the ids, `[n] int32`."""
        return np.arange(len(self), dtype=np.int32) if self.ids is None else self.ids


@dataclass(frozen=True)
class Dataset:
    """The records of a run: private ones to train on, test ones to score, and public ones.

    Attributes:
      private: the records that the guarantee protects. Their number N is published.
      test: records that are never trained on.
      num_classes: labels are 0 to num_classes - 1.
      center, scale: the model sees (input - center) / scale, per channel where they are tuples.
        None for tokens. They are constants of the file format, or published ones: computed from
        private records, they would leak information about them.
      scaling: where these two come from, in words for the privacy statement.
      public: records that need no protection. None of them is private.
      digests: of the splits that the records come from, by the split's name.

    Raises:
      ValueError: for labels that are out of range.
    """

    private: Records
    test: Records
    num_classes: int
    center: float | Sequence[float] | None
    scale: float | Sequence[float] | None
    scaling: str
    public: Records | None = None
    digests: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, records in (
            ("private", self.private),
            ("test", self.test),
            ("public", self.public),
        ):
            if records is None:
                continue
            low, high = records.labels.min(), records.labels.max()
            if low < 0 or high >= self.num_classes:
                raise ValueError(
                    f"the labels of the {name} records go from {low} to {high}: expected 0 to "
                    f"{self.num_classes - 1}"
                )


def arrays_digest(arrays: Sequence[np.ndarray]) -> str:
    """Returns the SHA-256 of arrays with their dtypes and shapes, in hexadecimal digits."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype} {array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()
