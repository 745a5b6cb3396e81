"""The command `python -m jaxdp.audit RUN`: what a release gives away, beside what it claims."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from .. import _command, _distribution

with _distribution.exit_without("python -m jaxdp.audit", "train"):
    from ..trainer import command_line
    from ..trainer.device import check_device
    from .run import audit_run

USAGE = """usage: python -m jaxdp.audit RUN [OPTIONS]

Measures what the release of a run gives away: it guesses which of the run's
canaries took part, and prints the lower bound on ε that the right guesses prove,
beside the claim. RUN is the folder of a run that was trained with
--audit.canaries M. What is printed is private.

  --significance A   how often the bound may be wrong (0.05)
  --guesses R ...    the numbers of guesses, chosen before any result is seen;
                     each pays its part of A. (up to 20, from 10 to M/2)

The exit status is 1 if the bound is above the claim: a bug or a leak.

examples:
  python -m jaxdp.train --audit.canaries 1000 --output runs/audited
  python -m jaxdp.audit runs/audited
  python -m jaxdp.audit runs/audited --guesses 50"""


@dataclass(frozen=True)
class Options:
    """The options of `python -m jaxdp.audit`."""

    significance: float = 0.05
    guesses: tuple[int, ...] = ()


def main(args: Sequence[str]) -> int:
    """Runs the command with the given arguments and returns the exit status."""
    if _command.tell_about(args, USAGE):
        return 0
    try:
        values, runs = command_line.read(args, Options, "python -m jaxdp.audit")
        if len(runs) != 1:
            given = f"{len(runs)} runs are given" if runs else "no run is given"
            raise ValueError(f"{given}: give one folder, as python -m jaxdp.audit runs/NAME-TIME")
        options = Options(**values)
        check_device()
        audit = audit_run(
            runs[0],
            significance=options.significance,
            guesses=options.guesses or None,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(audit)
    return 1 if audit.exceeds else 0


if __name__ == "__main__":
    _command.run(main)
