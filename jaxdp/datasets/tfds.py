"""Reads sets of TensorFlow Datasets with images or texts of a class, without TensorFlow."""

import contextlib
import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..types import Tell
from . import tfds_prepare
from ._tfds_library import check_reachable, data_folder, first_line, import_tfds, quiet
from .config import DIGITS, TABLE_ENDINGS, TEXT_ENDING, DataConfig
from .decoding import Chunk, Reading, Split, read
from .images import MIDDLE, RANGE, at_a_time, decode_images
from .rows import in_chunks
from .sources import Format, SplitSet
from .tokens import make_tokens

# Mean and standard deviation per channel over all training images, with pixels of 0 to 1. They
# have long been published, so that they are no secret of the records any more.
PUBLISHED_SCALING = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}


@dataclass(frozen=True)
class _Inputs:
    """What the image or text of a record becomes.

    Attributes:
      plural: what the records are, for messages.
      form: the inputs of one record.
      about: all that decides them, besides the records.
      convert: returns the inputs of some records, and what is wrong with the bad ones by their
        places. It gets None for records that could not be decoded.
      decoders: what TFDS is to leave to `convert`.
    """

    plural: str
    form: jax.ShapeDtypeStruct
    about: str
    convert: Callable[[Sequence[Any]], tuple[np.ndarray, dict[int, str]]]
    decoders: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Set:
    """A prepared set: its builder, and the names of the input and of the label in a record."""

    builder: Any
    inputs: _Inputs
    value: str
    label: str
    config: DataConfig
    tell: Tell

    @property
    def name(self) -> str:
        return str(self.builder.info.full_name)

    @property
    def mend(self) -> str:
        return f"Delete {self.builder.data_path} and prepare the set again"

    def read(self, split: str) -> Split:
        info = self.builder.info.splits[split]
        if not info.num_examples:
            raise ValueError(f"{self.name}: the split {split!r} is empty: choose another one")
        files = [Path(file) for file in info.filepaths]
        classes = self.builder.info.features[self.label].num_classes
        with self._readable(split):
            self._check_lengths(files, info.shard_lengths)
        reading = Reading(
            title=f"{self.name}, split {split}",
            files=files,
            about=f"{self.name} {self.value} {self.label} {classes} {self.inputs.about}",
            form=(self.inputs.form, jax.ShapeDtypeStruct((), np.int32)),
            chunks=partial(self._chunks, split, info.num_examples, classes),
            telling=f"Decoding the {info.num_examples:,} {self.inputs.plural} of {self.name}, "
            f"split {split} (once)",
        )
        return read(reading, skip_bad=self.config.skip_bad, tell=self.tell)

    def _chunks(self, split: str, size: int, classes: int) -> Iterator[Chunk]:
        from tensorflow_datasets.core.decode import DeserializeMethod

        form = self.inputs.form
        with self._readable(split):
            source = self.builder.as_data_source(
                split=split, deserialize_method=DeserializeMethod.RAW_BYTES
            )
        for rows in in_chunks(size, at_a_time(form.size * form.dtype.itemsize)):
            with self._readable(split):
                records = source.__getitems__(rows)
            yield self._chunk(records, classes)

    def _chunk(self, records: Sequence[bytes], classes: int) -> Chunk:
        values: list[Any] = [None] * len(records)
        labels, bad = np.zeros(len(records), np.int32), {}
        for place, content in enumerate(records):
            try:
                with quiet():
                    record = self.builder.info.features.deserialize_example_np(
                        content, decoders=self.inputs.decoders
                    )
            except Exception:  # TFDS and Pillow have no type in common
                bad[place] = f"it can't be decoded. {self.mend}"
                continue
            values[place], label = record[self.value], record[self.label]
            if 0 <= label < classes:
                labels[place] = label
            else:
                bad[place] = f"its label is not one of 0 to {classes - 1}. {self.mend}"
        inputs, wrong = self.inputs.convert(values)
        bad = {**wrong, **bad}
        for place in bad:
            inputs[place], labels[place] = 0, 0
        return Chunk((inputs, labels), bad)

    @contextlib.contextmanager
    def _readable(self, split: str) -> Iterator[None]:
        """Says in one line that the files of a split are at fault."""
        try:
            with quiet():
                yield
        except ValueError:
            raise
        except Exception as error:  # TFDS and array_record have no type in common
            raise ValueError(
                f"{self.name}: the split {split!r} in {self.builder.data_path} can't be read "
                f"({first_line(error)}): its files are missing or damaged. {self.mend}"
            ) from error

    def _check_lengths(self, files: Sequence[Path], lengths: Sequence[int]) -> None:
        from array_record.python.array_record_module import ArrayRecordReader

        for file, length in zip(files, lengths, strict=True):
            if not file.is_file():
                raise ValueError(f"{file} is missing. {self.mend}")
            found = ArrayRecordReader(str(file)).num_records()
            if found != length:
                raise ValueError(
                    f"{file} has {found} readable records where dataset_info.json says {length}: "
                    f"it is damaged, or another file. {self.mend}"
                )


def open_tfds(config: DataConfig, tell: Tell) -> SplitSet:
    """Opens a set that has an image or a text and a class, and prepares it first if need be.

    Args:
      config: the data section of a configuration. Its `name` is as TFDS spells it: `mnist`,
        `emnist/letters`, `mnist:3.0.1`.
      tell: gets a line about everything that takes long.

    Returns:
      Records (image uint8 [height, width, channels], label int32) or (tokens int32 [length],
      label int32), in TFDS's order. Images for which the set declares no shape are brought to
      `config.size` by `decode_images`.

    Raises:
      ValueError: in one line, if TFDS is not installed, there is no such set, its records are
        something else, or it can't be prepared. Reading a split raises what `decoding.read` does,
        and for an empty split and for shards that are missing or damaged.
    """
    tfds = import_tfds()
    builder = _prepared(tfds, config, tell)
    value, label = _fields(tfds, builder.info)
    classes = builder.info.features[label].num_classes
    if not classes:
        raise ValueError(
            f"{builder.info.full_name} does not say how many classes there are, and counting them "
            "in private records would leak: choose another set"
        )
    is_image = isinstance(builder.info.features[value], tfds.features.Image)
    make = _images if is_image else _texts
    inputs, data_format = make(tfds, builder.info, value, classes, config)
    found = _Set(builder, inputs, value, label, config, tell)
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    return SplitSet(sizes, found.read, data_format, published=is_published(tfds, builder.name))


def is_published(tfds: Any, name: str) -> bool:
    """Whether TFDS itself has a set of that name: a class of the user's own is listed, too."""
    if name not in tfds.list_builders(with_community_datasets=False):
        return False
    return str(tfds.builder_cls(name).__module__).startswith("tensorflow_datasets.")


def _images(
    tfds: Any, info: Any, value: str, classes: int, config: DataConfig
) -> tuple[_Inputs, Format]:
    feature = info.features[value]
    if feature.np_dtype != np.uint8:
        raise ValueError(
            f"{info.full_name} has images of {np.dtype(feature.np_dtype)}, and only those in bytes "
            "can be used: choose another set"
        )
    center: float | Sequence[float] = MIDDLE
    scale: float | Sequence[float] = MIDDLE
    scaling, shape = RANGE, tuple(feature.shape)
    constants = PUBLISHED_SCALING.get(info.name)
    if constants is not None:
        center, scale = (tuple(255 * number for number in numbers) for numbers in constants)
        scaling = (
            f"pixels are shifted by {constants[0]} and divided by {constants[1]} (of 1), constants "
            "that were published for this set"
        )
    if None not in shape:
        about, convert, decoders = str(shape), partial(_of_shape, shape), {}
    else:
        import PIL

        size = (config.size[0], config.size[1])
        channels = shape[-1] if shape[-1] in (1, 3) else config.channels
        scaling = f"images are brought to {size[0]} x {size[1]} pixels, and {scaling}"
        shape = (*size, channels)
        about = f"{shape}, Pillow {PIL.__version__}"
        convert = partial(_brought_to, size, channels)
        decoders = {value: tfds.decode.SkipDecoding()}
    form = jax.ShapeDtypeStruct(shape, np.uint8)
    return (
        _Inputs("images", form, about, convert, decoders),
        Format("image", "class", classes, center, scale, scaling, decoding=str(shape)),
    )


def _of_shape(shape: tuple[int, ...], values: Sequence[Any]) -> tuple[np.ndarray, dict[int, str]]:
    """Images that TFDS has decoded."""
    images, bad = np.zeros((len(values), *shape), np.uint8), {}
    for place, image in enumerate(values):
        if np.shape(image) == shape and image.dtype == np.uint8:
            images[place] = image
        else:
            bad[place] = f"the image has not the shape {shape} of this set: prepare it again"
    return images, bad


def _brought_to(
    size: tuple[int, int], channels: int, values: Sequence[bytes | None]
) -> tuple[np.ndarray, dict[int, str]]:
    """Images that TFDS has left as the files that they were."""
    return decode_images([partial(bytes, value or b"") for value in values], size, channels)


def _texts(
    tfds: Any, info: Any, value: str, classes: int, config: DataConfig
) -> tuple[_Inputs, Format]:
    tokens = make_tokens(config.tokens, config.vocabulary, config.length)

    def convert(values: Sequence[bytes | None]) -> tuple[np.ndarray, dict[int, str]]:
        documents, bad = [], {}
        for place, value in enumerate(values):
            try:
                documents.append((value or b"").decode())
            except UnicodeDecodeError:
                documents.append("")
                bad[place] = "the text is not UTF-8: prepare the set again from texts that are"
        return tokens.encode(documents), bad

    form = jax.ShapeDtypeStruct((config.length,), np.int32)
    return (
        _Inputs("documents", form, tokens.about, convert),
        Format(
            inputs="tokens",
            target="class",
            outputs=classes,
            center=None,
            scale=None,
            scaling=tokens.told,
            vocabulary=tokens.vocabulary,
            decoding=f"{tokens.about} {config.length}",
        ),
    )


def _prepared(tfds: Any, config: DataConfig, tell: Tell) -> Any:
    """Returns the builder of a set that is prepared as array_record."""
    name, folder = config.name, config.dir
    try:
        with quiet():
            builder = tfds.builder(name, data_dir=data_folder(folder))
            prepared = builder.is_prepared()
    except tfds.core.registered.DatasetNotFoundError:
        cure = _own_data(name) or _near(tfds, name)
        raise ValueError(f"there is no data set {name!r}: {cure}") from None
    except Exception as error:
        cure = _own_data(name) or first_line(error)
        raise ValueError(f"the data set {name!r} can't be opened: {cure}") from error
    if not prepared:
        _prepare(builder, folder, tell)
        builder = tfds.builder(name, data_dir=data_folder(folder))
    described = json.loads((Path(builder.data_path) / "dataset_info.json").read_text())["name"]
    if described != builder.name:
        raise ValueError(
            f"{builder.data_path} holds the set {described!r}, by its dataset_info.json, and not "
            f"{builder.name!r}: rename the folder, or ask for {described!r}"
        )
    if builder.info.file_format.value != "array_record":
        raise ValueError(
            f"{builder.data_path} is prepared as {builder.info.file_format.value}, which only "
            "TensorFlow reads: where that is installed, run `tfds convert_format "
            f"--dataset_dir={builder.data_path} --out_file_format=array_record --out_path=NEW`"
        )
    return builder


def _own_data(name: str) -> str | None:
    """What to give instead of a name that is no set's, but that of a file or folder."""
    if name.endswith((TEXT_ENDING, *TABLE_ENDINGS)):
        return f"for a file of your own give --data.file {name}"
    return f"for a folder of images give --data.folder {name}" if Path(name).is_dir() else None


def _near(tfds: Any, name: str) -> str:
    known = [DIGITS, *tfds.list_builders(with_community_datasets=False)]
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else "give digits, or a set of TFDS"


def _prepare(builder: Any, folder: str | None, tell: Tell) -> None:
    """Downloads and prepares a set, with our own reader where there is one."""
    if builder.name in tfds_prepare.NAMES:
        tfds_prepare.prepare(builder.name, folder, tell=tell)
        return
    tell(f"Downloading and preparing {builder.info.full_name} in {builder.data_path}")
    try:
        check_reachable(builder.url_infos or {})
        with quiet():
            builder.download_and_prepare(file_format="array_record")
    except Exception as error:
        # Each set's own code in TFDS decides whether it needs TensorFlow.
        needs_tensorflow = "tensorflow" in str(error).lower()
        raise ValueError(
            f"{builder.info.full_name} is not prepared in {builder.data_path}, and preparing it "
            + (
                "takes TensorFlow: on a machine that has it run "
                f"`tfds build {builder.name} --file_format=array_record --data_dir=FOLDER` and "
                "copy FOLDER here"
                if needs_tensorflow
                else f"failed ({first_line(error)}): check the network, or set TFDS_DATA_DIR (or "
                "--data.dir) to a folder where it is prepared"
            )
        ) from error


def _fields(tfds: Any, info: Any) -> tuple[str, str]:
    """Names of the image or text, and of the label: TFDS's `supervised_keys`, or the only ones."""
    features = dict(info.features.items())
    of_kind = lambda *kinds: [key for key, f in features.items() if isinstance(f, kinds)]
    images, labels = of_kind(tfds.features.Image), of_kind(tfds.features.ClassLabel)
    texts = [key for key in of_kind(tfds.features.Text) if features[key].shape == ()]
    inputs = [*images, *texts]
    supervised = info.supervised_keys
    if supervised and len(supervised) == 2 and supervised[0] in inputs and supervised[1] in labels:
        return supervised[0], supervised[1]
    if len(inputs) == len(labels) == 1:
        return inputs[0], labels[0]
    raise ValueError(
        f"{info.full_name} has the images {images}, the texts {texts} and the class labels "
        f"{labels}: only sets with one image or one text and one class label can be used. Choose "
        "another"
    )
