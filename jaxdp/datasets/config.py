"""The options of the data."""

from dataclasses import dataclass
from typing import Literal

Placement = Literal["auto", "device", "host"]


@dataclass(frozen=True)
class DataConfig:
    """Which records, which use each of them has, and where they are kept."""

    name: str = "digits"
    """digits: 1,797 handwritten digits of 8x8 pixels that come with scikit-learn.
    Else a set of TFDS with one image or text and one label: mnist, cifar10, imdb_reviews.
    With a file or folder: what the privacy statement calls the records."""

    file: str | None = None
    """A table: NAME.csv, .tsv, .parquet or .npz. Or a text for a language model: NAME.txt."""

    folder: str | None = None
    """A folder of images, PNG or JPEG, with a sub-folder for every class."""

    test_from: str | None = None
    """A file or folder like the other one, whose records are the split test."""

    label: str | None = None
    """Of a table: the column to predict."""

    schema: str | None = None
    """Of a table: the file that declares what its columns are, from public knowledge.
    `python -m jaxdp.data schema` writes one from public rows."""

    columns: tuple[str, ...] = ()
    """Of a table without a line of names: the names of its columns."""

    split_by: str | None = None
    """Of a table: a column whose values name the split of each row, as train and test."""

    labels: str | None = None
    """Of a folder without sub-folders: a CSV file with the columns file and label."""

    classes: tuple[str, ...] = ()
    """With labels: all classes that there are. They are public."""

    size: tuple[int, ...] = (32, 32)
    """Of a folder, and of sets of TFDS without a fixed shape: height and width of images."""

    channels: int = 3
    """Likewise: 3 for colours, 1 for grey."""

    tokens: str = "hash"
    """How documents become tokens, in TFDS's texts and in columns of text.
    hash: words, numbered by a hash. bytes: UTF-8.
    Else a file of the library tokenizers, as tokenizer.json, which must be public."""

    vocabulary: int = 16384
    """With tokens hash: how many numbers there are."""

    length: int = 256
    """Tokens of a document: longer ones are cut, shorter ones are filled up."""

    window: int = 64
    """Of a text for a language model: characters that a record predicts; windows don't overlap."""

    private: str = "train"
    """The records to train on and protect, as TFDS spells splits: train, train[:90%], ..."""

    public: str | None = None
    """Records that need no protection, as train[90%:]: none of the private ones."""

    test: str | None = "test"
    """The records to score. None: nothing is scored."""

    dir: str | None = None
    """Where TFDS keeps prepared sets. None: TFDS_DATA_DIR, else TFDS's own default."""

    skip_bad: bool = False
    """Leaves rows that can't be used out of every batch; N still counts them.
    Else the first of them is an error."""

    features: Literal["none", "scattering"] = "none"
    """scattering: features in the place of images, 81 for each colour and 4x4 pixels.
    They are a fixed map of each image (jaxdp.scattering), so they cost no ε."""

    mirrored: bool = False
    """Of features: averages them with those of the mirrored image: nearly half as many are left.
    It is for classes that a mirror does not change: not for digits."""

    augment: Literal["none", "crop_flip"] = "none"
    """crop_flip: images shifted by up to 4 pixels and mirrored half the time, anew every step."""

    views: int = 1
    """With augment: how many changed images of each record there are in a step.
    Their gradients are averaged before they are clipped: the noise stays the same."""

    placement: Placement = "auto"
    """Where the records are kept. auto: on the device if they take at most a quarter of it."""

    test_is_public: bool | None = None
    """Whether the test records are public. If not, test accuracy is a private number too.
    None: those of your own files are not, those of a published set (digits, TFDS's sets) are.
    They are not either, where private records are of the same split."""

    def __post_init__(self) -> None:
        require(
            self.file is None or self.folder is None,
            "data.folder",
            self.folder,
            f"either a folder or a file, which is {self.file}",
        )
        require(
            self.file is None
            or self.name == TEXT
            or self.file.endswith((TEXT_ENDING, *TABLE_ENDINGS, *COMMA_ENDINGS)),
            "data.file",
            self.file,
            f"a table, NAME{', '.join(TABLE_ENDINGS)}, or a text, NAME{TEXT_ENDING}",
        )
        if self.name == DIGITS and self.kind != "digits":
            object.__setattr__(self, "name", self.kind)
        require(
            len(self.size) == 2 and min(self.size) >= 1, "data.size", self.size, "height and width"
        )
        require(self.channels in (1, 3), "data.channels", self.channels, "1 or 3")
        require(
            self.features == "none" or self.augment == "none",
            "data.augment",
            self.augment,
            f"none, or leave out data.features = {self.features}: only images are augmented",
        )
        require(self.views >= 1, "data.views", self.views, "a whole number of at least 1")
        require(
            self.views == 1 or self.augment != "none",
            "data.views",
            self.views,
            "1, or say how views differ: --data.augment crop_flip",
        )
        require(self.length >= 1, "data.length", self.length, "a whole number of at least 1")
        require(self.vocabulary >= 2, "data.vocabulary", self.vocabulary, "at least 2")

    @property
    def kind(self) -> Literal["digits", "tfds", "text", "table", "folder"]:
        """What reads the records."""
        if self.folder is not None:
            return "folder"
        if self.name == TEXT or (self.file is not None and self.file.endswith(TEXT_ENDING)):
            return "text"
        if self.file is not None:
            return "table"
        return "digits" if self.name == DIGITS else "tfds"


DIGITS, TEXT = "digits", "text"  # names that are no set of TFDS
TEXT_ENDING = ".txt"
TABLE_ENDINGS = (".csv", ".tsv", ".parquet", ".npz")
COMMA_ENDINGS = (".csv", ".data", ".test")  # the UCI repository has the last two


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
