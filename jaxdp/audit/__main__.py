"""The command `python -m jaxdp.audit RUN`: what a release gives away, beside what it claims."""

import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from .. import _command, _distribution

with _distribution.exit_without("python -m jaxdp.audit", "train"):
    from ..accounting.rounding import round_up, shown_delta
    from ..trainer import command_line
    from ..trainer.device import check_device
    from .run import RunAudit, audit_run

USAGE = """usage: python -m jaxdp.audit RUN [OPTIONS]

Measures what the release of a run gives away: it guesses which of the run's canaries took part, and
prints the lower bound on ε that the right guesses prove, beside the claim. RUN is the folder of a
run that was trained with --audit.canaries M. What is printed is private.

  --significance A      how often the bound may be wrong (0.05)
  --guesses R ...       the numbers of guesses, chosen before any result is seen; each pays its part
                        of A. (20 from 10 to M/2)

The exit status is 1 if the bound is above the claim, which means a bug or a leak.

examples:
  python -m jaxdp.train --audit.canaries 1000 --output runs/audited
  python -m jaxdp.audit runs/audited
  python -m jaxdp.audit runs/audited --guesses 50"""

WIDTH = 80

SHOWS = (
    "The bound is proved, but for that chance: who trains like this can't promise less than it. "
    "A bound below the claim proves nothing: another attack, or other canaries, may find more. It "
    "sees the released parameters alone, by one loss for each canary, and only how canaries are "
    "treated: what harms some other record goes unseen."
)
EXCEEDS = (
    "THE BOUND IS ABOVE THE CLAIM: the run is less private than it says (or the bound is wrong, by "
    "chance). Release nothing of it, and look for what sees a record past clipping and noise."
)
GAUSSIAN = (
    "The bound on μ is for a mechanism that is Gaussian DP. DP-SGD with sampling is only nearly "
    "so: take it as a comparison."
)
SEEDED = "The run had a seed: the claim is what it would promise with secret keys."


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
    print(describe(audit))
    return 1 if audit.exceeds else 0


def describe(audit: RunAudit) -> str:
    """The result in lines of 80 columns."""
    bound, gaussian = audit.bound, audit.gaussian
    confidence = f"{100 * (1 - bound.significance):g} %"
    rows = [
        ("claimed", f"ε = {audit.claimed:g} at δ = {shown_delta(audit.delta):g}"),
        ("lower bound", f"ε ≥ {_down(bound.epsilon):g} at the same δ, confidence {confidence}"),
        (
            "at most",
            f"ε ≥ {_down(audit.most):g} could have been shown, by guesses that are all right",
        ),
        (
            "as Gaussian DP",
            f"μ ≥ {_down(gaussian.mu):g} (ε ≥ {_down(gaussian.epsilon):g}), where "
            f"μ = {audit.claimed_mu:g} is claimed",
        ),
    ]
    told = [EXCEEDS] if audit.exceeds else []
    told += [SHOWS, GAUSSIAN, *([SEEDED] if audit.reproducible else [])]
    lines = [
        "PRIVATE: keep this to yourself, as everything in private/ of the run.",
        f"{audit.folder}: {audit.included:,} of {audit.canaries:,} canaries took part.",
        "",
        *(f"{name:16}{text}" for name, text in rows),
        "",
        "guesses   right   ε ≥",
        *(f"{g.number:7}{g.right:8}   {_down(g.bound):g}" for g in bound.guesses),
        "(The largest of them is the bound; all of them are paid for.)",
    ]
    return "\n".join([*lines, *(f"\n{textwrap.fill(text, WIDTH)}" for text in told)])


def _down(value: float) -> float:
    """Rounded down for print: a lower bound must not be told too high."""
    return -round_up(-value, 4)


if __name__ == "__main__":
    _command.run(main)
