"""The command `python -m jaxdp.predict RELEASE FILE`: predicts by a release, and writes CSV."""

import sys
from collections.abc import Sequence

from . import _command, _distribution

with _distribution.exit_without("python -m jaxdp.predict", "train"):
    from .trainer.release.parameters import load_release
    from .trainer.release.predictions import read_inputs, read_options, write_csv

USAGE = """usage: python -m jaxdp.predict RELEASE FILE [--output CSV]

Predicts for the records in FILE by a release: the folder of a run, or the release/ in
it. FILE is a .npy with the records as its first axis, a .npz with one such array for
each input, or a table (.csv, .tsv, .parquet), with its label or without it. A release
that came without its run needs --data.schema and --data.label for a table. The CSV has
a line for every record. It is printed, or written to --output.

examples:
  python -m jaxdp.predict runs/digits_cnn-20260101-120000 images.npy
  python -m jaxdp.predict runs/visits new.csv --output predictions.csv"""


def main(args: Sequence[str]) -> int:
    """Runs the command with the given arguments and returns the exit status."""
    if _command.tell_about(args, USAGE):
        return 0
    try:
        given = read_options(args)
        release = load_release(given.release)
        predictions = release.predict(read_inputs(given, release))
        if given.output is None:
            write_csv(predictions, sys.stdout)
        else:
            with given.output.open("w", newline="") as file:
                write_csv(predictions, file)
    except BrokenPipeError:
        raise  # `_command.run` ends quietly
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    _command.run(main)
