"""The options of the data."""

from dataclasses import dataclass
from typing import Literal

Placement = Literal["auto", "device", "host"]


@dataclass(frozen=True)
class DataConfig:
    """Which data set, which of its records have which use, and where they are kept."""

    name: str = "digits"
    """digits: 1,797 handwritten digits of 8x8 pixels that come with scikit-learn.
    text: windows of a text file, for a language model.
    Else an image-classification set of TFDS: mnist, cifar10."""

    private: str = "train"
    """The records to train on and protect, as TFDS spells splits: train, train[:90%], ..."""

    public: str | None = None
    """Records that need no protection, as train[90%:]: none of the private ones."""

    test: str = "test"
    """The records to score."""

    dir: str | None = None
    """Where TFDS keeps prepared sets. None: TFDS_DATA_DIR, else TFDS's own default."""

    file: str | None = None
    """The text file of the data set text."""

    window: int = 64
    """Characters that a record of the data set text predicts; windows don't overlap."""

    augment: Literal["none", "crop_flip"] = "none"
    """crop_flip: images shifted by up to 4 pixels and mirrored half the time, anew every step."""

    placement: Placement = "auto"
    """Where the records are kept. auto: on the device if they take at most a quarter of it."""

    test_is_public: bool = True
    """Whether the test records are public. If not, test accuracy is a private number too."""


def require(ok: bool, name: str, value: object, expected: str) -> None:
    """Checks an option.

    Args:
      ok: whether the value is allowed.
      name: the option as users write it, for the message: `training.momentum`.
      value: what it was set to.
      expected: what to give instead.

    Raises:
      ValueError: `<name> is <value>: give <expected>`, unless `ok`.
    """
    if not ok:
        raise ValueError(f"{name} is {value}: give {expected}")
