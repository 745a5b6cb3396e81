"""Reads .csv and .tsv."""

import csv
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TextIO

from ._cells import Rows, Stored, Table, check_names, rows_at_a_time
from ._files import unreadable
from .schema import Kind

LONGEST = 2**24  # characters of a cell; csv allows 131,072, which some documents exceed
NO_TEXT = {
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"PAR1": "parquet",
    b"\x1f\x8b": "compressed by gzip",
}


def open_delimited(
    file: str, delimiter: str, comment: str, names: Sequence[str], expected: Collection[str]
) -> Table:
    """Opens a file of lines.

    Args:
      file: its name.
      delimiter: what is between two cells.
      comment: lines that begin with it are left out. Empty: none are.
      names: of the columns, where there is no line of names.
      expected: the names that the first line may have, for messages. A first line with less than
        half of its cells among them may be a private row, and is never told. Empty: all may be
        told.

    Raises:
      ValueError: in one line, for a file that is missing, empty or no text, and for wrong names.
    """
    try:
        with _opened(file) as text:
            first = next(_rows(file, text, delimiter, comment), None)
    except OSError as error:
        raise unreadable(file, error) from None
    if first is None:
        raise ValueError(f"{file} is empty: give a file that has rows")
    cells, wrong = first
    cells = [cell.strip() for cell in cells]
    if names:
        _check_given(file, names, cells)
    else:
        if wrong:
            raise ValueError(f"{file}: the line of names {wrong}")
        if expected and 2 * len(set(cells) & set(expected)) < len(cells):
            raise ValueError(
                f"{file}: its first line has too few names of columns that are declared, as "
                f"{min(expected)!r}: if it has no line of names, give --data.columns, and if its "
                f"cells are not parted by {delimiter!r}, the schema's delimiter"
            )
        check_names(file, cells)
    columns = tuple(names or cells)

    kinds: tuple[Kind, ...] = ("number", "category", "text")
    stored = {name: Stored("text", kinds) for name in columns}

    def read(wanted: Mapping[str, Kind]) -> Iterator[Rows]:
        try:
            with _opened(file) as text:
                first = 0 if names else -1
                rows = _rows(file, text, delimiter, comment, len(columns), first)
                if not names:
                    next(rows, None)
                at_a_time = rows_at_a_time(stored, wanted)
                while chunk := list(itertools.islice(rows, at_a_time)):
                    yield _chunk(chunk, columns, wanted)
        except OSError as error:
            raise unreadable(file, error) from None

    return Table(file, stored, read)


def _check_given(file: str, names: Sequence[str], cells: Sequence[str]) -> None:
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise ValueError(f"data.columns has {twice[0]!r} twice: give each column its own name")
    if list(names) == list(cells):
        raise ValueError(f"{file} has a line of names already: leave --data.columns out")
    if len(names) != len(cells):
        raise ValueError(
            f"data.columns has {len(names)} names, and the first line of {file} has {len(cells)} "
            "cells: give a name for each"
        )


Row = tuple[list[str], str]  # cells, and why they can't be used, or ""


def _rows(
    file: str,
    text: TextIO,
    delimiter: str,
    comment: str,
    width: int | None = None,
    first: int = 0,
) -> Iterator[Row]:
    """All rows. What makes it unclear where rows begin is an error, as then N is unclear too.

    Args:
      width: cells that each must have. None: any number.
      first: the number of the first one: -1 for a line of names.
    """
    lines = _Lines(text, comment)
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    row = first
    while True:
        lines.begin()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            raise ValueError(
                f"{_place(file, row, width)}: a quote is not closed, or characters follow it: "
                'write " as "" within quotes'
            ) from None
        if not cells:
            continue  # a blank line
        wrong = lines.wrong
        if width is not None and len(cells) != width:
            if lines.count > 1:
                raise ValueError(
                    f"{_place(file, row, width)}: it has {len(cells)} cells where {width} are "
                    f"expected, on {lines.count} lines: look for a quote that is not closed"
                )
            wrong = wrong or (
                f"it has {len(cells)} cells where {width} are expected: put cells that hold a "
                "delimiter in quotes, or set the schema's comment if the line is a remark"
            )
        yield cells, wrong
        row += 1


def _place(file: str, row: int, width: int | None) -> str:
    return f"{file}, the first line" if width is None else f"{file}, row {row}"


class _Lines:
    """The lines for the csv module, without comments. It remembers what is wrong with a row's."""

    def __init__(self, text: TextIO, comment: str) -> None:
        self._text = text
        self._comment = comment
        self.begin()

    def begin(self) -> None:
        """Begins the next row."""
        self.count = 0
        self.wrong = ""

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = next(self._text)
        while self._comment and self.count == 0 and line.startswith(self._comment):
            line = next(self._text)
        self.count += 1
        if "\0" in line:
            self.wrong = "it has a NUL byte: write the file anew as text"
        elif not line.isascii():
            try:
                line.encode()
            except UnicodeEncodeError:  # what could not be decoded is there as surrogates
                self.wrong = "it is no UTF-8: save the file in that encoding"
        return line


def _chunk(rows: list[Row], names: Sequence[str], wanted: Mapping[str, Kind]) -> Rows:
    bad = {place: wrong for place, (_, wrong) in enumerate(rows) if wrong}
    empty = [""] * len(names)
    columns = zip(*(empty if wrong else cells for cells, wrong in rows), strict=True)
    cells = {
        name: list(column) for name, column in zip(names, columns, strict=True) if name in wanted
    }
    return Rows(len(rows), cells, bad)


@contextmanager
def _opened(file: str) -> Iterator[TextIO]:
    with open(file, "rb") as raw:
        start = raw.read(4)
    for mark, what in NO_TEXT.items():
        if start.startswith(mark):
            raise ValueError(f"{file} is {what}, and no text in UTF-8: save it as that")
    limit = csv.field_size_limit(LONGEST)
    try:
        with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
            yield text
    finally:
        csv.field_size_limit(limit)
