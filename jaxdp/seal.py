"""The command `python -m jaxdp.seal RUN`: destroys the secrets of a run that is over."""

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from . import _command, _distribution

with _distribution.exit_without("python -m jaxdp.seal", "train"):
    from .trainer.run.seal import LIMITS, seal

USAGE = """usage: python -m jaxdp.seal RUN

Destroys the keys of noise and sampling in private/ of a run (give its folder). Whoever gets them
can take the noise off the release. Do it when the run is over: a later --resume is still possible,
but begins a new segment, with new keys, and pays again for steps after the last checkpoint.

examples:
  python -m jaxdp.seal runs/digits_cnn-20261125-020558
  for run in runs/*; do python -m jaxdp.seal "$run"; done"""


def main(args: Sequence[str]) -> int:
    """Runs the command with the given arguments and returns the exit status."""
    if _command.tell_about(args, USAGE):
        return 0
    if len(args) != 1 or args[0].startswith("-"):
        given = f"the arguments are {' '.join(args)!r}" if args else "no run is given"
        cure = "give one folder, as python -m jaxdp.seal runs/NAME-TIME"
        print(f"error: {given}: {cure}", file=sys.stderr)
        return 2
    try:
        changed = seal(Path(args[0]))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        cure = "make the folder writable with room on its disk, and seal it again"
        print(f"error: {error}: the run is not sealed completely, {cure}", file=sys.stderr)
        return 1
    if not changed:
        print(f"{args[0]} is sealed already: there is nothing to do.")
        return 0
    print(f"{args[0]} is sealed: its keys are destroyed. Changed:")
    for path in changed:
        print(f"  {path}")
    print(textwrap.fill(LIMITS, 100))
    return 0


if __name__ == "__main__":
    _command.run(main)
