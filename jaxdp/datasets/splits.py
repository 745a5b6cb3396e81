"""Splits as TFDS spells them: `train`, `train[:90%]`, `train[5000:]`, joined by `+`."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_PART = re.compile(r"(?P<name>\w+)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


class Part(NamedTuple):
    """The rows `start` to `stop - 1` of one of the splits that a data set comes in."""

    name: str
    start: int
    stop: int


def parse_split(spec: str, sizes: Mapping[str, int]) -> list[Part]:
    """Reads a split.

    Args:
      spec: as `train[:90%]` or `train+test[100:]`; percentages are rounded to whole records.
      sizes: the splits that there are, and how many records each has.

    Raises:
      ValueError: for a split that is misspelt, does not exist or has no records.

    Example:
      >>> parse_split("train[:90%]", {"train": 50})
      [Part(name='train', start=0, stop=45)]
    """
    parts = [_parse_part(part.strip(), spec, sizes) for part in spec.split("+")]
    check_disjoint({spec: parts})
    return parts


def check_disjoint(splits: Mapping[str, Iterable[Part]]) -> None:
    """Refuses splits, given by what they are called, that have a record in common."""
    seen: list[tuple[str, Part]] = []
    for title, parts in splits.items():
        for part in parts:
            for other, before in seen:
                shared = min(part.stop, before.stop) - max(part.start, before.start)
                if part.name == before.name and shared > 0:
                    where = title if title == other else f"{other} and {title}"
                    raise ValueError(
                        f"{where}: {shared} records of {part.name!r} are in it twice. A record may "
                        "have one use only: give slices that don't overlap, as train[:90%] and "
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
        raise ValueError(f"the split {spec!r} needs {name!r}: the data set has {there}")
    size = sizes[name]
    start = _row(match["start"] or "0", spec, name, size)
    stop = size if match["stop"] is None else _row(match["stop"], spec, name, size)
    if stop <= start:
        raise ValueError(
            f"the split {spec!r} is empty: {name!r} has {size} records, and it asks for those from "
            f"{start} to before {stop}"
        )
    return Part(name, start, stop)


def _row(text: str, spec: str, name: str, size: int) -> int:
    row = round(int(text[:-1]) * size / 100) if text.endswith("%") else int(text)
    if not -size <= row <= size:
        raise ValueError(
            f"the split {spec!r} can't be cut: {name!r} has {size} records: there is no row {text}"
            f". Stay within {size} or 100%"
        )
    return row + size if row < 0 else row
