"""The command `python -m jaxdp.runs [FOLDER]`: lists runs and what they have spent together."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from . import _command, _distribution

with _distribution.exit_without("python -m jaxdp.runs", "train"):
    from .trainer.run_list import as_text, list_runs

USAGE = """usage: python -m jaxdp.runs [FOLDER]

Lists the runs below a folder (runs/, if none is named): their state, ε spent of the target, steps
paid for of those planned, score and age. For every name of records, it tells the ε that all runs on
them have spent together. The name is the data set's, or `jaxdp.Dataset(..., name=...)`.

examples:
  python -m jaxdp.runs
  python -m jaxdp.runs /data/shared/runs"""


def main(args: Sequence[str]) -> int:
    """Runs the command with the given arguments and returns the exit status."""
    if _command.tell_about(args, USAGE):
        return 0
    if len(args) > 1 or any(arg.startswith("-") for arg in args):
        cure = "give one folder at most, as python -m jaxdp.runs FOLDER"
        print(f"error: the arguments are {' '.join(args)!r}: {cure}", file=sys.stderr)
        return 2
    folder = Path(args[0] if args else "runs")
    try:
        listed = list_runs(folder)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not listed:
        print(f"There is no run below {folder}.")
        return 0
    print(as_text(listed, shutil.get_terminal_size().columns))
    return 1 if any(run.problem for run in listed) else 0


if __name__ == "__main__":
    _command.run(main)
