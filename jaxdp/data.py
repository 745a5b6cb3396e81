"""Data sets as arrays in memory, with the private, public and test records told apart.

`python -m jaxdp.data prepare NAME` prepares a set of TFDS without TensorFlow.
"""

import hashlib
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from . import splits, text, tfds_prepare
from .config import DataConfig
from .tfds import Tell, open_images

Use = tuple[DataConfig, Mapping[str, str]]  # a run's data, and the digests of the splits it read

# Published constants, over all training images: they are no secret of the records any more.
PUBLISHED_SCALING = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}


@dataclass(frozen=True)
class Records:
    """Labelled records: `inputs [n, ...]` of any dtype and whole-number `labels [n, ...]`.

    A record's id stays the same whatever other records there are; None numbers them by place.
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
        """The ids, `[n] int32`."""
        return np.arange(len(self), dtype=np.int32) if self.ids is None else self.ids


@dataclass(frozen=True)
class Dataset:
    """What is trained on (private), what is only scored (test), and what needs no protection.

    Attributes:
      private: the records that the guarantee protects; their number N is published.
      test: records that are never trained on.
      num_classes: labels are 0 .. num_classes - 1.
      center, scale: the model sees (input - center) / scale, per channel where they are
        tuples; None for tokens. Constants of the file format or published ones: taken from private
        data they would leak it.
      scaling: where those two come from, in words for the privacy statement.
      public: records that are not protected, and not among the private ones.
      digests: of the splits that the records are from.
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


@dataclass(frozen=True)
class Source:
    """A data set as it comes: splits that can be read one by one, and how to look at the inputs."""

    sizes: Mapping[str, int]
    read: Callable[[str], tuple[np.ndarray, np.ndarray]]  # split -> (inputs, labels)
    num_classes: int
    center: float | Sequence[float] | None
    scale: float | Sequence[float] | None
    scaling: str


def load(
    config: DataConfig, tell: Tell = lambda line: None, earlier: Sequence[Use] = ()
) -> Dataset:
    """Loads the data set and the splits that the configuration names.

    Args:
      config: the data section of a configuration.
      tell: gets a line about whatever takes long.
      earlier: those of the segments of a run before this one, with the digests of the splits that
        they read: the records must be the same, and a protected one may not have been used for
        anything else, nor the other way round.

    Raises:
      ValueError: if the data are missing, damaged or not what they should be, or if splits are
        empty or overlap.
    """
    source = _open(config, tell)
    parts = _parts(config, source.sizes)
    splits.check_disjoint({_title(config, use): part for use, part in parts.items()})
    whole = {name: source.read(name) for name in {p.name for ps in parts.values() for p in ps}}
    digests = {name: arrays_digest(arrays) for name, arrays in whole.items()}
    for before, known in earlier:
        _check_same_records(before, config, known, digests)
        _check_same_uses(before, config, source.sizes)
    chosen = {use: _select(part, whole, source.sizes) for use, part in parts.items()}
    return Dataset(
        private=chosen["private"],
        test=chosen["test"],
        public=chosen.get("public"),
        num_classes=source.num_classes,
        center=source.center,
        scale=source.scale,
        scaling=source.scaling,
        digests=digests,
    )


def _parts(config: DataConfig, sizes: Mapping[str, int]) -> dict[str, list[splits.Part]]:
    specs = {"private": config.private, "public": config.public, "test": config.test}
    return {use: splits.parse_split(spec, sizes) for use, spec in specs.items() if spec is not None}


def _title(config: DataConfig, use: str) -> str:
    return f"data.{use} = {getattr(config, use)!r}"


def _check_same_uses(before: DataConfig, now: DataConfig, sizes: Mapping[str, int]) -> None:
    """Refuses to protect what a run has used without protection, or to give up what it promised."""
    old, new = _parts(before, sizes), _parts(now, sizes)
    for use, other in itertools.product(new, old):
        if use != other and "private" in (use, other):
            title = f"{_title(before, other)} in an earlier segment of the run"
            splits.check_disjoint({title: old[other], _title(now, use): new[use]})


def _check_same_records(
    before: DataConfig, now: DataConfig, known: Mapping[str, str], digests: Mapping[str, str]
) -> None:
    """Refuses other records: which of them were protected before could not be told."""
    if before.name != now.name:
        raise ValueError(
            f"data.name is {now.name!r}, and the run began with {before.name!r}: what it promises "
            "is about those records. Leave the option out, or start another run"
        )
    if before.window != now.window and now.name == "text":
        raise ValueError(
            f"data.window is {now.window}, and the run began with {before.window}: a window is a "
            "record, and so what is protected. Leave the option out, or start another run"
        )
    changed = [name for name in known.keys() & digests.keys() if known[name] != digests[name]]
    if changed:
        raise ValueError(
            f"the records of {min(changed)!r} are not those that the run began with: what it "
            "promises is about those. Put them back, or start another run"
        )


def arrays_digest(arrays: Sequence[np.ndarray]) -> str:
    """SHA-256 of arrays, their types and shapes."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype} {array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def _open(config: DataConfig, tell: Tell) -> Source:
    if config.name == "digits":
        return digits()
    if config.name == "text":
        if config.file is None:
            raise ValueError("data.name is 'text', and no file is named: give --data.file TEXT.txt")
        return characters(config.file, config.window)
    return images(config.name, config.dir, tell)


def _select(
    parts: Sequence[splits.Part],
    whole: Mapping[str, tuple[np.ndarray, np.ndarray]],
    sizes: Mapping[str, int],
) -> Records:
    """Takes the rows of some parts. Ids number the records of all splits together."""
    names = list(sizes)
    first = {name: sum(sizes[before] for before in names[:i]) for i, name in enumerate(names)}
    join = lambda arrays: arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return Records(
        inputs=join([whole[p.name][0][p.start : p.stop] for p in parts]),
        labels=join([whole[p.name][1][p.start : p.stop] for p in parts]),
        ids=join([first[p.name] + np.arange(p.start, p.stop, dtype=np.int32) for p in parts]),
    )


def digits() -> Source:
    """1,797 handwritten digits, 8x8 pixels of 0 to 16, split 1,437 / 360 and stratified by class.

    They come with scikit-learn, so nothing is downloaded. The split is part of the data set: it is
    the same in every run, whatever the seed.

    References:
      Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI repository.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train, test = train_test_split(
        np.arange(len(digits.target)), test_size=360, stratify=digits.target, random_state=0
    )
    images = digits.images.astype(np.uint8)[..., None]  # [1797, 8, 8, 1]
    labels = digits.target.astype(np.int32)
    rows = {"train": train, "test": test}
    return Source(
        sizes={split: len(rows[split]) for split in rows},
        read=lambda split: (images[rows[split]], labels[rows[split]]),
        num_classes=10,
        center=8.0,
        scale=8.0,
        scaling="pixels of 0 to 16 are mapped to [-1, 1], by the range of the file format",
    )


def images(name: str, folder: str | None, tell: Tell) -> Source:
    """An image-classification set of TFDS."""
    found = open_images(name, folder, tell)
    center: float | Sequence[float] = 127.5
    scale: float | Sequence[float] = 127.5
    scaling = "bytes are mapped to [-1, 1], by the range of the file format"
    constants = PUBLISHED_SCALING.get(found.name.split("/")[0])
    if constants is not None:
        center, scale = (tuple(255 * value for value in values) for values in constants)
        scaling = (
            f"pixels are shifted by {constants[0]} and divided by {constants[1]} (of 1), constants "
            "that were published for this set"
        )
    return Source(found.sizes, found.read, found.num_classes, center, scale, scaling)


def characters(file: str, window: int) -> Source:
    """The windows of a text, as a character-level language model predicts them; the last are test.

    Slices of `train` and `test` count windows.
    """
    inputs, targets = text.read_windows(file, window)
    middle = text.train_size(len(inputs))
    rows = {"train": slice(0, middle), "test": slice(middle, len(inputs))}
    return Source(
        sizes={"train": middle, "test": len(inputs) - middle},
        read=lambda split: (inputs[rows[split]], targets[rows[split]]),
        num_classes=text.VOCABULARY_SIZE,
        center=None,
        scale=None,
        scaling=f"characters are numbered by a fixed table; windows of {window + 1} don't overlap",
    )


if __name__ == "__main__":
    sys.exit(tfds_prepare.main(sys.argv[1:]))
