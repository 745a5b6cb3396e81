"""Reads what the files of a run say, for its reports."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...accounting.mechanism import Mechanism
from ...dpsgd.sums import NORM_BIN_EDGES
from .. import config as configs
from ..metrics import Metrics
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
        metrics=_lines(private / "metrics.jsonl", _are_metrics),
        scores=_lines(private / "scores.jsonl", _are_scores),
        results=_results(private / "results.json"),
    )


def _lines(path: Path, complete: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """The facts in a file of lines of JSON.

    Raises:
      ValueError: for a damaged line.
    """
    facts = facts_in(path)
    for number, fact in facts:
        if fact is None or not complete(fact):
            raise ValueError(
                f"{path}, line {number} is damaged: put back an undamaged copy, or delete the line"
            )
    return [fact for _, fact in facts if fact is not None]


def _are_metrics(fact: dict[str, Any]) -> bool:
    others = {name: value for name, value in fact.items() if name != "norm_counts"}
    if fact.keys() != set(Metrics._fields) or type(fact["step"]) is not int:
        return False
    match fact["norm_counts"]:
        case [int() as first, [*counts]] if 0 <= first <= len(NORM_BIN_EDGES) + 1 - len(counts):
            return all(value is None or _is_number(value) for value in [*others.values(), *counts])
    return False


def _are_scores(fact: dict[str, Any]) -> bool:
    return type(fact.get("step")) is int and "time" in fact and all(map(_is_number, fact.values()))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _results(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        results = json.loads(path.read_bytes())
        others = [value for name, value in results.items() if name != "scores"]
        if not all(map(_is_number, [*others, *results["scores"].values()])):
            raise ValueError("a value is no number")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): put back an undamaged copy, or delete it"
        ) from None
    return dict(results)
