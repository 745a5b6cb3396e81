"""Reads what the files of a run say, for its reports."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...accounting.mechanism import Mechanism
from .. import config as configs
from ..release.claims import SegmentFacts
from .ledger import Budget, Ledger
from .segment import load_segment, segment_file


@dataclass(frozen=True)
class Record:
    """What the files of a run say."""

    name: str
    folder: Path
    facts: SegmentFacts  # of the newest segment
    config: configs.Config | None  # of the newest segment; None: the run was made by `fit`
    budget: Budget
    spent: list[Mechanism]  # one per segment
    starts: list[int]  # the first step of every segment
    metrics: list[dict[str, Any]]  # one per step
    scores: list[dict[str, Any]]  # of the test records, after some of the steps
    results: dict[str, Any]  # empty until the run has ended


def load_record(folder: Path) -> Record:
    """Reads the files of a run.

    Raises:
      ValueError: if the folder holds no run, or a file is damaged.
    """
    private = folder / "private"
    if not (private / "ledger.txt").is_file():
        raise ValueError(
            f"{folder} holds no run (private/ledger.txt): name a folder that "
            "`python -m jaxdp.train` made"
        )
    ledger = Ledger.read(private / "ledger.txt")
    if not ledger.segments:
        raise ValueError(f"{folder} stopped before its first step: there is nothing to report")
    newest = load_segment(segment_file(folder, len(ledger.segments)))
    results = private / "results.json"
    return Record(
        name=folder.resolve().name,
        folder=folder,
        facts=newest.facts,
        config=newest.config,
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
