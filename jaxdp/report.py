"""The command `python -m jaxdp.report RUN [RUN2 ...]`: pictures of a run, or several compared.

Everything comes from the files of the runs, and is private, but for what a release says.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from .trainer.release import figures
from .trainer.release.report import compare
from .trainer.run.record import load_record

try:
    from rich.console import Console
except ModuleNotFoundError as error:
    if error.name is None or error.name.startswith("jaxdp"):
        raise
    sys.exit(
        f"python -m jaxdp.report needs {error.name}, which is not installed: "
        "pip install 'jaxdp[train]' (in a checkout: pip install -e '.[train]')"
    )


def main(args: Sequence[str]) -> int:
    """Runs the command with the given arguments and returns the exit status."""
    if not args or any(arg.startswith("-") for arg in args):
        print(
            "usage: python -m jaxdp.report RUN [RUN2 ...]\n\nPrints a table of runs (their "
            "folders), and draws into private/: of one run its\ntraining, gradient norms, ε(δ) and "
            "trade-off curve; of several, their losses."
        )
        return 0 if args and args[0] in ("-h", "--help") else 2
    try:
        records = [load_record(Path(arg)) for arg in args]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console = Console(highlight=False, markup=False)
    console.print(compare(records))
    try:
        written = (
            figures.draw_run(records[0]) if len(records) == 1 else [figures.draw_runs(records)]
        )
    except OSError as error:
        print(f"error: {error}: the pictures can't be written, make room for them", file=sys.stderr)
        return 1
    for path in written:
        print(path)
    return 0
