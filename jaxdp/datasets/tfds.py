"""Reads image-classification sets of TensorFlow Datasets as arrays, without TensorFlow."""

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..types import Tell
from . import tfds_prepare
from ._tfds_library import check_reachable, data_folder, first_line, import_tfds, quiet

Arrays = dict
cached = None

CHUNK = 4096  # images that are decoded at a time


@dataclass(frozen=True)
class ImageSet:
    """A prepared set of labelled images.

    Attributes:
      name: as TFDS spells it, with the version: `mnist/3.0.1`.
      sizes: number of records of each split.
      num_classes: labels are 0 to num_classes - 1.
    """

    name: str
    sizes: dict[str, int]
    num_classes: int
    _builder: Any
    _fields: tuple[str, str]
    _tell: Tell

    def read(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Reads a split, in TFDS's order. It is decoded once and then kept in the cache.

        Returns:
          `(images uint8 [n, height, width, channels], labels int32 [n])`.

        Raises:
          ValueError: for an empty split, files that are missing or damaged, images of different
            shapes, or labels that are out of range.
        """
        info = self._builder.info.splits[split]
        if not info.num_examples:
            raise ValueError(f"{self.name}: the split {split!r} is empty: choose another one")
        try:
            files = [Path(file) for file in info.filepaths]
            self._check_lengths(files, info.shard_lengths)
            name = f"{self.name.replace('/', '-')}-{split}-{_fingerprint(files)}"
            arrays = cached(name, lambda: self._decode(split))
        except ValueError:
            raise
        except Exception as error:  # TFDS, array_record and Pillow have no type in common
            raise ValueError(
                f"{self.name}: the split {split!r} in {self._builder.data_path} can't be read "
                f"({first_line(error)}): its files are missing or damaged. {self._mend()}"
            ) from error
        return arrays["images"], arrays["labels"]

    def _check_lengths(self, files: Sequence[Path], lengths: Sequence[int]) -> None:
        from array_record.python.array_record_module import ArrayRecordReader

        for file, length in zip(files, lengths, strict=True):
            if not file.is_file():
                raise ValueError(f"{file} is missing. {self._mend()}")
            found = ArrayRecordReader(str(file)).num_records()
            if found != length:
                raise ValueError(
                    f"{file} has {found} readable records where dataset_info.json says {length}: "
                    f"it is damaged, or another file. {self._mend()}"
                )

    def _decode(self, split: str) -> Arrays:
        size = self.sizes[split]
        self._tell(f"Decoding the {size:,} images of {self.name}, split {split} (once)")
        image_field, label_field = self._fields
        with quiet():
            source = self._builder.as_data_source(split=split)
            shape = np.shape(source[0][image_field])
            images, labels = np.empty((size, *shape), np.uint8), np.empty(size, np.int32)
            for start in range(0, size, CHUNK):
                rows = range(start, min(start + CHUNK, size))
                for row, record in zip(rows, source.__getitems__(rows), strict=True):
                    image, label = record[image_field], record[label_field]
                    if image.shape != shape or image.dtype != np.uint8:
                        raise ValueError(
                            f"{self.name}: image {row} of {split} is {image.dtype} {image.shape} "
                            f"and image 0 is uint8 {shape}: choose a set whose images are all in "
                            "bytes and of one shape"
                        )
                    if not 0 <= label < self.num_classes:
                        raise ValueError(
                            f"{self.name}: record {row} of {split} has label {label}: expected 0 "
                            f"to {self.num_classes - 1}. {self._mend()}"
                        )
                    images[row], labels[row] = image, label
        return {"images": images, "labels": labels}

    def _mend(self) -> str:
        return f"Delete {self._builder.data_path} and prepare the set again"


def open_images(name: str, folder: str | None, tell: Tell = lambda line: None) -> ImageSet:
    """Opens an image-classification set, and prepares it first if it is not prepared.

    Args:
      name: as TFDS spells it: `mnist`, `cifar10`, `emnist/letters`, `mnist:3.0.1`.
      folder: where TFDS keeps prepared sets. None: TFDS_DATA_DIR, else TFDS's own default.
      tell: gets a line about everything that takes long.

    Raises:
      ValueError: if TFDS is not installed, there is no such set, it has no labelled images, or it
        can't be prepared.
    """
    tfds = import_tfds()
    try:
        with quiet():
            builder = tfds.builder(name, data_dir=data_folder(folder))
            prepared = builder.is_prepared()
    except tfds.core.registered.DatasetNotFoundError:
        known = ["digits", "text", *tfds.list_builders(with_community_datasets=False)]
        near = difflib.get_close_matches(name, known, n=1)
        raise ValueError(
            f"there is no data set {name!r}"
            + (f": did you mean {near[0]!r}?" if near else ": give digits, text or a set of TFDS")
        ) from None
    except Exception as error:
        raise ValueError(f"the data set {name!r} can't be opened: {first_line(error)}") from error
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
    image, label = _fields(tfds, builder.info)
    return ImageSet(
        name=builder.info.full_name,
        sizes={split: info.num_examples for split, info in builder.info.splits.items()},
        num_classes=builder.info.features[label].num_classes,
        _builder=builder,
        _fields=(image, label),
        _tell=tell,
    )


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
    """Returns the names of the image and the label: TFDS's `supervised_keys`, or the only ones."""
    features = dict(info.features.items())
    images = [key for key, f in features.items() if isinstance(f, tfds.features.Image)]
    labels = [key for key, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    supervised = info.supervised_keys
    if supervised and len(supervised) == 2 and supervised[0] in images and supervised[1] in labels:
        return supervised[0], supervised[1]
    if len(images) == len(labels) == 1:
        return images[0], labels[0]
    raise ValueError(
        f"{info.full_name} has the images {images} and the class labels {labels}: only sets for "
        "image classification, with one of each, can be used. Choose another"
    )


def _fingerprint(files: Sequence[Path]) -> str:
    """Returns a name that changes with the files of a split: their paths, sizes or times."""
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:12]


def open_tfds(config: Any, tell: Any) -> Any:
    raise NotImplementedError
