"""Reads what the files of a run say, for its reports."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...accounting.mechanism import Mechanism
from .. import config as configs
from ..release.claims import SegmentFacts
from .evidence import check_paid, facts_in
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
    check_paid(folder, ledger)
    newest = load_segment(segment_file(folder, len(ledger.segments)))
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
        results=_results(private / "results.json"),
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of JSON in a file; a crash may have left the last one half written."""
    facts = facts_in(path)
    for number, fact in facts:
        if fact is None or type(fact.get("step")) is not int:
            raise ValueError(
                f"{path}, line {number} is damaged: put back an undamaged copy, or delete the line"
            )
    return [fact for _, fact in facts if fact is not None]


def _results(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        results = json.loads(path.read_bytes())
        scores = results.get("scores", {})
        if not all(isinstance(n, int | float) for n in [*scores.values(), results["steps"]]):
            raise ValueError("a score is no number")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): put back an undamaged copy, or delete it"
        ) from None
    return dict(results)
