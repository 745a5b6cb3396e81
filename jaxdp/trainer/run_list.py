"""The list of the runs below a folder, and what those on the same records have spent together."""

import itertools
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..accounting import composition
from ..accounting.rounding import round_up, shown_delta
from .columns import TIED, aligned, folded, tied
from .release import parameters
from .run.files import is_locked
from .run.segment import segment_file
from .spending import Spending, composed, covers, is_same, read_spending

HEAD = ("run", "state", "ε spent", "steps", "score", "age")
PRIVATE_SCORES = (
    "The scores are PRIVATE: they are of test records that were not declared public, without noise."
)


@dataclass(frozen=True)
class Listed:
    """What the list says of one run.

    Attributes:
      folder: of the run.
      name: the folder, from where the list begins.
      state: in words.
      spending: what it has spent; None: nothing, or it is not known.
      steps: those that are paid for, and those that are planned.
      score: of the release, if there is one.
      score_is_private: whether it is of test records that were not declared public.
      changed: when something was last spent, in seconds since 1970.
      problem: why its spending is not known.
      copy_of: the run of which it is a copy or a release, which counts for both.
    """

    folder: Path
    name: str
    state: str
    spending: Spending | None = None
    steps: str = "none"
    score: str = "none"
    score_is_private: bool = False
    changed: float | None = None
    problem: str | None = None
    copy_of: str | None = None


def list_runs(folder: Path) -> list[Listed]:
    """Reads all runs below a folder, and releases that are there without their run.

    Raises:
      ValueError: if there is no such folder, or a part of it can't be read.
    """
    if not folder.is_dir():
        raise ValueError(
            f"there is no folder {folder}: name the one that your runs are in, as "
            "python -m jaxdp.runs FOLDER"
        )
    listed = [_listed(path, folder) for path in _find(folder)]
    return [replace(run, copy_of=_counted_with(i, listed)) for i, run in enumerate(listed)]


def _counted_with(i: int, listed: Sequence[Listed]) -> str | None:
    """The name of another run that counts all that a run has spent; None: it counts by itself."""
    own = listed[i].spending
    for j, other in enumerate(listed):
        if own is None or other.spending is None or i == j:
            continue
        # Of two that are equal, the first one counts.
        if covers(other.spending, own) and (j < i or not covers(own, other.spending)):
            return other.name
    return None


def as_text(listed: Sequence[Listed], width: int, now: float | None = None) -> str:
    """The list and the sums, on lines that are no longer than the width where words allow it."""
    now = time.time() if now is None else now
    rows = [_row(run, now) for run in listed]
    lines = aligned([HEAD, *rows], width)
    if lines is None:
        lines = []
        for name, state, *cells in rows:
            told = ", ".join([state, *map(_named, HEAD[2:], cells)])
            lines += [name.replace(TIED, " "), *folded(f"  {told}", width, "  ")]
    notes = sums(listed)
    if any(run.score_is_private for run in listed):
        notes.append(PRIVATE_SCORES)
    for note in notes:
        lines += ["", *folded(note, width)]
    return "\n".join(lines)


def sums(listed: Sequence[Listed]) -> list[str]:
    """For every declared name of records, what its runs have spent together; then what lacks."""
    unknown = [run for run in listed if run.problem is not None]
    counted = {
        run.name: run.spending for run in listed if run.spending is not None and run.copy_of is None
    }
    lines = []
    for name in dict.fromkeys(name for spent in counted.values() for name in spent.names):
        own = {run: spent for run, spent in counted.items() if name in spent.names}
        lines.append(f"{name}: {_sum(own, at_least=bool(unknown))}{_undeclared(name)}")
    copies = [f"{run.name} with {run.copy_of}" for run in listed if run.copy_of is not None]
    if copies:
        lines.append(f"These are one spending, which counts once: {', '.join(copies)}")
    lines += [
        f"NOT COUNTED, because it is not known what it spent: {run.name}: {run.problem}"
        for run in unknown
    ]
    return lines


def _sum(runs: Mapping[str, Spending], at_least: bool) -> str:
    kinds: dict[tuple[str, ...], dict[str, Spending]] = {}
    for name, spent in runs.items():
        kinds.setdefault((spent.adjacency, *sorted(spent.units)), {})[name] = spent
    parts = [_sum_of_kind(kind, own, at_least) for kind, own in kinds.items()]
    if len(parts) == 1:
        return parts[0]
    return (
        "its runs have guarantees about different neighbours, whose ε do not add up: "
        + "; ".join(parts)
    )


def _sum_of_kind(kind: tuple[str, ...], runs: Mapping[str, Spending], at_least: bool) -> str:
    about = f"({', '.join(kind)})"
    try:
        for one, other in itertools.combinations(runs.values(), 2):
            is_same(one, other)
    except ValueError as error:
        return f"no ε holds for its {len(runs)} runs {about}: {error}"
    seeded = [name for name, spent in runs.items() if spent.seeded]
    private = [spent for spent in runs.values() if not spent.seeded]
    sentences = []
    if seeded:
        sentences.append(
            f"no ε holds for its {_counted(len(runs))} {about}, because a seed makes a run NOT "
            f"PRIVATE: {', '.join(seeded)}"
        )
    if private:
        total = composed(private)
        sentences.append(
            f"{_counted(total.runs)}{' without a seed' if seeded else ''} "
            f"{'has' if total.runs == 1 else 'together have'} spent ε = "
            f"{'at least ' if at_least else ''}{_number(total.epsilon)} at δ = "
            f"{shown_delta(total.delta):g} {about}"
        )
    return ". ".join(sentences)


def _counted(runs: int) -> str:
    return "1 run" if runs == 1 else f"{runs} runs"


def _undeclared(name: str) -> str:
    if name != "own data":
        return ""
    return (
        ". No name was declared for these records, so all such runs count as on the same ones: "
        "jaxdp.Dataset(..., name='patients-2026') tells them apart"
    )


def _find(folder: Path) -> list[Path]:
    """The folders of runs and of releases without their run."""

    def refuse(error: OSError) -> None:
        raise ValueError(
            f"{error.filename} can't be read ({error.strerror}): what was spent in it would not be "
            "counted. Make it readable, or name another folder"
        )

    found, seen = [], set()
    for path, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        here = Path(path)
        private = here / "private"
        marks = [private / "ledger.txt", private / "lock", segment_file(here, 1)]
        if (
            "privacy.json" in files
            or any(mark.is_file() for mark in marks)
            or any((release / "privacy.json").is_file() for release in parameters.releases(here))
        ):
            found.append(here)
            folders.clear()
        folders.sort()
    return sorted(found)


def _listed(path: Path, folder: Path) -> Listed:
    name = str(path.relative_to(folder)) if path != folder else path.resolve().name
    private = path / "private"
    running = is_locked(path)
    ledger, fresh = private / "ledger.txt", not segment_file(path, 1).exists()
    if private.is_dir() and not ledger.is_file() and fresh and not parameters.releases(path):
        state = "running: no step yet" if running else "never began"
        return Listed(path, name, state, changed=private.stat().st_mtime)
    try:
        spending = read_spending(path)
        state = "release without its run" if spending.ledger is None else _state(spending, running)
    except (ValueError, OSError) as error:
        return Listed(path, name, "damaged", problem=str(error))
    if spending.ledger is None:
        newest = path if (path / "privacy.json").is_file() else parameters.releases(path)[0]
        steps, changed = f"{sum(m.steps for m in spending.mechanisms)}", newest / "privacy.json"
        return Listed(path, name, _marked(state, spending), spending, steps, changed=_time(changed))
    if not spending.segments:
        return Listed(path, name, state, changed=_time(ledger))
    facts = spending.segments[-1].facts
    score = _score(private / "results.json")
    return Listed(
        folder=path,
        name=name,
        state=_marked(state, spending),
        spending=spending,
        steps=f"{_paid(spending)} of {facts.mechanism.steps}",
        score=score,
        score_is_private=score != "none" and not facts.test_is_public,
        changed=_time(ledger),
    )


def _state(spending: Spending, running: bool) -> str:
    ledger, segments = spending.ledger, spending.segments
    assert ledger is not None
    if running:
        return "running"
    if not segments:
        return "never began"
    if ledger.is_sealed:
        return "sealed"
    if parameters.released_steps(spending.folder) == ledger.steps:
        if _paid(spending) >= segments[-1].facts.mechanism.steps:
            return "finished"
        one_more = replace(ledger.mechanisms()[-1], steps=1)
        budget = ledger.budget
        after = composition.epsilon([*spending.mechanisms, one_more], budget.delta)
        if after > budget.epsilon:
            return "finished: its budget is used up"
    return "stopped: can go on"


def _marked(state: str, spending: Spending) -> str:
    return f"{state}, NOT PRIVATE: a seed" if spending.seeded else state


def _paid(spending: Spending) -> int:
    """The step after the last one of the newest segment that is paid for."""
    assert spending.ledger is not None
    return spending.ledger.stop(len(spending.segments))


def _row(run: Listed, now: float) -> tuple[str, ...]:
    state = run.state if run.copy_of is None else f"{run.state}, a copy"
    spent = "not known" if run.problem else "0"
    if run.spending is not None:
        of_target = f"{_number(run.spending.epsilon)} of {_number(run.spending.target)}"
        spent = f"{tied(of_target)} {tied(f'at δ = {shown_delta(run.spending.delta):g}')}"
    age = "not known" if run.changed is None else tied(_age(now - run.changed))
    return tied(run.name), state, spent, tied(run.steps), run.score, age


def _named(head: str, cell: str) -> str:
    """A cell with what it is, where it has no head."""
    if head == "steps":
        return tied("no step" if cell == "none" else f"{cell} steps")
    if head == "score":
        return tied("no score" if cell == "none" else cell)
    if head == "age":
        return tied("age not known" if cell == "not known" else f"{cell} old")
    return f"{tied('ε = ')}{cell}"


def _score(path: Path) -> str:
    try:
        scores = json.loads(path.read_text())["scores"]
        name, value = next(iter(scores.items()))
        return f"{name} {value:.4f}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return "none"


def _time(path: Path) -> float | None:
    return path.stat().st_mtime if path.is_file() else None


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _number(value: float) -> str:
    return "infinite" if math.isinf(value) else f"{round_up(value):g}"
