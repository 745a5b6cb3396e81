"""Rows by number: arrays, in memory or mapped from files, and sources that read them when asked."""

import hashlib
import math
import operator
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from ..types import PyTree
from . import _mapped, cache
from ._files import Stat
from .digests import arrays_digest

ROWS_AT_A_TIME = 500  # in a pass over many records, which bounds its memory

MOST_ROWS = 2**31 - 1  # their numbers have 32 bits

MEMORY_BYTES = 256 * 2**20  # up to here, rows without a digest of their own are read into memory

CURE = (
    "give a pytree of arrays of numbers with one row for each record, such as (x, y), a list of "
    "such records, or a source of them"
)


@runtime_checkable
class Source(Protocol):
    """Records that are read when they are sampled, such as those of files larger than memory.

    Rows are numbered from 0. The records of a source are fixed: as long as `digest` is the same, a
    number stands for the same record, bit by bit. Nothing may write to them while a run goes on:
    what is changed and put back before a resume is not seen. Several threads read at a time.

    A source may also have `fields`, a dict of the names and kinds of its fields in words; the
    privacy statement publishes it.
    """

    def __len__(self) -> int:
        """The number of records, N. It is published."""
        ...

    def __getitems__(self, rows: Sequence[int]) -> PyTree:
        """Reads records: a pytree of arrays `[len(rows), ...]`, or a list of pytrees."""
        ...

    def digest(self) -> str:
        """A checksum of the content of everything that the records are read from.

        It is taken when a `Dataset` is made of the source: at every start and resume of a run.
        """
        ...


class ReadFailed(RuntimeError):
    """Records that were checked before a run can't be read any more, or have changed."""


@dataclass(frozen=True)
class ArrayRows:
    """Rows of arrays.

    Attributes:
      fields: the pytree, with the records as the first axis.
      content: a digest of all of them, where it is known; else they are hashed when asked.
      form: one record, as shapes with the dtypes that are read.
      in_memory: whether no array is mapped from a file.
      repeats: whether reading a row again surely gives the same bits.
    """

    fields: PyTree
    content: str | None = None
    form: PyTree = field(init=False)
    in_memory: bool = field(init=False)
    repeats: bool = field(default=True, init=False)
    _files: Mapping[Path, Stat] = field(init=False)
    _digests: dict[range, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        arrays = jax.tree.leaves(self.fields)
        one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), self.fields)
        mapped = [file for array in arrays if (file := _mapped.file_of(array)) is not None]
        object.__setattr__(self, "form", one)
        object.__setattr__(self, "in_memory", not mapped)
        object.__setattr__(self, "_files", {file: _mapped.state_of(file) for file in mapped})

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.fields)[0])

    def take(self, rows: range | np.ndarray) -> PyTree:
        """The rows of these numbers, as arrays `[len(rows), ...]`."""
        where = slice(rows.start, rows.stop) if isinstance(rows, range) else rows
        if not self.in_memory and not isinstance(rows, range):
            for array in jax.tree.leaves(self.fields):
                _mapped.will_need(array, rows)
        taken = jax.tree.map(lambda a: np.asarray(a[where]), self.fields)
        self._check_files()
        return taken

    def _check_files(self) -> None:
        """Refuses files that were written to since they were mapped."""
        for file, before in self._files.items():
            now = _mapped.state_of(file)
            # What was replaced or deleted stays as it was for whoever has mapped it.
            if now != before and now[0] == before[0]:
                raise ReadFailed(
                    f"{file} was written to while its records were used: they are not those that "
                    "were checked. Put its content back, or start another run"
                )

    def digest(self, rows: range) -> str:
        """A checksum of a range of rows."""
        self._check_files()
        if self.content is not None:
            return f"{self.content} {rows.start} {rows.stop}"
        if rows in self._digests:
            return self._digests[rows]
        arrays = [a[rows.start : rows.stop] for a in jax.tree.leaves(self.fields)]
        digest = arrays_digest(arrays)
        if not self.in_memory:  # those in memory may be changed in place; a file is watched
            self._digests[rows] = digest
        return digest


@dataclass(frozen=True)
class SourceRows:
    """Rows that a source reads.

    Attributes:
      source: by whatever protocol it has; see `by_number`.
      content: a digest of all of them.
      form: one record, as shapes with the dtypes that are read.
      repeats: whether the source itself has a digest, and so promises to repeat.
      in_memory: False.
    """

    source: Any
    content: str
    form: PyTree
    repeats: bool
    in_memory: bool = field(default=False, init=False)

    def __len__(self) -> int:
        return len(self.source)

    def take(self, rows: range | np.ndarray) -> PyTree:
        """The rows of these numbers, as arrays `[len(rows), ...]`."""
        try:
            return read_rows(self.source, rows, self.form)
        except ValueError as error:
            raise ReadFailed(
                f"records can't be read ({error}), though they could before the run: put their "
                "source back as it was"
            ) from None

    def digest(self, rows: range) -> str:
        """A checksum of a range of rows."""
        return f"{self.content} {rows.start} {rows.stop}"


Rows = ArrayRows | SourceRows


def by_number(given: Any) -> bool:
    """Whether an object has rows by number: `__len__`, and `__getitems__` or `__getitem__`."""
    if isinstance(given, type):  # the class in place of a source
        return False
    return hasattr(given, "__len__") and (
        hasattr(given, "__getitems__") or hasattr(given, "__getitem__")
    )


def open_source(use: str, source: Any) -> Rows:
    """Checks all rows of a source, unless that was done before.

    Args:
      use: what the rows are for, in messages.
      source: see `by_number`. Without a `digest` of its own it is read whole, at every start.

    Raises:
      ValueError: in one line, for rows that can't be read, differ in form or hold no numbers.
    """
    if len(source) == 0:
        raise ValueError(f"the {use} rows can't be read (there are none): {CURE}")
    if len(source) > MOST_ROWS:
        raise ValueError(
            f"the {use} source has {len(source):,} rows: give at most {MOST_ROWS:,}, and no source "
            "that repeats its rows"
        )
    first = _tried(use, source, range(1), None)
    check_numbers(use, first)
    form = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), first)
    if not hasattr(source, "digest"):
        if len(source) * record_bytes(form) <= MEMORY_BYTES:
            return ArrayRows(_together(list(_checked(use, source, form))))
        return SourceRows(source, _content(_checked(use, source, form)), form, repeats=False)
    digest = source.digest()
    if not (isinstance(digest, str) and digest):
        raise ValueError(
            f"the digest of the {use} source is {digest!r}: return a text that changes with the "
            "content of the records, as jaxdp.datasets.files_digest(path)"
        )
    content = hashlib.sha256(f"{len(source)} {form} {digest}".encode()).hexdigest()
    checked = f"{type(source)} {content}"
    if not cache.remembers(checked):
        for _ in _checked(use, source, form):
            pass
        cache.remember(checked)
    return SourceRows(source, content, form, repeats=True)


def read_rows(source: Any, rows: range | np.ndarray, form: PyTree | None) -> PyTree:
    """Reads some rows of a source as arrays `[len(rows), ...]`.

    Args:
      source: see `by_number`.
      rows: their numbers.
      form: what a record must be. None: that of the first.

    Raises:
      ValueError: in one line, for rows that can't be read or have another form.
    """
    numbers = [int(row) for row in rows]
    try:
        if hasattr(source, "__getitems__"):
            found = source.__getitems__(numbers)
        else:
            found = [source[row] for row in numbers]
    except Exception as error:  # whatever library the source comes from
        raise ValueError(_reason(error)) from None
    found = columns(found) if isinstance(found, list) else jax.tree.map(np.asarray, found)
    arrays = jax.tree.leaves(found)
    if not arrays or any(a.ndim == 0 or len(a) != len(numbers) for a in arrays):
        shapes = [a.shape for a in arrays]
        raise ValueError(f"{len(numbers)} rows were asked for, and arrays of {shapes} came")
    if form is not None:
        told = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), found)
        if told != form:
            raise ValueError(f"a record is {shown(told)}, and the first one {shown(form)}")
    return found


def in_chunks(size: int, at_a_time: int) -> Iterator[range]:
    """The rows 0 to size - 1, some at a time."""
    for start in range(0, size, at_a_time):
        yield range(start, min(start + at_a_time, size))


def record_bytes(form: PyTree) -> int:
    """The memory that one record takes."""
    return sum(leaf.dtype.itemsize * math.prod(leaf.shape) for leaf in jax.tree.leaves(form))


def shown(tree: PyTree) -> str:
    """Shapes as text: float32[5] instead of ShapeDtypeStruct(...)."""
    short = lambda leaf: f"{leaf.dtype}[{', '.join(map(str, leaf.shape))}]"
    named = jax.tree.map(lambda leaf: short(leaf) if hasattr(leaf, "dtype") else leaf, tree)
    return str(named).replace("'", "")


def columns(rows: Sequence[Any]) -> PyTree:
    """Returns the arrays of records that are given as a list.

    Raises:
      ValueError: in one line, if there are none, or they differ in form.
    """
    if not rows:
        raise ValueError("there are none")
    forms = [jax.tree.structure(record, is_leaf=_is_numbers) for record in rows]
    same = [operator.eq(form, forms[0]) for form in forms]  # JAX's stubs lack ==
    if not all(same):
        i = same.index(False)
        raise ValueError(f"record {i} of the list has another form than the first one")
    each = [jax.tree.map(np.asarray, record, is_leaf=_is_numbers) for record in rows]
    types = [[leaf.dtype for leaf in jax.tree.leaves(record)] for record in each]
    if any(own != types[0] and "U" not in {t.kind for t in own} for own in types):
        i = next(i for i, own in enumerate(types) if own != types[0])
        raise ValueError(f"record {i} of the list has numbers of other types than the first one")
    return jax.tree.map(lambda *leaves: np.stack(leaves), *each)


def check_numbers(use: str, fields: PyTree, first: int = 0) -> None:
    """Refuses arrays that are no finite numbers as JAX keeps them.

    Args:
      use: what the rows are for, in the message.
      fields: the arrays.
      first: the number of their first row.

    Raises:
      ValueError: in one line, with the number of the row.
    """
    for path, array in jax.tree_util.tree_leaves_with_path(fields):
        name = jax.tree_util.keystr(path) or "the array"
        if array.ndim == 0 or array.dtype.kind not in "biufcV" or array.dtype.names:
            raise ValueError(
                f"the {use} rows hold {name} of shape {array.shape} and type {array.dtype}: {CURE}"
            )
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)
        real = jax.numpy.issubdtype(dtype, np.inexact)
        if not real and dtype == array.dtype:
            continue  # whatever it holds
        for rows in in_chunks(len(array), ROWS_AT_A_TIME):  # a mapped array takes no memory
            part = array[rows.start : rows.stop]
            with np.errstate(over="ignore"):
                kept = part.astype(dtype, copy=False)  # as JAX keeps it: 64 bits become 32
            good = np.isfinite(kept) if real else kept == part
            if not np.all(good):
                row = first + rows.start + int(np.argmin(good.reshape(len(part), -1).all(axis=1)))
                raise ValueError(
                    f"row {row} of the {use} rows holds NaN, infinity or a number too large for "
                    f"{dtype} in {name}: replace it by a constant that was chosen without looking "
                    "at private rows"
                )


def _checked(use: str, source: Any, form: PyTree) -> Iterator[PyTree]:
    """All rows of a source, some at a time, each of them checked."""
    for rows in in_chunks(len(source), ROWS_AT_A_TIME):
        fields = _tried(use, source, rows, form)
        check_numbers(use, fields, rows.start)
        yield fields


def _tried(use: str, source: Any, rows: range, form: PyTree | None) -> PyTree:
    try:
        return read_rows(source, rows, form)
    except ValueError as error:
        told, reason = "", str(error)
        for row in rows if len(rows) > 1 else ():
            try:
                read_rows(source, range(row, row + 1), form)
            except ValueError as of_row:
                told, reason = f" from row {row} on", str(of_row)
                break
        raise ValueError(f"the {use} rows can't be read{told} ({reason}): {CURE}") from None


def _together(parts: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _content(parts: Iterator[PyTree]) -> str:
    """A digest of rows that come some at a time."""
    total = hashlib.sha256()
    for part in parts:
        total.update(arrays_digest(jax.tree.leaves(part)).encode())
    return total.hexdigest()


def _is_numbers(value: Any) -> bool:
    """Whether it is a list of numbers, or of such lists: other libraries mean an array by that."""
    return isinstance(value, list) and all(
        isinstance(one, (bool, int, float)) or _is_numbers(one) for one in value
    )


def _reason(error: Exception) -> str:
    """What failed and where. The message itself may hold a value of a record."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}, line {last.lineno}"
