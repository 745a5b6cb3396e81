"""Text in columns that is folded between words, so that no name and no number is cut."""

import textwrap
from collections.abc import Sequence

GAP = 2  # spaces between columns
TIED = "\xa0"  # a space at which no line ends

Row = Sequence[str]


def tied(text: str) -> str:
    """A text that stays on one line."""
    return text.replace(" ", TIED)


def aligned(rows: Sequence[Row], width: int) -> list[str] | None:
    """Lines of a table whose first row is its head; None if the longest words do not fit."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(_longest_word, column)) for column in columns]
    spare = width - sum(widths) - GAP * (len(widths) - 1)
    if spare < 0:
        return None
    wanted = [max(map(len, column)) - least for column, least in zip(columns, widths, strict=True)]
    for i in sorted(range(len(widths)), key=wanted.__getitem__):
        more = min(spare, wanted[i])
        widths[i] += more
        spare -= more
    return [line for row in rows for line in _lines(row, widths)]


def folded(text: str, width: int, indent: str = "") -> list[str]:
    """Lines of a text. Those after the first are indented; a longer word has a line of its own."""
    lines = textwrap.wrap(
        text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return [line.replace(TIED, " ") for line in lines]


def _lines(row: Row, widths: Sequence[int]) -> list[str]:
    cells = [folded(cell, width) for cell, width in zip(row, widths, strict=True)]
    lines = []
    for i in range(max(map(len, cells))):
        parts = [cell[i] if i < len(cell) else "" for cell in cells]
        padded = [part.ljust(width) for part, width in zip(parts, widths, strict=True)]
        lines.append((" " * GAP).join(padded).rstrip())
    return lines


def _longest_word(text: str) -> int:
    return max(map(len, text.split(" ")), default=0)
