"""The results of a row's seeds together, for the table and the figure."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import results
from .results import Result
from .rows import SEEDS, Row
from .runs import Case


@dataclass(frozen=True)
class Summary:
    """The runs of a row at one ε, or without privacy, over the seeds; there is at least one."""

    runs: Sequence[Result]

    @property
    def accuracies(self) -> list[float]:
        """The test accuracy of every seed."""
        return [run.accuracy for run in self.runs]

    @property
    def median(self) -> float:
        """The median test accuracy."""
        return statistics.median(self.accuracies)

    @property
    def minutes(self) -> float:
        """The median time of a run."""
        return statistics.median(run.seconds for run in self.runs) / 60


def summarise(
    folder: Path, row: Row, epsilon: float | None, tell: Callable[[str], object]
) -> Summary | None:
    """Returns what a row gave at an ε (None: without privacy); None: it has not been run.

    `tell` gets a line about every result that can't be used.
    """
    runs = []
    for seed in SEEDS:
        try:
            run = results.load(folder, Case(row, epsilon, seed))
        except ValueError as error:
            tell(f"left out: {error}")
            continue
        runs += [run] if run else []
    return Summary(runs) if runs else None


def margin(row: Row, epsilon: float, ours: Summary, plain: Summary | None) -> float | None:
    """Returns how far the median is above what is to be beaten; below 0: it fell short.

    None: there is nothing to beat at this ε, or the run without privacy is missing that says it.
    """
    target = row.to_beat(epsilon)
    if target is not None:
        return ours.median - target.accuracy
    within = row.within_at(epsilon)
    if within is None or plain is None:
        return None
    return ours.median - (plain.median - within)
