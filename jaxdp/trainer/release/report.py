"""The tables of a report: what runs spent and how well they did. They are private."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from ...accounting.rounding import round_up, shown_delta
from .. import averages, command_line
from ..run.record import Record
from . import figures

COMMAND = "python -m jaxdp.report"


@dataclass(frozen=True)
class Options:
    """The options of `python -m jaxdp.report`."""

    output: Path | None = None


def read_options(args: Sequence[str]) -> tuple[tuple[str, ...], Path | None]:
    """Reads the command line `RUN [RUN2 ...] [--output FOLDER]`.

    Returns:
      The folders of the runs, and the folder for the figures.

    Raises:
      ValueError: if no run is given, there is no such folder, or an option does not exist.
    """
    values, runs = command_line.read(args, Options, COMMAND)
    output = Options(**values).output
    if not runs:
        raise ValueError(f"no run is given: give folders, as {COMMAND} runs/NAME-TIME")
    if output is not None and not output.is_dir():
        raise ValueError(
            f"output is {output}, which is no folder: make it, or name one that exists"
        )
    return runs, output


def compare(records: Sequence[Record], width: int) -> list[Table]:
    """Makes tables with one column for every run, as many in each as fit into the width.

    Nothing is cut: a word that is longer than a line is folded.
    """
    rows = _rows(records)
    titles = ["", *rows]
    left = width - 4 - _longest_word(titles)
    tables: list[list[list[str]]] = []
    room = 0
    for name, record in zip(_distinct_names(records), records, strict=True):
        column = [name, *(tell(record) for tell in rows.values())]
        need = 3 + _longest_word(column)  # with its border
        if not tables or need > room:
            tables.append([titles])
            room = left
        tables[-1].append(column)
        room -= need
    return [_table(columns, width) for columns in tables]


def _table(columns: Sequence[Sequence[str]], width: int) -> Table:
    """A table whose columns share the width so that words stay whole where they can."""
    least = [_longest_word(column) for column in columns]
    spare = width - 1 - sum(need + 3 for need in least)
    table = Table(highlight=False)
    for i, column in enumerate(columns):
        most = max(map(len, column)) - least[i]
        # If even one run has no room, its words are folded.
        more = min(most, spare // (len(columns) - i)) if spare > 0 else spare if i else 0
        spare -= more
        table.add_column(column[0], overflow="fold", width=max(1, least[i] + more))
    for row in list(zip(*columns, strict=True))[1:]:
        table.add_row(*row)
    return table


def _longest_word(texts: Sequence[str]) -> int:
    return max(len(word) for text in texts for word in text.split())


def _rows(records: Sequence[Record]) -> dict[str, Callable[[Record], str]]:
    """The title of every row, and a function that finds it for a run."""
    scores = dict.fromkeys(name for r in records for name in r.results.get("scores", {}))
    return {
        **{f"test {name}": functools.partial(_score, name) for name in scores or ("scores",)},
        "of the parameters": lambda r: averages.describe(r.facts.ema),
        "ε spent": lambda r: f"{round_up(figures.epsilon(r)):g} of {r.budget.epsilon:g}",
        "δ": lambda r: f"{shown_delta(r.budget.delta):g}",
        "steps charged": lambda r: f"{sum(m.steps for m in r.spent)}",
        "segments": lambda r: f"{len(r.spent)}",
        "noise multiplier": lambda r: f"{r.spent[-1].noise_multiplier:g}",
        "sampling probability": lambda r: f"{r.spent[-1].sampling_probability:.4g}",
        "clipping": _clipping,
        "canaries": lambda r: f"{r.facts.data.canaries} in N" if r.facts.data.canaries else "none",
        "task": lambda r: r.facts.task.name,
        "model": lambda r: r.facts.task.model.name if r.facts.task.model else "its owner's",
        "optimizer": lambda r: r.facts.optimizer,
        "seconds": lambda r: _shown(r.results.get("seconds"), ".0f"),
    }


def _score(name: str, record: Record) -> str:
    return _shown(record.results.get("scores", {}).get(name), ".4f")


def _distinct_names(records: Sequence[Record]) -> list[str]:
    """The names of the runs; their folders if two have one name."""
    names = [record.name for record in records]
    return names if len({*names}) == len(names) else [str(record.folder) for record in records]


def _clipping(record: Record) -> str:
    if record.config is None:
        return record.facts.mechanism.clipping.call
    config = record.config.clipping
    if config.norms_from == "given":
        return f"{config.kind} {config.norm:g}"
    norm = f", the largest {config.norm:g}" if config.norms_from == "public" else ""
    return f"{config.kind}, norms from public records{norm}"


def _shown(value: float | None, spec: str) -> str:
    return "not known yet" if value is None else format(value, spec)
