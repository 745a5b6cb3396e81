"""The command `python -m jaxdp.verify RELEASE [RELEASE...]`: checks privacy statements."""

import shutil
import sys
from collections.abc import Sequence

from . import _command, _distribution

with _distribution.exit_without("python -m jaxdp.verify", "train"):
    from .trainer.release import verification_report

USAGE = """usage: python -m jaxdp.verify RELEASE [RELEASE...]

Checks the privacy statement of a release: its ε is computed again from the
mechanisms that it names, by dp-accounting alone, and every number is compared.
RELEASE is a run's folder, the release/ in it, or a privacy.json. Nothing else is
needed: no data, no private files.

exit status:
  0   all statements hold
  1   one does not: a line says which number, with both values
  2   one can't be read, or names something that this version does not know

It can't be told from outside whether the mechanisms ran as they are named, nor
whether the assumptions in PRIVACY.md hold.

examples:
  python -m jaxdp.verify runs/digits_cnn-20261125-020558
  python -m jaxdp.verify received/release other/privacy.json"""


def main(args: Sequence[str]) -> int:
    """Runs the command with the given arguments and returns the exit status."""
    if _command.tell_about(args, USAGE):
        return 0
    wrong = [arg for arg in args if arg.startswith("-")]
    if wrong or not args:
        given = f"there is no option {wrong[0]}" if wrong else "no release is given"
        cure = "give folders, as python -m jaxdp.verify received/release"
        print(f"error: {given}: {cure}", file=sys.stderr)
        return 2
    statuses = []
    for path in args:
        try:
            lines, holds = verification_report.verify(path, shutil.get_terminal_size().columns)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            statuses.append(2)
            continue
        print("\n".join(lines))
        statuses.append(0 if holds else 1)
    return max(statuses)


if __name__ == "__main__":
    _command.run(main)
