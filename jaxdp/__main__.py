"""The command `jaxdp`, the same as `python -m jaxdp`: runs one of the other commands."""

import difflib
import importlib
import sys
from collections.abc import Sequence

from . import _command

COMMANDS = {
    "train": "trains a private model and writes its release",
    "plan": "says how much noise a privacy budget needs, by batch size",
    "evaluate": "scores the release of a run",
    "predict": "predicts for the records in a file",
    "report": "shows one run in a table and figures, or compares several",
    "verify": "checks the privacy statement of a release",
    "runs": "lists runs and what they have spent together",
    "audit": "measures what the release of a run gives away",
    "seal": "destroys the secrets of a run that is over",
    "data": "prepares data sets, writes schemas of tables, and empties the cache",
}
USAGE = "\n".join(
    [
        "usage: jaxdp COMMAND ...",
        "",
        *(f"  {name:9} {what}" for name, what in COMMANDS.items()),
        "",
        "`jaxdp COMMAND --help` describes the options of a command, `jaxdp --version` tells the",
        "version. `python -m jaxdp.COMMAND ...` is the same as `jaxdp COMMAND ...`.",
        "",
        "examples:",
        "  jaxdp train                                        handwritten digits, in 15 s",
        "  jaxdp train configs/digits_linear.py --dry-run     the plan and its ε alone",
        "  jaxdp plan configs/digits_cnn.py                   the noise of other batch sizes",
    ]
)


def main(args: Sequence[str]) -> int:
    """Runs the command that the first argument names, and returns its exit status."""
    name = args[0] if args else ""
    if name in ("-h", "--help"):
        print(USAGE)
        return 0
    if name == "--version":
        _command.tell_version(args)
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        cure = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        wrong = f"there is no command {name!r}" if name else "no command is given"
        print(f"error: {wrong}: {cure}", file=sys.stderr)
        return 2
    module = "audit.__main__" if name == "audit" else name
    status: int = importlib.import_module(f"jaxdp.{module}").main(args[1:])
    return status


def program() -> None:
    """The console script."""
    _command.run(main)


if __name__ == "__main__":
    program()
