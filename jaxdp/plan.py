"""The command `python -m jaxdp.plan`: how much noise a privacy budget needs, by batch size."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from . import _command, _distribution

with _distribution.exit_without("python -m jaxdp.plan", "train"):
    import tyro  # noqa: F401  # for --help
    from rich.console import Console

    from .trainer import planner


def main(args: Sequence[str]) -> int:
    """Runs the command with the given arguments and returns the exit status."""
    if _command.tell_version(args):
        return 0
    try:
        options = planner.parse(args)
        table = planner.solve(options)
        if options.plot is not None:
            planner.save_plot(table, options.plot)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(asdict(table), indent=2))
    else:
        planner.show(table, Console(highlight=False, markup=False))
    return 0


if __name__ == "__main__":
    _command.run(main)
