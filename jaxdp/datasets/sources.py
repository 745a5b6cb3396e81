"""What a data set is, and two that are held in memory: digits, and windows of a text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from .._distribution import missing
from . import text
from .decoding import Split, split_digest
from .digests import arrays_digest


@dataclass(frozen=True)
class Format:
    """What the inputs and labels of a data set are, which decides the ends of a model.

    Attributes:
      inputs: of a record: an image `[height, width, channels]`, numbers `[n]`, or tokens
        `[length]`, of which PADDING fills up short documents. Mixed: a dictionary with `features`,
        which are numbers, and `tokens`.
      target: a class, whole numbers from 0 to outputs - 1; one real number; or for each token the
        one after it.
      outputs: numbers that a model returns: one for each class, 1 for a number.
      center, scale: the model sees (input - center) / scale, per channel where they are tuples.
        None for tokens. They are constants of the file format, published or declared ones:
        computed from private records, they would leak information about them.
      scaling: where these two and all other constants come from, in words for the statement.
      vocabulary: tokens are 0 to vocabulary - 1. None: inputs are no tokens.
      target_center, target_scale: the model's output is (target - target_center) / target_scale.
      fields: what the columns of a table are, by their names, in words.
      decoding: all constants and options by which inputs and labels were made, as text. None of
        them is a secret.
      brightest: of an image: the largest value that a pixel can have.
      made_by: the call that makes features of images; None: the inputs are no features.
    """

    inputs: Literal["image", "features", "tokens", "mixed"]
    target: Literal["class", "number", "tokens"]
    outputs: int
    center: float | Sequence[float] | None
    scale: float | Sequence[float] | None
    scaling: str
    vocabulary: int | None = None
    target_center: float = 0.0
    target_scale: float = 1.0
    fields: Mapping[str, str] = field(default_factory=dict)
    decoding: str = ""
    brightest: float = 255.0
    made_by: str | None = None


PADDING = 0  # the token that fills up documents


@dataclass(frozen=True)
class SplitSet:
    """A data set in the splits that it comes with. A record is a pair (input, label).

    Attributes:
      sizes: number of records of each split.
      read: reads a split.
      format: what the records are.
      published: whether everybody can get the set by its name.
    """

    sizes: Mapping[str, int]
    read: Callable[[str], Split]
    format: Format
    published: bool = False


def digits() -> SplitSet:
    """The digits of scikit-learn: 1,797 images `[8, 8, 1]` with pixels of 0 to 16.

    1,437 of them are for training and 360 for tests, stratified by class. The split is the same in
    every run, whatever the seed. Nothing is downloaded.

    Raises:
      ValueError: in one line, if scikit-learn is not installed.

    References:
      Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI repository.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        raise ValueError(missing("the data set digits", str(error.name), "train")) from None

    digits = load_digits()
    train, test = train_test_split(
        np.arange(len(digits.target)), test_size=360, stratify=digits.target, random_state=0
    )
    images = digits.images.astype(np.uint8)[..., None]  # [1797, 8, 8, 1]
    labels = digits.target.astype(np.int32)
    rows = {"train": train, "test": test}
    return SplitSet(
        sizes={split: len(rows[split]) for split in rows},
        read=lambda split: _held(images[rows[split]], labels[rows[split]]),
        format=Format(
            inputs="image",
            target="class",
            outputs=10,
            center=8.0,
            scale=8.0,
            scaling="pixels of 0 to 16 are mapped to [-1, 1], by the range of the file format",
            brightest=16.0,
        ),
        published=True,
    )


def _held(inputs: np.ndarray, labels: np.ndarray) -> Split:
    """A split whose records are in memory."""
    content = arrays_digest((inputs, labels))
    return Split((inputs, labels), split_digest(len(inputs), content), content)


def characters(file: str, window: int) -> SplitSet:
    """The windows of a text file, for a character-level language model.

    A record is a window. The first windows are the split `train`, the last are `test`.

    Raises:
      ValueError: as `read_windows` does.
    """
    inputs, targets = text.read_windows(file, window)
    middle = text.train_size(len(inputs))
    rows = {"train": slice(0, middle), "test": slice(middle, len(inputs))}
    return SplitSet(
        sizes={"train": middle, "test": len(inputs) - middle},
        read=lambda split: _held(inputs[rows[split]], targets[rows[split]]),
        format=Format(
            inputs="tokens",
            target="tokens",
            outputs=text.VOCABULARY_SIZE,
            center=None,
            scale=None,
            scaling=f"characters are numbered by a fixed table; windows of {window + 1} don't "
            "overlap",
            vocabulary=text.VOCABULARY_SIZE,
        ),
    )
