"""Writes a schema of public rows."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path

import numpy as np

from ._cells import Cells, Stored, Table, spelt
from ._files import unreadable, why
from .config import COMMA_ENDINGS
from .digests import files_digest
from .schema import MISSING_VALUES, meant, trimmed
from .splits import Part, parse_split
from .tables import TRAIN, open_rows

MOST_VALUES = 100  # of a category
MOST_CLASSES = 20  # of a label that is numbers
LONG = 30  # characters of a cell on average, from which on a column is documents
DIGITS = 2  # significant ones of a range
_BARE = re.compile(r"[A-Za-z0-9_-]+")  # keys of TOML without quotes

HEAD = """\
# What the columns of a table are. Made of public rows: check each column before you use it.
# number: cells are clipped to low .. high. Give a range that holds for people in general.
# category: a value that is not listed is a bad row. List those that the public rows lack, or add
#   other = true.
# Where cells may be missing, add to a number: missing = FILL, to others: missing = true.
# text: documents. ignored: nothing is made of the column, as of names and row numbers.
"""
TAIL = """\

# The rows that this was made of: as private rows they are refused. Leave this as it is.
"""


def write_schema(
    file: str, rule: str, label: str | None, columns: Sequence[str], output: str
) -> int:
    """Writes a schema of some rows of a file, which must be public, and returns how many they are.

    Args:
      file: a table.
      rule: the rows, as `train[:1000]`, where `train` is all rows of the file. Nothing is taken
        from the others.
      label: the column to predict, if that is known.
      columns: names, where the file has none.
      output: the file to write.

    Raises:
      ValueError: in one line, for files that can't be read or written, an output that exists, a
        wrong rule or label, and rows that can't be read.
    """
    if Path(output).exists():
        raise ValueError(f"{output} exists: give another --output, or move it away")
    delimiter = _delimiter(file)
    table = open_rows(file, delimiter, "", tuple(columns), ())
    if label is not None and label not in table.stored:
        raise ValueError(f"{file} has no column {label!r}{meant(label, table.stored)}")
    if not columns and file.endswith((".tsv", *COMMA_ENDINGS)):
        _check_first_line(file, list(table.stored))
    size = _size(table)
    parts = parse_split(rule, {TRAIN: size})
    seen = {name: _Seen(stored) for name, stored in table.stored.items()}
    for rows in _public_rows(table, parts):
        for name, cells in rows.items():
            seen[name].add(cells)
    lines = [HEAD]
    lines.append(f"origin = {_quoted(f'public rows {rule} of the table')}")
    lines.append(f"missing_values = {_listed(MISSING_VALUES)}")
    if delimiter != ",":
        lines.append(f"delimiter = {_quoted(delimiter)}")
    for name, column in seen.items():
        told = " # the label" if name == label else ""
        key = name if _BARE.fullmatch(name) else _quoted(name)
        lines.append(f"\n[columns.{key}]{told}")
        lines += column.declaration(name == label)
    lines += [TAIL + "[public]", f"file_digest = {_quoted(files_digest(file))}"]
    lines += [f"rule = {_quoted(rule)}", f"rows = {size}", ""]
    try:
        with open(output, "x", encoding="utf-8") as written:
            written.write("\n".join(lines))
    except OSError as error:
        raise ValueError(
            f"{output} can't be written ({why(error)}): give another --output"
        ) from None
    return sum(part.stop - part.start for part in parts)


def _check_first_line(file: str, names: Sequence[str]) -> None:
    """Refuses a line of names with a number in it: it may be a private row."""
    for place, name in enumerate(names):
        if _is_number(name):
            raise ValueError(
                f"{file}: its first line has a number in column {place} (from 0), so it may be a "
                "row: if the file has no line of names, give --columns; else rename that column"
            )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _delimiter(file: str) -> str:
    """What is between the cells of a .csv: a comma, or ; | or a tab if there is none in line 1."""
    if Path(file).suffix not in COMMA_ENDINGS:
        return ","
    try:
        with open(file, encoding="utf-8-sig", errors="replace") as text:
            line = text.readline()
    except OSError as error:
        raise unreadable(file, error) from None
    return next((mark for mark in ",;\t|" if mark in line), ",")


def _size(table: Table) -> int:
    wanted = {name: stored.kinds[0] for name, stored in table.stored.items() if stored.kinds}
    if not wanted:
        raise ValueError(f"{table.title} has no column of numbers or text: write it with some")
    name = next(iter(wanted))
    return sum(rows.size for rows in table.read({name: wanted[name]}))


def _public_rows(table: Table, parts: Sequence[Part]) -> Iterator[Mapping[str, Cells]]:
    """The cells of the public rows, some at a time."""
    wanted = {name: stored.kinds[0] for name, stored in table.stored.items() if stored.kinds}
    first = 0
    for rows in table.read(wanted):
        for place in sorted(rows.bad):  # of all rows: a remark that counts as one would shift them
            raise ValueError(f"{table.title}, row {first + place}: {rows.bad[place]}")
        for part in parts:
            chosen = range(max(part.start - first, 0), min(part.stop - first, rows.size))
            if chosen:
                span = slice(chosen.start, chosen.stop)
                yield {name: cells[span] for name, cells in rows.columns.items()}
        first += rows.size


class _Seen:
    """What public rows hold in a column."""

    def __init__(self, stored: Stored) -> None:
        self._stored = stored
        self._size = 0
        self._missing = 0
        self._characters = 0
        self._values: set[str] = set()  # never more than MOST_VALUES + 1
        self._low, self._high = math.inf, -math.inf
        self._numeric = True

    def add(self, cells: Cells) -> None:
        """Adds some rows."""
        self._size += len(cells)
        if isinstance(cells, np.ndarray):
            absent = np.isnan(cells)
            self._missing += int(absent.any(axis=tuple(range(1, cells.ndim))).sum())
            values = cells[~absent]
            texts = [text for text in spelt(np.unique(values)[: MOST_VALUES + 1]) if text]
        else:
            texts = [trimmed(cell, "") for cell in cells if cell is not None]
            texts = [text for text in texts if text not in MISSING_VALUES]
            self._missing += len(cells) - len(texts)
            values = self._numbers(texts)
        if not np.isfinite(values).all():
            self._numeric = False
        if self._numeric and values.size:
            self._low = min(self._low, float(values.min()))
            self._high = max(self._high, float(values.max()))
        self._characters += sum(map(len, texts))
        if len(self._values) <= MOST_VALUES:
            for text in texts:
                self._values.add(text)
                if len(self._values) > MOST_VALUES:
                    break

    def _numbers(self, texts: Sequence[str]) -> np.ndarray:
        try:
            return np.array([float(text) for text in texts])
        except ValueError:
            self._numeric = False
            return np.array([])

    def declaration(self, is_label: bool) -> list[str]:
        """The lines of the schema for this column."""
        present = self._size - self._missing
        kinds = self._stored.kinds
        if not kinds:
            return _ignored(f"it holds {self._stored.told}, which can't be used")
        if present == 0:
            return _ignored("every cell is missing")
        gaps = self._missing > 0 and not is_label
        few = len(self._values) <= (MOST_CLASSES if is_label and self._numeric else MOST_VALUES)
        same = len(self._values) == 1 and not self._stored.shape
        if same and not gaps:
            return _ignored("every cell is the same")
        whole = self._numeric and all(_is_whole(value) for value in self._values)
        if "number" in kinds and self._numeric and not (is_label and few and whole):
            return self._number(gaps)
        mean = self._characters / present
        documents = mean > LONG and (not few or len(self._values) > present / 2)
        if "text" in kinds and documents and not is_label:
            return ['kind = "text"', *_if_missing(gaps)]
        if "category" in kinds and few:
            order = sorted(self._values, key=float) if whole else sorted(self._values)
            note = " # for a regression: number" if whole else ""
            return [f'kind = "category"{note}', f"values = {_listed(order)}", *_if_missing(gaps)]
        return _ignored(f"it has more than {MOST_VALUES} values, as names and row numbers have")

    def _number(self, gaps: bool) -> list[str]:
        low, high = _rounded(self._low, ROUND_FLOOR), _rounded(self._high, ROUND_CEILING)
        if low == high:
            return _ignored("every cell is the same")
        lines = ['kind = "number"', f"low = {_plain(low)}", f"high = {_plain(high)}"]
        return lines + ([f"missing = {_plain(low / 2 + high / 2)}"] if gaps else [])


def _ignored(why: str) -> list[str]:
    return [f'kind = "ignored" # {why}']


def _if_missing(gaps: bool) -> list[str]:
    return ["missing = true"] if gaps else []


def _is_whole(text: str) -> bool:
    return text.lstrip("+-").isdecimal()


def _rounded(value: float, rounding: str) -> float:
    """Rounds to a few significant digits, in the direction of `rounding`."""
    exact = Decimal(repr(value))
    if exact == 0:
        return 0.0
    last = Decimal(1).scaleb(exact.adjusted() - DIGITS + 1)
    return float((exact / last).to_integral_value(rounding) * last)


def _plain(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def _listed(values: Sequence[str]) -> str:
    return f"[{', '.join(_quoted(value) for value in values)}]"


def _quoted(text: str) -> str:
    """A string of TOML, whose escapes are those of JSON, but for one."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
