"""What the files of a run show of the steps that it took: its ledger must have paid for all."""

import json
from pathlib import Path
from typing import Any

from ..release.parameters import releases
from ..release.statement import read_statement
from .ledger import Ledger
from .lines import Position


def check_paid(folder: Path, ledger: Ledger) -> None:
    """Refuses a ledger that has fewer charges than other files of its run show (rule 15).

    Args:
      folder: of the run.
      ledger: in it.

    Raises:
      ValueError: if a checkpoint, a release or the metrics are ahead of it, or a release has no
        statement that can be read.
    """
    reached = max((ledger.stop(i + 1) for i in range(len(ledger.segments))), default=0)
    checkpoints = [p for p in folder.glob("private/checkpoints/*") if p.name.isdigit()]
    saved = [int(p.name) for p in checkpoints]
    measured = [
        fact["step"]
        for _, fact in facts_in(folder / "private" / "metrics.jsonl")
        if fact is not None and type(fact.get("step")) is int
    ]
    for what, steps, paid in (
        ("the checkpoints", max(saved, default=0), reached),
        ("the metrics", max(measured, default=0), reached),
        ("the releases", max(map(_released, releases(folder)), default=0), ledger.steps),
    ):
        if steps > paid:
            raise ValueError(
                f"{what} are ahead of the ledger {ledger.path}, which has {paid} steps "
                f"where {steps} were taken: it is not known what was spent. Put back the ledger "
                "that belongs to them"
            )
    for checkpoint in checkpoints:  # segments take steps again: their numbers don't show all
        position = _position(checkpoint)
        if position is not None and not ledger.holds(position):
            raise ValueError(
                f"the checkpoint of step {checkpoint.name} is ahead of the ledger {ledger.path}, "
                f"which has {ledger.position.lines} lines where {position.lines} had been written, "
                "or has other lines: it is not known what was spent. Put back the ledger that "
                "belongs to it"
            )


def _position(checkpoint: Path) -> Position | None:
    """The end of the ledger when a checkpoint was made; None: that can't be read."""
    try:
        match json.loads((checkpoint / "about" / "metadata").read_bytes()):
            case {"position": [int() as lines, str() as check]}:
                return Position(lines, check)
    except (OSError, ValueError, RecursionError):
        pass
    return None


def facts_in(path: Path) -> list[tuple[int, dict[str, Any] | None]]:
    """The lines of JSON in a file, with their numbers; None: a line is damaged.

    A crash may have left the last one half written: it is left out.
    """
    if not path.is_file():
        return []
    found = []
    *lines, last = path.read_bytes().split(b"\n")
    for number, line in enumerate([*lines, *([last] if last.endswith(b"}") else [])], 1):
        try:
            fact = json.loads(line)
        except (ValueError, RecursionError):
            fact = None
        found.append((number, fact if isinstance(fact, dict) else None))
    return found


def _released(release: Path) -> int:
    try:
        return read_statement(release / "privacy.json").steps
    except OSError as error:
        raise ValueError(
            f"{release} has no statement that can be read ({error.strerror}): put privacy.json "
            "back, or move the folder away"
        ) from None
