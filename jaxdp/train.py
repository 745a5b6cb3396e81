"""The command `python -m jaxdp.train`: trains a private model and writes its release."""

import sys
from collections.abc import Sequence

from . import _command, _distribution

with _distribution.exit_without("python -m jaxdp.train", "train"):
    # Needed later: after the last step it would be too late to say that they are missing.
    import safetensors  # noqa: F401
    import tyro  # noqa: F401

    from .trainer import command, distributed, parsing
    from .trainer.device import check_device
    from .trainer.run.resume import saved_config


def main(args: Sequence[str]) -> int:
    """Runs the command with the given arguments and returns the exit status."""
    if _command.tell_version(args):
        return 0
    try:
        config = parsing.parse(args, saved_config, distributed.join)
        check_device()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return distributed.failed(2, error)
    with distributed.together():
        status = command.train(config)
    return distributed.left(status)


if __name__ == "__main__":
    _command.run(main)
