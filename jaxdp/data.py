"""The command `python -m jaxdp.data`: prepares images, writes schemas, and empties the cache."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import _command
from .datasets import tfds_prepare
from .datasets.cache import cache_folder, clear
from .datasets.schema_from_rows import write_schema

COMMAND = "python -m jaxdp.data"
EXAMPLES = """examples:
  python -m jaxdp.data prepare mnist
  python -m jaxdp.data schema survey.csv --public 'train[:1000]' --label income
  python -m jaxdp.data clear"""
NOT_PUBLIC = (
    "a schema made of private rows leaks their ranges and values. If rows of {file} are public, "
    "say which: --public 'train[:1000]', or --public for all. Else write the schema by hand, from "
    "what is publicly known: a code book, a law, common sense"
)


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
        description="Prepares data sets, writes the schemas of tables, and deletes the copies "
        "that jaxdp keeps.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    commands.add_parser("clear", help=f"delete the cache of decoded records, {cache_folder()}")
    command = commands.add_parser("prepare", help="download a data set and write it as TFDS does")
    command.add_argument("name", metavar="NAME", help=", ".join(tfds_prepare.NAMES))
    command.add_argument("--dir", help="where TFDS keeps prepared sets; default: TFDS_DATA_DIR")
    command.add_argument("--archives", help="a folder with the original archives of this set")
    _add_schema(commands.add_parser("schema", help="write the schema of a table from public rows"))
    try:
        chosen = parser.parse_args(args)
    except ValueError as error:
        print(f"error: {error}: see `{COMMAND} --help`", file=sys.stderr)
        return 2
    try:
        print(_run(chosen))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _add_schema(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", metavar="FILE", help="a table: .csv, .tsv, .parquet or .npz")
    command.add_argument(
        "--public",
        metavar="ROWS",
        nargs="?",
        const="train",
        help="confirms that all rows of the file are public, or those of ROWS, as train[:1000]",
    )
    command.add_argument("--label", metavar="COLUMN", help="the column to predict")
    command.add_argument(
        "--columns", metavar="NAME", nargs="+", default=[], help="names, if the file has none"
    )
    command.add_argument("--output", default="schema.toml", help="default: schema.toml")


def _run(chosen: argparse.Namespace) -> str:
    """Does what the command line asks for, and returns what to print."""
    if chosen.command == "clear":
        deleted = clear()
        return f"{deleted} {'entry' if deleted == 1 else 'entries'} deleted from {cache_folder()}"
    if chosen.command == "prepare":
        where = tfds_prepare.prepare(chosen.name, chosen.dir, archives=chosen.archives)
        return f"{chosen.name} is ready in {where}"
    if chosen.public is None:
        raise ValueError(NOT_PUBLIC.format(file=chosen.file))
    size = write_schema(chosen.file, chosen.public, chosen.label, chosen.columns, chosen.output)
    return (
        f"{chosen.output} is written from {size:,} public rows of {chosen.file}. Check each column "
        f"in it, and then train with --data.schema {chosen.output}"
    )


if __name__ == "__main__":
    _command.run(main)
