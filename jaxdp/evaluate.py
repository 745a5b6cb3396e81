"""The command `python -m jaxdp.evaluate RUN`: loads a release and scores it."""

import shutil
import sys
from collections.abc import Sequence

from . import _command, _distribution

with _distribution.exit_without("python -m jaxdp.evaluate", "train"):
    from .trainer.device import check_device
    from .trainer.release.evaluation import evaluate, read_options

USAGE = """usage: python -m jaxdp.evaluate RUN [OPTIONS]

Scores the release of a run. RUN is the run's folder, or the release/ in it. The test records are
those of the run, or others of the same data. The options are those of `python -m jaxdp.train`:

  --data.test SPLIT     the records to score: test, test[:50%], ...
  --data.file FILE      the file of the records, for a release that came without its run;
                        of a table, with its --data.schema and --data.label
  --data.dir FOLDER     where TFDS keeps prepared sets
  --data.name NAME      another data set, with records like the run's
  --data.private SPLIT  and --data.public: the other records. A record has one use only

  --confusion           scores of every class, and the confusion matrix
  --data.test-is-public declares other records than the run's public

Of private test records, the matrix has noise, which a ledger of these records pays for. All
releases that are scored on them share that ledger.

  --ledger FILE         the ledger
  --epsilon E           what this evaluation spends
  --budget B            begins the ledger: what all evaluations together may spend

examples:
  python -m jaxdp.evaluate runs/digits_cnn-20261125-020558 --confusion
  python -m jaxdp.evaluate received/release --data.test 'test[:50%]'
  python -m jaxdp.evaluate RUN --confusion --ledger visits.txt --epsilon 0.5 --budget 2"""


def main(args: Sequence[str]) -> int:
    """Runs the command with the given arguments and returns the exit status."""
    if _command.tell_about(args, USAGE):
        return 0
    try:
        request = read_options(args)
        check_device()
        print(evaluate(request, shutil.get_terminal_size().columns))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    _command.run(main)
