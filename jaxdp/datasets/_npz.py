"""Reads .npz, an archive of numpy's arrays, some rows at a time and without pickles."""

import contextlib
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import IO, NamedTuple

import numpy as np

from ._cells import Cells, Rows, Stored, Table, check_names, rows_at_a_time, spelt
from ._files import unreadable
from .schema import Kind

ENDING = ".npy"
HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError),
    *(NotImplementedError, RuntimeError, ValueError, KeyError),
)


class _Header(NamedTuple):
    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype
    size: int  # bytes of the header itself


def open_npz(file: str) -> Table:
    """Opens an archive whose arrays are columns: their first axis is the rows.

    Raises:
      ValueError: in one line, for a file that can't be read, and for arrays of objects or of
        different lengths.
    """
    with _damage(file), zipfile.ZipFile(file) as archive:
        names = [info.filename.removesuffix(ENDING) for info in archive.infolist()]
    check_names(file, names)
    headers = {name: _header(file, name) for name in names}
    stored = {name: _stored(file, name, header) for name, header in headers.items()}
    lengths = {name: header.shape[0] for name, header in headers.items()}
    longest, shortest = (pick(lengths, key=lengths.__getitem__) for pick in (max, min))
    if lengths[longest] != lengths[shortest]:
        raise ValueError(
            f"{file}: {longest!r} has {lengths[longest]} rows and {shortest!r} has "
            f"{lengths[shortest]}: give each array an entry for every row"
        )
    rows = lengths[longest]

    def read(wanted: Mapping[str, Kind]) -> Iterator[Rows]:
        with contextlib.ExitStack() as stack:
            with _damage(file):
                archive = stack.enter_context(zipfile.ZipFile(file))
                columns = {name: _Column(archive, name, headers[name]) for name in wanted}
            at_a_time = rows_at_a_time({name: stored[name] for name in wanted}, wanted)
            for start in range(0, rows, at_a_time):
                size = min(at_a_time, rows - start)
                with _damage(file):
                    parts = {name: column.read(start, size) for name, column in columns.items()}
                yield Rows(size, {name: _cells(parts[name], wanted[name]) for name in wanted}, {})

    return Table(file, stored, read)


class _Column:
    """Reads an array from an archive, to its end, where zipfile compares the checksum."""

    def __init__(self, archive: zipfile.ZipFile, name: str, header: _Header) -> None:
        self._header = header
        self._file: IO[bytes] = archive.open(name + ENDING)
        self._whole: np.ndarray | None = None
        self._file.read(header.size)
        if header.by_columns and len(header.shape) > 1:  # a row is not in one place then
            values = np.frombuffer(self._file.read(), header.dtype)
            self._whole = values.reshape(header.shape, order="F")

    def read(self, start: int, size: int) -> np.ndarray:
        if self._whole is not None:
            return self._whole[start : start + size]
        shape = (size, *self._header.shape[1:])
        wanted = math.prod(shape) * self._header.dtype.itemsize
        return np.frombuffer(self._file.read(wanted), self._header.dtype).reshape(shape)


def _header(file: str, name: str) -> _Header:
    with _damage(file), zipfile.ZipFile(file) as archive:
        info = archive.getinfo(name + ENDING)
        with archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            shape, by_columns, dtype = HEADERS[version](member)
            header = _Header(shape, by_columns, dtype, member.tell())
    if dtype.hasobject:
        raise ValueError(
            f"{file}: {name!r} holds Python objects, which could run any code: write it as numbers "
            "or text, as array.astype(str)"
        )
    if header.size + math.prod(shape) * dtype.itemsize != info.file_size:
        raise ValueError(f"{file} is damaged, in {name!r}: copy or write it again")
    return header


def _stored(file: str, name: str, header: _Header) -> Stored:
    told = str(header.dtype)
    if not header.shape:
        raise ValueError(f"{file}: {name!r} is a single value: give an array with all rows")
    shape = header.shape[1:]
    if math.prod(shape) == 0:
        raise ValueError(f"{file}: {name!r} has the shape {header.shape}: leave it out")
    if shape:
        told += f" of shape {shape}"
    if header.dtype.kind == "U":
        return Stored(told, () if shape else ("category", "text"), shape)
    if header.dtype.kind == "b":
        return Stored(told, () if shape else ("category",), shape)
    if header.dtype.kind in "iuf":
        return Stored(told, ("number",) if shape else ("number", "category"), shape)
    return Stored(told, (), shape)


def _cells(values: np.ndarray, kind: Kind) -> Cells:
    if kind == "number":
        return values.astype(np.float64)
    return values.tolist() if values.dtype.kind == "U" else spelt(values)


@contextlib.contextmanager
def _damage(file: str) -> Iterator[None]:
    """Turns all that can happen to an archive into one line."""
    try:
        yield
    except OSError as error:
        raise unreadable(file, error) from None
    except DAMAGE as error:
        if "encrypted" in str(error):
            raise ValueError(f"{file} has a password: write it without one") from None
        raise ValueError(
            f"{file} is no archive of numpy's arrays, or is damaged: write it with np.savez"
        ) from None
