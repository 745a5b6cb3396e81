"""The command `python -m jaxdp.data`: prepares images without TensorFlow, and empties the cache."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import _command
from .datasets import tfds_prepare
from .datasets.cache import cache_folder, clear

COMMAND = "python -m jaxdp.data"
EXAMPLES = """examples:
  python -m jaxdp.data prepare mnist
  python -m jaxdp.data prepare cifar10 --dir data --archives downloads
  python -m jaxdp.data clear"""


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line, not after the usage."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def main(args: Sequence[str]) -> int:
    """Runs the command with the given arguments and returns the exit status."""
    if _command.tell_version(args):
        return 0
    parser = _Parser(
        prog=COMMAND,
        description="Prepares data sets of images, and deletes the copies that jaxdp keeps.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    commands.add_parser("clear", help=f"delete the cache of decoded records, {cache_folder()}")
    command = commands.add_parser("prepare", help="download a data set and write it as TFDS does")
    command.add_argument("name", metavar="NAME", help=", ".join(tfds_prepare.NAMES))
    command.add_argument("--dir", help="where TFDS keeps prepared sets; default: TFDS_DATA_DIR")
    command.add_argument("--archives", help="a folder with the original archives of this set")
    try:
        chosen = parser.parse_args(args)
    except ValueError as error:
        print(f"error: {error}: see `{COMMAND} --help`", file=sys.stderr)
        return 2
    if chosen.command == "clear":
        print(f"{clear()} entries deleted from {cache_folder()}")
        return 0
    try:
        where = tfds_prepare.prepare(chosen.name, chosen.dir, archives=chosen.archives)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{chosen.name} is ready in {where}")
    return 0


if __name__ == "__main__":
    _command.run(main)
