"""The command `python -m jaxdp.report RUN [RUN2 ...]`: shows one run, or compares several.

All numbers come from the private files of the runs. They are private, except ε and δ.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from . import _command, _distribution

with _distribution.exit_without("python -m jaxdp.report", "train"):
    from rich.console import Console

    from .trainer.release import figures, report
    from .trainer.run.record import load_record

USAGE = """usage: python -m jaxdp.report RUN [RUN2 ...] [--output FOLDER]

Prints a table of runs (give their folders) and draws figures. They are PRIVATE: they show numbers
without noise.

  one run       its training, gradient norms, ε(δ) and trade-off curve, into its private/
  several runs  their scores against steps, ε and time, into the current folder

  --output FOLDER   where to draw instead: a folder that exists

examples:
  python -m jaxdp.report runs/digits_cnn-20261125-020558
  python -m jaxdp.report runs/* --output figures"""


def main(args: Sequence[str]) -> int:
    """Runs the command with the given arguments and returns the exit status."""
    if _command.tell_about(args, USAGE):
        return 0
    try:
        runs, output = report.read_options(args)
        records = [load_record(Path(run)) for run in runs]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console = Console(highlight=False, markup=False)
    for table in report.compare(records, console.width):
        console.print(table)
    try:
        written = (
            figures.draw_run(records[0], output)
            if len(records) == 1
            else [figures.draw_runs(records, output)]
        )
    except OSError as error:
        print(f"error: {error}: the figures can't be written, make room for them", file=sys.stderr)
        return 1
    for path in written:
        print(path)
    return 0


if __name__ == "__main__":
    _command.run(main)
