"""The cells of a table as they come from a file, before anything is made of them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .schema import Kind

CHUNK = 10_000  # the most rows that are read at a time,
CHUNK_CELLS = 500_000  # and the most numbers or short texts in them,
CHUNK_DOCUMENTS = 1_000  # and the most documents: so wide rows don't fill the memory
Cells = list[str | None] | np.ndarray  # texts, None where missing; or float64 [n, ...], NaN there


class Stored(NamedTuple):
    """How a file keeps a column.

    Attributes:
      told: that, in words.
      kinds: what a schema may declare it to be.
      shape: of a cell. () for a single value.
    """

    told: str
    kinds: tuple[Kind, ...]
    shape: tuple[int, ...] = ()


class Rows(NamedTuple):
    """Some rows, in the order of the file.

    Attributes:
      size: how many.
      columns: their cells, by the name of the column.
      bad: places of rows that can't be read, with reason and cure. Their cells mean nothing.
    """

    size: int
    columns: Mapping[str, Cells]
    bad: Mapping[int, str]


@dataclass(frozen=True)
class Table:
    """A file of rows that has been opened.

    Attributes:
      title: its name as the user gave it.
      stored: its columns.
      read: reads some columns, each as a kind that it may be, all rows in order. It raises a
        ValueError, in one line, for damage to the file as a whole.
    """

    title: str
    stored: Mapping[str, Stored]
    read: Callable[[Mapping[str, Kind]], Iterator[Rows]]


def rows_at_a_time(stored: Mapping[str, Stored], wanted: Mapping[str, Kind]) -> int:
    """How many rows to read at a time.

    Args:
      stored: the columns that take memory while rows are read.
      wanted: what they are read as.
    """
    of_a_row = sum(math.prod(column.shape) for column in stored.values())
    most = CHUNK_DOCUMENTS if "text" in wanted.values() else CHUNK
    return max(1, min(most, CHUNK_CELLS // of_a_row))


def spelt(values: np.ndarray) -> list[str | None]:
    """Numbers as the text that a category has: whole ones without a point. None for NaN."""
    if values.dtype == bool:
        return ["true" if value else "false" for value in values.tolist()]
    if values.dtype.kind != "f":
        return [str(value) for value in values.tolist()]
    return [
        None if value != value else str(int(value)) if value.is_integer() else repr(value)
        for value in values.astype(np.float64).tolist()
    ]


def check_names(title: str, names: Sequence[str]) -> None:
    """Checks that every column has a name of its own.

    Raises:
      ValueError: if not.
    """
    for i, name in enumerate(names):
        if not name:
            raise ValueError(f"{title}: column {i} (from 0) has no name: name it in the first line")
        if name in names[:i]:
            raise ValueError(f"{title} has two columns {name!r}: rename one of them")
    if not names:
        raise ValueError(f"{title} has no columns: give a file that has some")
