"""Scores the test records during training, for the owner of the run.

The scores are private, unless the test records are declared public. They influence nothing. To
choose a step by them is a selection, which ε does not cover.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from ..datasets.records import Records
from ..tasks.task import Task
from ..types import PyTree, Tell
from .run.files import append_private
from .step import TrainState

Scores = dict[str, float]


def make_scorer(task: Task, records: Records | None) -> Callable[[PyTree], Scores]:
    """Returns a function from variables to the means of a task's scores. It compiles once.

    The scores are none if the task has no scores, or there are no records.
    """
    scores_of = task.scores
    if scores_of is None or records is None:
        return lambda variables: {}
    good = records.good()

    @jax.jit
    def totals(variables: PyTree, rows: PyTree, good: jax.Array) -> dict[str, jax.Array]:
        scores = jax.vmap(scores_of, (None, 0))(variables, rows)
        return jax.tree.map(lambda score: jax.numpy.sum(score, 0, where=good), scores)

    def score(variables: PyTree) -> Scores:
        sums: Scores = {}
        for places, rows in records.chunks():
            for name, part in totals(variables, rows, good[places.start : places.stop]).items():
                sums[name] = sums.get(name, 0.0) + float(np.asarray(part))
        return {name: float(total / np.sum(good)) for name, total in sums.items()}

    return score


def counted(records: Records) -> str:
    """How many records are scored, in words for their owner."""
    good = int(records.good().sum())
    if good == len(records):
        return f"{good} records"
    return f"{good} of {len(records)} records (the others can't be used)"


def evenly(steps: int, times: int) -> Callable[[int], bool]:
    """Says after which steps of a run to score, evenly spread and without the last one.

    Args:
      steps: number of steps of the whole run. So a resumed run is scored after the same steps.
      times: how often to score, including the end of the run.
    """
    chosen = {round(i * steps / times) for i in range(1, times)} - {0, steps}
    return chosen.__contains__


class PeriodicScores:
    """Scores what would be released while a run trains.

    Args:
      score: a function that scores a run's state.
      path: the file; it gets one line of JSON for every score.
      tell: gets a line if the records can't be scored, which does not stop the run.
    """

    def __init__(self, score: Callable[[TrainState], Scores], path: Path, tell: Tell) -> None:
        self._score = score
        self._path = path
        self._tell = tell
        self._fails = False

    def visit(self, step: int, state: TrainState) -> None:
        """Scores the state after so many steps, unless that has failed before."""
        if self._fails:
            return
        try:
            scores = self._score(state)
        except RuntimeError as error:  # of the device, for example if its memory is full
            self._fails = True
            reason = str(error).strip().partition("\n")[0]
            self._tell(f"The test records can't be scored while the run trains: {reason}")
            return
        if scores:
            write_scores(self._path, step, scores)


def write_scores(path: Path, step: int, scores: Scores) -> None:
    """Appends one line of JSON, with the time of day in seconds."""
    line = {"step": step, "time": round(time.time(), 2), **scores}
    with append_private(path) as file:
        file.write(json.dumps(line) + "\n")
