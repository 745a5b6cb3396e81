"""The command `python -m jaxdp.report RUN [RUN2 ...]`: shows one run, or compares several.

All numbers come from the private files of the runs. They are private, except ε and δ.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from . import _distribution

with _distribution.exit_without("python -m jaxdp.report", "train"):
    from rich.console import Console

    from .trainer.release import figures
    from .trainer.release.report import compare
    from .trainer.run.record import load_record

USAGE = """usage: python -m jaxdp.report RUN [RUN2 ...]

Prints a table of runs (give their folders) and draws figures into private/: for one
run its training, gradient norms, ε(δ) and trade-off curve; for several, their losses."""


def main(args: Sequence[str]) -> int:
    """Runs the command with the given arguments and returns the exit status."""
    if not args or any(arg.startswith("-") for arg in args):
        print(USAGE)
        return 0 if args and args[0] in ("-h", "--help") else 2
    try:
        records = [load_record(Path(arg)) for arg in args]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Console(highlight=False, markup=False).print(compare(records))
    try:
        written = (
            figures.draw_run(records[0]) if len(records) == 1 else [figures.draw_runs(records)]
        )
    except OSError as error:
        print(f"error: {error}: the figures can't be written, make room for them", file=sys.stderr)
        return 1
    for path in written:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
