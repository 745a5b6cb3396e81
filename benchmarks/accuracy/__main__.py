"""Trains the rows of docs/accuracy.md and shows what they give: `python -m benchmarks.accuracy`.

    run ROW ...    trains the runs of rows that have no result yet, a file of JSON for each
    table          prints the table of docs/accuracy.md
    plot           draws docs/accuracy.png

Runs are seeded so that they repeat: they are no private releases. Start it in the root of the
project, and name the folder of data that a config names by a file: --files.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import results
from .figure import draw
from .rows import ROWS, SEEDS, Row
from .runs import Case
from .table import markdown


def cases_of(
    rows: Sequence[Row],
    epsilons: Sequence[float] | None,
    seeds: Sequence[int] | None,
    without_privacy: bool,
) -> list[Case]:
    """Returns the runs that the command line asks for: row by row, ε by ε.

    Raises:
      ValueError: for an ε that a row does not have.
    """
    cases = []
    for row in rows:
        asked: Sequence[float | None] = [None] if without_privacy else epsilons or row.epsilons
        if unknown := [f"{e:g}" for e in asked if e is not None and e not in row.epsilons]:
            known = ", ".join(f"{e:g}" for e in row.epsilons)
            raise ValueError(f"{row.name} has no ε = {', '.join(unknown)}: it has {known}")
        cases += [Case(row, epsilon, seed) for epsilon in asked for seed in seeds or row.seeds]
    return cases


def run(cases: Sequence[Case], folder: Path, files: Path, again: bool) -> int:
    """Trains the runs that have no result yet. Returns the exit status."""
    from .training import Stopped, result_of  # the trainer takes seconds to import

    for number, case in enumerate(cases, 1):
        name = f"[{number} of {len(cases)}] {case.row.name}, {case.label}, seed {case.seed}"
        try:
            found = None if again else results.load(folder, case)
            if found is not None:
                accuracy = f"accuracy {found.accuracy:.4f}"
                print(f"{name}: has a result, {accuracy} (--again trains it anew)", flush=True)
                continue
            print(f"{name}: {case.command}", flush=True)
            result = result_of(case, files)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except Stopped as stopped:
            print(f"{name}: stopped, without a result", file=sys.stderr)
            return int(stopped.args[0])
        except KeyboardInterrupt:
            print(f"{name}: interrupted, without a result", file=sys.stderr)
            return 130
        results.save(folder, case, result)
        spent = "" if result.epsilon_spent is None else f"ε spent {result.epsilon_spent:.5g}, "
        print(f"{name}: accuracy {result.accuracy:.4f}, {spent}{result.seconds:.0f} s")
        print(f"wrote {results.path_of(folder, case)}", flush=True)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    trains = commands.add_parser("run", help="trains the runs of rows that have no result yet")
    trains.add_argument("rows", nargs="+", metavar="ROW", help=", ".join(ROWS))
    trains.add_argument("--epsilon", type=float, nargs="+", help="default: those of the row")
    trains.add_argument(
        "--seeds", type=int, nargs="+", choices=SEEDS, help="default: those of the row"
    )
    trains.add_argument(
        "--without-privacy",
        action="store_true",
        help="the same model, steps, sampling and optimizer, neither clipped nor noised, instead",
    )
    trains.add_argument("--again", action="store_true", help="also those that have a result")
    trains.add_argument(
        "--files", type=Path, default=Path(), help="the folder of adult.data; default: this one"
    )
    table = commands.add_parser("table", help="prints the table of docs/accuracy.md")
    plot = commands.add_parser("plot", help="draws docs/accuracy.png")
    plot.add_argument(
        "--figure", type=Path, default=Path("docs/accuracy.png"), help="its file: .png, .pdf, .svg"
    )
    for command in (trains, table, plot):
        command.add_argument(
            "--results",
            type=Path,
            default=results.RESULTS,
            help="the folder of the results; default: that of the project, which has some already",
        )
    args = parser.parse_args(arguments)
    if args.command == "run":
        if unknown := [name for name in args.rows if name not in ROWS]:
            parser.error(f"no row {', '.join(unknown)}: there are {', '.join(ROWS)}")
        if args.without_privacy and args.epsilon is not None:
            parser.error("--epsilon does nothing --without-privacy: leave one of them out")
        if not args.files.is_dir():
            parser.error(f"there is no folder {args.files}: name that of adult.data")
        rows = [ROWS[name] for name in args.rows]
        try:
            cases = cases_of(rows, args.epsilon, args.seeds, args.without_privacy)
        except ValueError as error:
            parser.error(str(error))
        return run(cases, args.results, args.files, args.again)
    tell = lambda line: print(line, file=sys.stderr)
    if args.command == "table":
        print(markdown(args.results, ROWS, tell))
        return 0
    try:
        draw(args.results, ROWS, tell).savefig(args.figure, dpi=150)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.figure}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
