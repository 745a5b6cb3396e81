"""Turns the cells of a column into numbers, and tells which can't be."""

from typing import NamedTuple

import numpy as np

from ._cells import Cells
from .schema import Category, Number, trimmed

DIGITS = "write it in digits, with a full stop before decimals"
LISTS = "correct the cell, or add it to the schema's values if it is publicly known"


class Made(NamedTuple):
    """What was made of a column.

    Attributes:
      values: `[n, ...]`. Rows that can't be used hold anything finite.
      bad: their places, with reason and cure.
    """

    values: np.ndarray
    bad: dict[int, str]


def features(name: str, column: Number | Category, cells: Cells, missing: frozenset[str]) -> Made:
    """Makes float32 `[n, k]` of a column that is an input; `width` tells k.

    Numbers are mapped to [-1, 1], and are followed by a 1 where they were missing, else 0, if the
    schema allows that. Categories become a 1 in the place of the value, else 0.
    """
    if isinstance(column, Number):
        found, absent, bad = _numbers(name, cells, missing, column.missing is not None)
        if column.missing is not None:
            found = np.where(absent, column.missing, found)
        scaled = (np.clip(found, column.low, column.high) - column.middle) / column.half
        parts = [scaled] if column.missing is None else [scaled, absent]
        return Made(np.concatenate(parts, axis=1).astype(np.float32), bad)
    places, absent, bad = _places(name, column, cells, missing, column.missing, column.other)
    hot = np.zeros((len(places), width(column, ())), np.float32)
    listed = np.flatnonzero(places >= 0)
    hot[listed, places[listed]] = 1
    if column.missing:
        hot[absent, -1] = 1
    return Made(hot, bad)


def width(column: Number | Category, shape: tuple[int, ...]) -> int:
    """How many features a column has, whose cells have that shape."""
    if isinstance(column, Category):
        return len(column.values) + column.missing
    return int(np.prod(shape, dtype=int)) * (1 if column.missing is None else 2)


def targets(name: str, column: Number | Category, cells: Cells, missing: frozenset[str]) -> Made:
    """Makes labels: int32 classes `[n]`, or float32 numbers `[n]`, clipped to their range."""
    if isinstance(column, Number):
        found, absent, bad = _numbers(name, cells, missing, True)
        bad |= _unlabelled(name, absent[:, 0])
        return Made(np.clip(found[:, 0], column.low, column.high).astype(np.float32), bad)
    classes, absent, bad = _places(name, column, cells, missing, True, False)
    return Made(classes.astype(np.int32), bad | _unlabelled(name, absent))


def documents(
    name: str, cells: Cells, missing: frozenset[str], optional: bool
) -> tuple[list[str], dict[int, str]]:
    """Returns the documents of a column, and the places of those that can't be used."""
    texts, bad = [], {}
    for place, cell in enumerate(cells):
        absent = cell is None or cell.strip() in missing
        if absent and not optional:
            bad[place] = _missing(name, "true")
        elif not absent and not _is_text(cell):
            bad[place] = f"column {name!r} is no valid text: write the file anew"
        texts.append("" if absent or place in bad else cell)
    return texts, bad


def _is_text(cell: str) -> bool:
    try:
        cell.encode()
    except UnicodeEncodeError:
        return False
    return True


def _numbers(
    name: str, cells: Cells, missing: frozenset[str], optional: bool
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Returns float64 `[n, k]`, bool `[n, k]` where they are missing, and the bad rows."""
    if isinstance(cells, np.ndarray):
        values = cells.reshape(len(cells), -1)
        absent = np.isnan(values)
    else:
        texts = ["" if cell is None else cell.strip() for cell in cells]
        gone = [cell is None or text in missing for cell, text in zip(cells, texts, strict=True)]
        absent = np.array(gone, bool)[:, None]
        texts = ["0" if none else text for none, text in zip(gone, texts, strict=True)]
        try:
            values = np.array([float(text) for text in texts])[:, None]
        except ValueError:
            values = np.array([_number(text) for text in texts])[:, None]
    usable = np.isfinite(values) | absent
    wrong = np.flatnonzero(~usable.all(axis=1)).tolist()
    bad = dict.fromkeys(wrong, f"column {name!r} is no finite number: {DIGITS}")
    if not optional:
        gaps = np.flatnonzero(absent.any(axis=1)).tolist()
        bad |= dict.fromkeys(gaps, _missing(name, "NUMBER"))
    return np.where(usable & ~absent, values, 0), absent, bad


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.inf  # is refused as one that is infinite


def _places(
    name: str,
    column: Category,
    cells: Cells,
    missing: frozenset[str],
    optional: bool,
    other: bool,
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Returns the places among the values [n], -1 for none; where missing; and the bad rows."""
    known = {value: place for place, value in enumerate(column.values)}
    texts = [None if cell is None else trimmed(cell, column.strip) for cell in cells]
    places = np.array([-1 if t is None else known.get(t, -1) for t in texts], np.int64)
    absent = np.array([text is None or text in missing for text in texts], bool)
    bad = {}
    if not other:
        unlisted = np.flatnonzero((places < 0) & ~absent).tolist()
        bad = dict.fromkeys(unlisted, f"column {name!r} holds no listed value: {LISTS}")
    if not optional:
        bad |= dict.fromkeys(np.flatnonzero(absent).tolist(), _missing(name, "true"))
    return places, absent, bad


def _unlabelled(name: str, absent: np.ndarray) -> dict[int, str]:
    reason = f"column {name!r}, which no row can do without, is missing: fill the cell in"
    return dict.fromkeys(np.flatnonzero(absent).tolist(), reason)


def _missing(name: str, value: str) -> str:
    return (
        f"column {name!r} is missing: fill the cell in, or declare missing = {value} for the "
        "column in the schema"
    )
