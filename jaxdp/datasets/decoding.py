"""Reads the records of files: decoded and checked once, and then kept in the cache."""

import contextlib
import hashlib
import importlib.resources
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from ..types import PyTree, Tell
from . import cache
from ._files import Stat, stat_of, unreadable, why
from .digests import arrays_digest, files_digest

MEMORY_BYTES = 2 * 2**30  # what is decoded into memory, where the cache can't be written


class Chunk(NamedTuple):
    """Some records, in the order of the file.

    Attributes:
      fields: the form of `Reading.form`, with the records as the first axis. A bad row is zeros.
      bad: the places in the chunk of rows that can't be used, with the reason and the cure for
        each. They never hold a value of the row: at most the name of a column.
    """

    fields: PyTree
    bad: Mapping[int, str] = {}


@dataclass(frozen=True)
class Reading:
    """How the records of a split are read from files.

    Attributes:
      title: what is read, for messages: the name of the file or folder as the user gave it.
      files: the files whose content decides the records, in order.
      about: all else that decides them, as text: a schema, the size of images, names of files.
      form: one record, as `jax.ShapeDtypeStruct`s.
      chunks: decodes the records, some at a time. It raises a ValueError, in one line, where the
        file as a whole can't be read.
      telling: says what takes long, the first time.
      rows_by: what else than the files decides which row is which record, as text. The same rows
        may be decoded in another way, and are the same records.
    """

    title: str
    files: Sequence[Path]
    about: str
    form: PyTree
    chunks: Callable[[], Iterator[Chunk]]
    telling: str
    rows_by: str = ""


@dataclass(frozen=True)
class Split:
    """The records of a split.

    Attributes:
      fields: a pytree of arrays `[n, ...]`, which may be mapped from a file.
      digest: of what the records were read from, by `split_digest`. It must stay the same as long
        as a run goes on.
      content: a digest of `fields`, where it is known already.
      bad: the rows that can't be used, with the reason for each.
      cached: whether a copy of them is in the cache.
    """

    fields: PyTree
    digest: str
    content: str | None = None
    bad: Mapping[int, str] = field(default_factory=dict)
    cached: bool = False

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.fields)[0])


def read(reading: Reading, *, skip_bad: bool, tell: Tell) -> Split:
    """Reads the records of a split, from the cache if they are there.

    Args:
      reading: how.
      skip_bad: whether rows that can't be used are listed in the result; else they are an error.
      tell: gets a line if they are decoded, which takes long.

    Raises:
      ValueError: in one line, for files that can't be read, hold no record or change meanwhile, and
        for the first bad row.
    """
    files = _stats(reading)
    source = _content(reading)
    key = hashlib.sha256(f"{_code_digest()}\n{reading.about}\n{source}".encode()).hexdigest()
    kept = cache.find(key)
    if kept is None:
        tell(reading.telling)
        kept = _decode(reading, key, files, skip_bad, tell)
    bad = {int(row): reason for row, reason in kept.facts["bad"].items()}
    if bad and not skip_bad:
        raise _bad_row(reading, *min(bad.items()))
    fields = jax.tree.unflatten(jax.tree.structure(reading.form), kept.arrays)
    digest = split_digest(len(kept.arrays[0]), f"{reading.rows_by}\n{source}")
    mapped = all(isinstance(array, np.memmap) for array in kept.arrays)
    return Split(fields, digest, kept.digest, bad, cached=mapped)


def split_digest(rows: int, content: str) -> str:
    """Returns a digest of so many records that are read from some content."""
    return f"{rows} rows, {hashlib.sha256(content.encode()).hexdigest()}"


def difference(before: str, now: str) -> str:
    """What differs between two digests of `split_digest`, in words."""
    old, new = before.partition(" ")[0], now.partition(" ")[0]
    if old != new:
        return f"there are {new} of them, and there were {old}"
    return "there are as many, but some have changed, or their order has"


def _decode(
    reading: Reading, key: str, files: Sequence[Stat], skip_bad: bool, tell: Tell
) -> cache.Kept:
    """Decodes into the cache; or into memory, if that can't be written."""
    try:
        with cache.writing() as writer:
            bad = _pass_on(reading, files, writer.add, skip_bad)
            return writer.finish(key, {"bad": bad})
    except OSError as error:
        reason = why(error)
    tell(f"The cache {cache.cache_folder()} can't be used ({reason}): decoding into memory.")
    held: list[list[np.ndarray]] = []
    size = 0

    def hold(arrays: Sequence[np.ndarray]) -> None:
        nonlocal size
        size += sum(array.nbytes for array in arrays)
        if size > MEMORY_BYTES:
            raise ValueError(
                f"{reading.title} is too large for memory, and the cache {cache.cache_folder()} "
                f"can't be used ({reason}): make room there, or set XDG_CACHE_HOME to a folder "
                "that has some"
            )
        held.append(list(arrays))

    bad = _pass_on(reading, files, hold, skip_bad)
    arrays = [np.concatenate(parts) for parts in zip(*held, strict=True)]
    return cache.Kept(arrays, arrays_digest(arrays), {"bad": bad})


def _pass_on(
    reading: Reading,
    files: Sequence[Stat],
    add: Callable[[Sequence[np.ndarray]], None],
    skip_bad: bool,
) -> dict[int, str]:
    """Passes all records on, and returns the bad rows with their reasons."""
    form, row = jax.tree.leaves(reading.form), 0
    bad: dict[int, str] = {}
    for chunk in reading.chunks():
        found = {row + place: reason for place, reason in sorted(chunk.bad.items())}
        if found and not skip_bad:
            raise _bad_row(reading, *min(found.items()))
        bad |= found
        arrays = jax.tree.leaves(chunk.fields)
        for array, leaf in zip(arrays, form, strict=True):
            assert array.shape[1:] == leaf.shape, (array.shape, leaf)
            assert array.dtype == leaf.dtype, (array.dtype, leaf)
        add(arrays)
        row += len(arrays[0])
    if row == 0:
        raise ValueError(f"{reading.title} holds no records: give a file that has some")
    if files != _stats(reading):  # else other records would be kept under the key
        raise ValueError(f"{reading.title} changed while it was read: wait until it is complete")
    return bad


def _bad_row(reading: Reading, row: int, reason: str) -> ValueError:
    return ValueError(
        f"{reading.title}, row {row}: {reason}. Or give --data.skip-bad, which leaves such rows "
        "out of every batch"
    )


def _content(reading: Reading) -> str:
    total = hashlib.sha256()
    for path in reading.files:
        with _told(reading, path):
            total.update(files_digest(path).encode())
    return total.hexdigest()


def _stats(reading: Reading) -> list[Stat]:
    found = []
    for path in reading.files:
        with _told(reading, path):
            found.append(stat_of(path))
    return found


@contextlib.contextmanager
def _told(reading: Reading, path: Path) -> Iterator[None]:
    """Says in one line that a file can't be read."""
    try:
        yield
    except OSError as error:
        title = reading.title
        raise unreadable(title if str(path) == title else f"{title}: {path}", error) from None


def _code_digest() -> str:
    """A checksum of the code that decodes: what older code has decoded is decoded anew."""
    total = hashlib.sha256()
    folder = importlib.resources.files(__package__)
    assert isinstance(folder, Path)
    for path in sorted(folder.glob("*.py")):
        total.update(path.read_bytes())
    return total.hexdigest()
