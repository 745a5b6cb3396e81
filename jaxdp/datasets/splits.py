"""Splits, spelt as in TFDS: `train`, `train[:90%]`, `train[5000:]`, joined by `+`."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_PART = re.compile(r"(?P<name>\w+)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


class Part(NamedTuple):
    """Rows `start` to `stop - 1` of the split `name`, one of those that the data set has."""

    name: str
    start: int
    stop: int


def parse_split(spec: str, sizes: Mapping[str, int]) -> list[Part]:
    """Reads a split, as `train[:90%]` or `train+test[100:]`.

    Args:
      spec: the split. Percentages are rounded to whole records.
      sizes: how many records each split of the data set has.

    Raises:
      ValueError: for a split that is misspelt, does not exist, is empty, or has a record twice.

    Example:
      >>> parse_split("train[:90%]", {"train": 50})
      [Part(name='train', start=0, stop=45)]
    """
    parts = [_parse_part(part.strip(), spec, sizes) for part in spec.split("+")]
    check_disjoint({spec: parts})
    return parts


def check_disjoint(splits: Mapping[str, Iterable[Part]]) -> None:
    """Checks that splits have no record in common.

    Args:
      splits: the parts of each split, by its title in the message.

    Raises:
      ValueError: with the two titles and the number of records that they share.
    """
    seen: list[tuple[str, Part]] = []
    for title, parts in splits.items():
        for part in parts:
            for other, before in seen:
                shared = min(part.stop, before.stop) - max(part.start, before.start)
                if part.name == before.name and shared > 0:
                    both = f"{other} and {title}"
                    where, how = (title, "in it twice") if title == other else (both, "in both")
                    raise ValueError(
                        f"{where}: {shared} records of {part.name!r} are {how}. A record may have "
                        "one use only: give slices that don't overlap, as train[:90%] and "
                        "train[90%:]"
                    )
            seen.append((title, part))


def _parse_part(part: str, spec: str, sizes: Mapping[str, int]) -> Part:
    match = _PART.fullmatch(part)
    if match is None:
        raise ValueError(
            f"the split {spec!r} can't be read: write it like train, train[:90%], train[5000:] or "
            "train[:5000]+test"
        )
    name = match["name"]
    if name not in sizes:
        there = ", ".join(f"{known} ({size})" for known, size in sizes.items())
        first = next(iter(sizes))
        raise ValueError(
            f"the split {spec!r} needs {name!r}: the data set has {there}. Give parts of what "
            f"there is, as {first}[:80%] and {first}[80%:]"
        )
    size = sizes[name]
    start = _row(match["start"] or "0", spec, name, size)
    stop = size if match["stop"] is None else _row(match["stop"], spec, name, size)
    if stop <= start:
        raise ValueError(
            f"the split {spec!r} is empty: {name!r} has {size} records, and rows from {start} to "
            f"before {stop} are asked for. Let it stop after its start"
        )
    return Part(name, start, stop)


def _row(text: str, spec: str, name: str, size: int) -> int:
    row = round(int(text[:-1]) * size / 100) if text.endswith("%") else int(text)
    if not -size <= row <= size:
        raise ValueError(
            f"the split {spec!r} can't be cut, as {name!r} has {size} records: there is no row "
            f"{text}. Stay within {size} or 100%"
        )
    return row + size if row < 0 else row
