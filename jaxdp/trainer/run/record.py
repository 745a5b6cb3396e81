"""What the files of a run say of it, for reports."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...accounting.mechanism import Mechanism
from .. import config as configs
from .. import parsing
from .ledger import Budget, Ledger


@dataclass(frozen=True)
class Record:
    """What the files of a run say."""

    name: str
    folder: Path
    config: configs.Config
    budget: Budget
    spent: list[Mechanism]  # by segment
    starts: list[int]  # the first step of every segment
    metrics: list[dict[str, Any]]  # of every step
    scores: list[dict[str, Any]]  # of some steps, on the test records
    results: dict[str, Any]  # empty until the run has ended


def load_record(folder: Path) -> Record:
    """Reads the files of a run.

    Raises:
      ValueError: if it is none, or they are damaged.
    """
    private = folder / "private"
    if not (private / "ledger.txt").is_file():
        raise ValueError(
            f"{folder} holds no run (private/ledger.txt): name a folder that "
            "`python -m jaxdp.train` made"
        )
    ledger = Ledger.read(private / "ledger.txt")
    settings, results = private / "config.json", private / "results.json"
    if not settings.is_file():
        raise ValueError(f"{folder} stopped before its first step: there is nothing to report")
    return Record(
        name=folder.resolve().name,
        folder=folder,
        config=parsing.read_config(settings),
        budget=ledger.budget,
        spent=ledger.mechanisms(),
        starts=[segment.start for segment in ledger.segments],
        metrics=_lines(private / "metrics.jsonl"),
        scores=_lines(private / "scores.jsonl"),
        results=json.loads(results.read_text()) if results.is_file() else {},
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of JSON in a file; a crash may have left the last one half written."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]
