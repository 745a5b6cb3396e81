"""Reads folders of images: a class per sub-folder, or a CSV file with the labels."""

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import jax
import numpy as np

from ..types import Tell
from ._files import unreadable
from .config import DataConfig, require
from .decoding import Chunk, Reading, Split, read
from .images import MIDDLE, RANGE, at_a_time, decode_images, import_pillow
from .rows import in_chunks
from .sources import Format, SplitSet

ENDINGS = (".png", ".jpg", ".jpeg")
NO_CLASS = -1  # the label of a row whose class is unknown, which is a bad row


@dataclass(frozen=True)
class _Row:
    """An image: its file, by its name in the folder; its label; and why it can't be read."""

    name: str
    label: int
    fault: str | None


@dataclass(frozen=True)
class _Folder:
    """The images of a split, in the order of their rows."""

    title: str
    path: Path
    classes: tuple[str, ...]
    rows: Sequence[_Row]
    labels: Path | None = None


def open_folder(config: DataConfig, tell: Tell) -> SplitSet:
    """Opens the folder of images `config.folder`, with `config.test_from` as the split `test`.

    With a sub-folder per class, the rows are in the order of a hash of the files' names
    (`cat/1.png`), so that a slice has images of all classes. The classes are the names of the
    sub-folders, sorted. They are public. With
    `config.labels`, the rows and classes are in the order of that file and of `config.classes`.
    Names that begin with a dot are passed over. `decode_images` says how images are decoded.

    Args:
      config: the data section of a configuration.
      tell: gets a line about everything that takes long.

    Returns:
      Records (image uint8 [height, width, channels], label int32).

    Raises:
      ValueError: in one line, if Pillow is not installed, folders or the labels can't be read, or
        they hold something else. Reading a split raises what `decoding.read` does.
    """
    import_pillow("data.folder")
    assert config.folder is not None
    if config.labels is not None:
        require(
            config.test_from is None,
            "data.test-from",
            config.test_from,
            "None with data.labels, and slices: list all images in that file, and give "
            "--data.private 'train[:90%]' --data.test 'train[90%:]'",
        )
        splits = {"train": _labelled(config.folder, config.labels, config.classes)}
    else:
        require(not config.classes, "data.classes", config.classes, "them with data.labels only")
        splits = {"train": _sorted_by_class(config.folder)}
        if config.test_from is not None:
            splits["test"] = _sorted_by_class(config.test_from)
            _check_same_classes(splits["train"], splits["test"])
    height, width = config.size
    of = "the option data.classes" if config.labels else "the names of the sub-folders"
    return SplitSet(
        sizes={name: len(folder.rows) for name, folder in splits.items()},
        read=lambda name: _read(splits[name], config, tell),
        format=Format(
            inputs="image",
            target="class",
            outputs=len(splits["train"].classes),
            center=MIDDLE,
            scale=MIDDLE,
            scaling=f"images are brought to {height} x {width} pixels, and {RANGE}; the classes "
            f"are {of}, which are public",
            decoding=f"{config.size} {config.channels} {splits['train'].classes}",
        ),
    )


def _read(folder: _Folder, config: DataConfig, tell: Tell) -> Split:
    height, width = config.size
    shape = (height, width, config.channels)
    rows = folder.rows

    def chunks() -> Iterator[Chunk]:
        for part in in_chunks(len(rows), at_a_time(height * width * config.channels)):
            contents = [partial(_content, folder, rows[row]) for row in part]
            images, bad = decode_images(contents, (height, width), config.channels)
            labels = np.array([rows[row].label for row in part], np.int32)
            for place, row in enumerate(part):
                reason = rows[row].fault or bad.get(place)
                if reason is not None:
                    bad[place] = f"{rows[row].name}: {reason}"
                    images[place], labels[place] = 0, 0
            yield Chunk((images, labels), bad)

    import PIL

    by_row = json.dumps([[row.name, row.label, row.fault] for row in rows])
    reading = Reading(
        title=folder.title,
        files=[
            *([folder.labels] if folder.labels else []),
            *(folder.path / row.name for row in rows if row.fault is None),
        ],
        about=f"images {shape}, Pillow {PIL.__version__}, {by_row}",
        form=(jax.ShapeDtypeStruct(shape, np.uint8), jax.ShapeDtypeStruct((), np.int32)),
        chunks=chunks,
        telling=f"Decoding the {len(rows):,} images of {folder.title} (once)",
        rows_by=json.dumps([folder.classes, [row.label for row in rows]]),
    )
    return read(reading, skip_bad=config.skip_bad, tell=tell)


def _content(folder: _Folder, row: _Row) -> bytes:
    if row.fault is not None:
        return b""
    try:
        return (folder.path / row.name).read_bytes()
    except OSError as error:
        raise unreadable(f"{folder.title}: {row.name}", error) from None


def _sorted_by_class(title: str) -> _Folder:
    """A folder with a sub-folder per class."""
    path = Path(title)
    entries = _listed(path, title)
    loose = [entry.name for entry in entries if not entry.is_dir()]
    if loose:
        raise ValueError(
            f"{title} holds the file {loose[0]} beside its sub-folders, which are the classes: "
            "move it into one, or give a file of names and labels as --data.labels"
        )
    classes = tuple(entry.name for entry in entries)
    if len(classes) < 2:
        raise ValueError(
            f"{title} has {len(classes)} sub-folders: give a folder with one for every class, at "
            "least two, or a file of names and labels as --data.labels"
        )
    rows = [
        _row(path, _image_name(title, name, file), label)
        for label, name in enumerate(classes)
        for file in _listed(path / name, f"{title}/{name}")
    ]
    if not rows:
        raise ValueError(f"{title} has no image in any sub-folder: put PNG and JPEG files there")
    return _Folder(title, path, classes, sorted(rows, key=_shuffled))


def _shuffled(row: _Row) -> bytes:
    """Orders rows by a hash of their names, so that a slice has images of all classes."""
    return hashlib.sha256(os.fsencode(row.name)).digest()


def _image_name(title: str, class_name: str, file: Path) -> str:
    name = f"{class_name}/{file.name}"
    if file.suffix.lower() not in ENDINGS:
        what = "the folder" if file.is_dir() else "the file"
        raise ValueError(
            f"{title} holds {what} {name}, which is no {', '.join(ENDINGS)}: leave only images in "
            "the sub-folders of the classes"
        )
    return name


def _check_same_classes(train: _Folder, test: _Folder) -> None:
    for name in (*train.classes, *test.classes):
        if (name in train.classes) != (name in test.classes):
            lacks, has = (test, train) if name in train.classes else (train, test)
            raise ValueError(
                f"{lacks.title} has no sub-folder {name}, which {has.title} has: make one, which "
                "may be empty, so that both have the same classes"
            )


def _labelled(title: str, labels: str, classes: tuple[str, ...]) -> _Folder:
    """A folder whose images and labels are listed in a CSV file."""
    require(
        len(classes) >= 2 and len({*classes}) == len(classes),
        "data.classes",
        list(classes),
        "all classes that there are, each once, as --data.classes cat dog: they are public, so "
        f"that they can't be taken from {labels}",
    )
    path = Path(title)
    _listed(path, title)
    numbers = {name: number for number, name in enumerate(classes)}
    rows, seen = [], dict[str, int]()
    for row, (name, label) in enumerate(_csv_rows(labels)):
        _check_name(name, f"{labels}, row {row}: the name in the column file")
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(
                f"{labels}, row {row}: the column file must name files inside {title}, as 1.png: "
                "correct it"
            )
        name = PurePosixPath(name).as_posix()
        if name in seen:
            raise ValueError(
                f"{labels}, row {row}: its file is in row {seen[name]} already, and an image is "
                "one record: delete one of the rows"
            )
        seen[name] = row
        fault = None
        if label not in numbers:
            fault = f"its label in {labels} is none of data.classes: correct the label"
        rows.append(_row(path, name, numbers.get(label, NO_CLASS), fault))
    if not rows:
        raise ValueError(f"{labels} has no row: list the images of {title} there")
    return _Folder(title, path, classes, rows, Path(labels))


def _csv_rows(labels: str) -> Iterator[tuple[str, str]]:
    """The columns `file` and `label` of a CSV file."""
    try:
        text = Path(labels).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise unreadable(labels, error) from None
    except UnicodeDecodeError:
        raise ValueError(f"{labels} is not UTF-8: convert it") from None
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    row = -1
    try:
        names = next(lines, [])
        if sorted(names) != ["file", "label"]:
            raise ValueError(
                f"{labels} must have the columns file and label, and no other: write file,label "
                "as its first line"
            )
        for line in filter(None, lines):  # an empty line is none
            row += 1
            if len(line) != 2:
                raise ValueError(
                    f"{labels}, row {row}: it has {len(line)} columns and not 2: put names with a "
                    "comma in quotes"
                )
            yield line[names.index("file")], line[names.index("label")]
    except csv.Error:
        raise ValueError(
            f"{labels}, row {row + 1}: it is no CSV: put each quotation mark twice, and close it"
        ) from None


def _row(path: Path, name: str, label: int, fault: str | None = None) -> _Row:
    file = path / name
    if os.path.isdir(file):
        fault = "it is a folder: put the image in its place"
    elif not os.path.exists(file):  # unlike Path.exists, for names that are too long as well
        fault = "there is no such file: put it back"
    elif not os.access(file, os.R_OK):
        fault = "you may not read it: change its permissions"
    return _Row(name, label, fault)


def _listed(path: Path, title: str) -> list[Path]:
    """What a folder holds, sorted by the bytes of the names."""
    try:
        found = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise unreadable(title, error) from None
    for entry in found:
        _check_name(entry.name, f"{title}: the name {entry.name!a}")
    return sorted(found, key=lambda entry: os.fsencode(entry.name))


def _check_name(name: str, where: str) -> None:
    if not name or not name.isprintable():
        raise ValueError(f"{where} is empty or has signs that can't be printed: rename the file")
