"""The command `python -m jaxdp.predict RELEASE FILE`: predicts by a release, and writes CSV."""

import sys
from collections.abc import Sequence
from pathlib import Path

from . import _command, _distribution

with _distribution.exit_without("python -m jaxdp.predict", "train"):
    from .trainer.release.parameters import load_release
    from .trainer.release.predictions import read_inputs, write_csv

USAGE = """usage: python -m jaxdp.predict RELEASE FILE [--output CSV]

Predicts for the records in FILE by a release: the folder of a run, or the release/ in
it. FILE is a .npy with the records as its first axis, or a .npz with one such array for
each input. The CSV has a line for every record. It is printed, or written to --output.

example: python -m jaxdp.predict runs/digits_cnn-20260101-120000 images.npy"""


def main(args: Sequence[str]) -> int:
    """Runs the command with the given arguments and returns the exit status."""
    if _command.tell_version(args):
        return 0
    if not {"-h", "--help"}.isdisjoint(args):
        print(USAGE)
        return 0
    files = args if len(args) == 2 else args[:2] if args[2:3] == ["--output"] else ()
    if len(files) != 2 or len(args) not in (2, 4):
        print(USAGE, file=sys.stderr)
        return 2
    try:
        release = load_release(files[0])
        predictions = release.predict(read_inputs(files[1], release.model))
        if len(args) == 2:
            write_csv(predictions, sys.stdout)
        else:
            with Path(args[3]).open("w", newline="") as file:
                write_csv(predictions, file)
    except BrokenPipeError:
        raise  # `_command.run` ends quietly
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    _command.run(main)
