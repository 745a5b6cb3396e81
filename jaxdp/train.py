"""The command `python -m jaxdp.train`: trains a private classifier and writes its release."""

import os
import sys
from collections.abc import Sequence

from . import _distribution

with _distribution.exit_without("python -m jaxdp.train", "train"):
    # Needed later: after the last step it would be too late to say that they are missing.
    import safetensors  # noqa: F401
    import tyro  # noqa: F401

    from .trainer import command, parsing
    from .trainer.run.resume import saved_config


def main(args: Sequence[str]) -> int:
    """Runs the command with the given arguments and returns the exit status."""
    try:
        config = parsing.parse(args, saved_config)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return command.train(config)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    if status != 0:
        # All is written. A compilation or a checkpoint that was cut short may still have threads.
        # They would crash or print tracebacks while Python shuts down.
        os._exit(status)
    sys.exit(0)
