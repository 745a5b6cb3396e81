"""The schema of a table: a file that says, from public knowledge, what its columns are."""

import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from ._files import unreadable

MISSING_VALUES = ("", "?", "NA", "NaN", "null")
KINDS = ("number", "category", "text", "ignored")
LARGEST = 3.0e38  # labels are float32

Kind = Literal["number", "category", "text"]


@dataclass(frozen=True)
class Number:
    """A column of real numbers.

    Attributes:
      low, high: its range, to which numbers are clipped.
      missing: what fills up missing cells; then there is a feature that tells where they were.
    """

    low: float
    high: float
    missing: float | None = None

    kind: ClassVar[Kind] = "number"

    @property
    def middle(self) -> float:
        return self.low / 2 + self.high / 2

    @property
    def half(self) -> float:
        """Half the width of the range."""
        return self.high / 2 - self.low / 2

    def told(self) -> str:
        fill = "" if self.missing is None else f", {self.missing:g} if missing"
        return f"number of {self.low:g} to {self.high:g}{fill}"


@dataclass(frozen=True)
class Category:
    """A column with a few values.

    Attributes:
      values: all of them. A feature each.
      missing: whether cells may be missing; they have a feature of their own.
      other: whether there may be other values, for which all features are 0.
      strip: characters that are taken away at both ends of a cell, as blanks are.
    """

    values: tuple[str, ...]
    missing: bool = False
    other: bool = False
    strip: str = ""

    kind: ClassVar[Kind] = "category"

    def told(self) -> str:
        more = (", or missing" if self.missing else "") + (", or others" if self.other else "")
        return f"category of {len(self.values)} values{more}"


@dataclass(frozen=True)
class Text:
    """A column of documents.

    Attributes:
      missing: whether cells may be missing; they are empty documents.
    """

    missing: bool = False

    kind: ClassVar[Kind] = "text"

    def told(self) -> str:
        return "text"


@dataclass(frozen=True)
class Ignored:
    """A column that nothing is made of."""

    def told(self) -> str:
        return "ignored"


Column = Number | Category | Text | Ignored


@dataclass(frozen=True)
class PublicRows:
    """The rows that a schema was made of.

    Attributes:
      digest: of their file, as `files_digest` returns it.
      rule: which rows of it, as `train[:1000]`, where `train` is the whole file.
      rows: how many the whole file has, as they were counted.
    """

    digest: str
    rule: str
    rows: int


@dataclass(frozen=True)
class Schema:
    """What the columns of a table are.

    Attributes:
      file: where that is written.
      origin: where the constants come from, in words for the privacy statement.
      columns: by their names.
      missing_values: cells that count as missing.
      comment: lines that begin with it are no rows, in .csv and .tsv. Empty: all are.
      delimiter: what is between two cells of a .csv.
      public: the rows that the schema was made of, if it was made of rows.
    """

    file: str
    origin: str
    columns: Mapping[str, Column]
    missing_values: tuple[str, ...] = MISSING_VALUES
    comment: str = ""
    delimiter: str = ","
    public: PublicRows | None = None


def read_schema(file: str) -> Schema:
    """Reads a schema, a file in TOML.

    Raises:
      ValueError: in one line, for a file that can't be read, and for keys and values that are
        missing, unknown, of a wrong type or contradictory.
    """
    try:
        found = tomllib.loads(Path(file).read_bytes().decode())
    except OSError as error:
        raise unreadable(f"the schema {file}", error) from None
    except UnicodeDecodeError:
        raise ValueError(f"the schema {file} is no text in UTF-8: save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the schema {file} is no TOML ({reason}): correct that line") from None
    top = _Table(file, "", found)
    top.check_keys(("origin", "missing_values", "comment", "delimiter", "columns", "public"))
    origin = top.text("origin")
    if origin is None or not origin.strip():
        raise top.error(
            "origin is missing: say in words where ranges and values come from, as origin = "
            '"the code book"; it goes into the privacy statement'
        )
    columns = top.table("columns")
    if columns is None or not columns.found:
        raise top.error('there are no columns: declare each, as [columns.age] and kind = "number"')
    delimiter = top.text("delimiter") or ","
    if len(delimiter) != 1 or delimiter in ' "\r\n':
        raise top.error(f"delimiter is {delimiter!r}: give one character, as ';'")
    given = top.texts("missing_values")
    missing = MISSING_VALUES if given is None else given
    return Schema(
        file=file,
        origin=" ".join(origin.split()),
        columns={name: _column(columns.column(name), missing) for name in columns.found},
        missing_values=missing,
        comment=top.text("comment") or "",
        delimiter=delimiter,
        public=_public(top.table("public")),
    )


def meant(name: str, known: Iterable[str]) -> str:
    """Returns `: did you mean 'x'?` for the known name that is like it; else lists all of them."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f": did you mean {near[0]!r}?" if near else f": there are {', '.join(names)}"


@dataclass(frozen=True)
class _Table:
    """A table of the TOML file. `where` names it in messages."""

    file: str
    where: str
    found: Mapping[str, Any]

    def error(self, message: str) -> ValueError:
        return ValueError(f"the schema {self.file}{self.where}: {message}")

    def check_keys(self, known: Iterable[str]) -> None:
        for key in self.found:
            if key not in known:
                raise self.error(f"the key {key!r} is unknown{meant(key, known)}")

    def wrong(self, key: str, expected: str) -> ValueError:
        return self.error(f"{key} is {self.found[key]!r}: give {expected}")

    def table(self, key: str) -> "_Table | None":
        if key not in self.found:
            return None
        if not isinstance(self.found[key], Mapping):
            raise self.wrong(key, f"a table, [{key}]")
        return _Table(self.file, f", {key}", self.found[key])

    def column(self, name: str) -> "_Table":
        if not isinstance(self.found[name], Mapping):
            raise self.error(
                f'{name!r} is {self.found[name]!r}: write [columns.{name}] and kind = "..." below'
            )
        return _Table(self.file, f", column {name!r}", self.found[name])

    def text(self, key: str) -> str | None:
        if not isinstance(self.found.get(key, ""), str):
            raise self.wrong(key, "text in quotes")
        return self.found.get(key)

    def flag(self, key: str) -> bool:
        if not isinstance(self.found.get(key, False), bool):
            raise self.wrong(key, "true or false")
        return self.found.get(key, False)

    def number(self, key: str) -> float | None:
        value = self.found.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, "a number")
        if not abs(value) <= LARGEST or math.isnan(value):
            raise self.wrong(key, "a number of usual size")
        return float(value) if key in self.found else None

    def texts(self, key: str) -> tuple[str, ...] | None:
        """A list of texts or whole numbers, which are spelt as text."""
        if key not in self.found:
            return None
        values = self.found[key]
        kinds = {type(value) for value in values} if isinstance(values, list) else {list}
        if not kinds <= {str, int}:
            raise self.wrong(key, 'a list of texts or whole numbers, as ["yes", "no"]')
        texts = tuple(str(value) for value in values)
        twice = [text for i, text in enumerate(texts) if text in texts[:i]]
        if twice:
            raise self.error(f"{key} has {twice[0]!r} twice: leave one out")
        return texts


def _column(table: _Table, missing: Sequence[str]) -> Column:
    kind = table.text("kind")
    if kind is None:
        raise table.error(f"kind is missing: give {', '.join(KINDS)}")
    if kind not in KINDS:
        raise table.error(f"kind is {kind!r}{meant(kind, KINDS)}")
    if kind == "number":
        return _number(table)
    if kind == "category":
        return _category(table, missing)
    if kind == "text":
        table.check_keys(("kind", "missing"))
        return Text(table.flag("missing"))
    table.check_keys(("kind",))
    return Ignored()


def _number(table: _Table) -> Number:
    table.check_keys(("kind", "low", "high", "missing"))
    low, high, missing = table.number("low"), table.number("high"), table.number("missing")
    if low is None or high is None:
        key = "low" if low is None else "high"
        raise table.error(
            f"{key} is missing: give the range that numbers are clipped to, from public knowledge"
        )
    if not low < high:
        raise table.error(f"low is {low:g} and high is {high:g}: give a low that is below high")
    if missing is not None and not low <= missing <= high:
        raise table.error(f"missing is {missing:g}: give a fill value of {low:g} to {high:g}")
    column = Number(low, high, missing)
    if not column.half > 0:
        raise table.error(f"low is {low} and high is {high}: give a wider range")
    return column


def _category(table: _Table, missing: Sequence[str]) -> Category:
    table.check_keys(("kind", "values", "missing", "other", "strip"))
    values, strip = table.texts("values"), table.text("strip") or ""
    if not values:
        raise table.error(
            'there are no values: list them, as values = ["yes", "no"], from public knowledge'
        )
    for value in values:
        if value != trimmed(value, strip) or not value:
            raise table.error(
                f"values has {value!r}, which no cell is after blanks"
                + (f" and {strip!r}" if strip else "")
                + " are stripped: leave those out"
            )
        if value in missing:
            raise table.error(
                f"values has {value!r}, which counts as missing: set missing = true instead, or "
                f"take it out with missing_values = {list(missing)} less {value!r}"
            )
    return Category(values, table.flag("missing"), table.flag("other"), strip)


def trimmed(cell: str, strip: str) -> str:
    """A cell without blanks and the characters `strip` at both ends."""
    return cell.strip().strip(strip).strip() if strip else cell.strip()


def _public(table: _Table | None) -> PublicRows | None:
    if table is None:
        return None
    table.check_keys(("file_digest", "rule", "rows"))
    digest, rule, rows = table.text("file_digest"), table.text("rule"), table.number("rows")
    if not digest or not rule or not rows:
        raise table.error(
            "file_digest, rule and rows belong together: leave the table as the command schema "
            "wrote it"
        )
    return PublicRows(digest, rule, int(rows))
