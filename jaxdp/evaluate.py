"""The command `python -m jaxdp.evaluate RUN`: loads a release and scores it."""

import sys
from collections.abc import Sequence

from . import _distribution

with _distribution.exit_without("python -m jaxdp.evaluate", "train"):
    import tyro

    from .datasets.config import DataConfig
    from .trainer.release.evaluation import data_options, score_release
    from .trainer.release.parameters import load_release

USAGE = """usage: python -m jaxdp.evaluate RUN [--test TEST] [OPTIONS]

Scores the release of a run. RUN is the run's folder, or the release/ in it. The test records are
those of the run, or others of the same data. `python -m jaxdp.evaluate RUN --help` shows the
options: they describe the data."""


def main(args: Sequence[str]) -> int:
    """Runs the command with the given arguments and returns the exit status."""
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if args else 2
    run, *options = args
    try:
        release = load_release(run)
        data = tyro.cli(
            DataConfig,
            prog=f"python -m jaxdp.evaluate {run}",
            args=options,
            default=data_options(run, release.statement),
        )
        print(score_release(release, data))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
