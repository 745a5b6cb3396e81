"""The result of one run, as a file of JSON."""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .runs import Case

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Result:
    """What one run gave.

    Attributes:
      row: the row's name.
      seed: of the run: it is reproducible, and so no private release.
      command: what a user types to get the same, in the root of the project.
      config: a digest of the options in the row's config.
      accuracy: of the test records, after the last step.
      loss: of the test records, likewise.
      steps: how many were taken.
      expected_batch_size: the number of records in a step, on average.
      seconds: of the whole command: data, compiling, steps and scores.
      hardware: the machine.
      jax: its version.
      jaxdp: its version.
      epsilon: ε that was asked for. This and what follows is None without privacy.
      epsilon_spent: ε that the run's statement claims.
      delta: δ.
      noise_multiplier: z, the noise's standard deviation over the sensitivity.
    """

    row: str
    seed: int
    command: str
    config: str
    accuracy: float
    loss: float
    steps: int
    expected_batch_size: float
    seconds: float
    hardware: str
    jax: str
    jaxdp: str
    epsilon: float | None = None
    epsilon_spent: float | None = None
    delta: float | None = None
    noise_multiplier: float | None = None


def path_of(folder: Path, case: Case) -> Path:
    """Returns where a run's result lies."""
    return folder / case.row.name / f"{case.label.replace(' ', '-')}-seed-{case.seed}.json"


def save(folder: Path, case: Case, result: Result) -> None:
    """Writes a result, whole or not at all."""
    path = path_of(folder, case)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(dataclasses.asdict(result), indent=1) + "\n", encoding="utf-8")
    os.replace(new, path)


def load(folder: Path, case: Case) -> Result | None:
    """Reads a run's result; None: it has not been run.

    Raises:
      ValueError: for a damaged file, or one of a run with other options than the row has now.
    """
    path = path_of(folder, case)
    if not path.is_file():
        return None
    try:
        fact: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        result = Result(**fact)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, or run it --again") from None
    if (result.command, result.config) != (case.command, case.config_digest):
        raise ValueError(
            f"{path.parent.name}/{path.name} is of other options than the row has now: train it by "
            f"`python -m benchmarks.accuracy run {case.row.name} --again`"
        )
    return result
