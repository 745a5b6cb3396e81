"""Experiments on batch clipping and layerwise clipping: `python -m benchmarks.clipping_paper`.

    run NAME ... [--seeds 0 1 2]     trains what is not there yet, into FOLDER/NAME/...
    tune NAME ...                    the same methods over a grid, scored on a slice of train
    tables NAME ...                  prints the tables of docs/clipping-paper.md from run folders

The paper is arXiv 2307.11939. Runs are seeded, so they repeat; they are no private releases.
"""

import argparse
import itertools
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxdp.record import Record, load_record

Args = tuple[str, ...]
EPSILONS = ("1", "3", "8")


@dataclass(frozen=True)
class Case:
    """One cell of a table: its row, its column and the options of its runs."""

    row: str
    column: str
    args: Args


@dataclass(frozen=True)
class DataSet:
    """What is the same for every method on some data, and what was tuned for each."""

    args: Args
    tuning_args: Args  # splits that leave the test records alone
    grid: dict[str, Sequence[str]]
    tuned: dict[str, Args]


# Many units: the noise on the update is 2·z·C / their number, and docs/clipping.md says the rest.
BATCH = ("--model.norm=batch", "--clipping.units=256")
METHODS: dict[str, Args] = {
    "IC, GroupNorm": ("--model.norm=group", "--clipping.kind=individual"),
    "BC, BatchNorm, FGC": (*BATCH, "--clipping.kind=batch"),
    "BC, BatchNorm, LC": (*BATCH, "--clipping.unit=batch", "--clipping.kind=layerwise"),
    "BC, BatchNorm, ALC": (
        *(*BATCH, "--clipping.unit=batch", "--clipping.kind=layerwise", "--clipping.bounds=public"),
    ),
    "BC, BatchNorm, MF": (
        *(*BATCH, "--clipping.unit=batch", "--clipping.kind=multiplied"),
        "--clipping.bounds=public",
    ),
}

DATA_SETS = {
    "digits": DataSet(
        args=(
            *("--data.private=train[:1200]", "--data.public=train[1200:]"),
            *("--plan.expected-batch-size=600", "--plan.steps=100"),
        ),
        tuning_args=(
            *("--data.private=train[:1000]", "--data.public=train[1200:]"),
            "--data.test=train[1000:1200]",
        ),
        grid={"training.learning-rate": ("0.1", "0.3", "1", "3")},
        tuned={
            "IC, GroupNorm": ("--training.learning-rate=3",),
            "BC, BatchNorm, FGC": ("--training.learning-rate=0.3",),
            "BC, BatchNorm, LC": ("--training.learning-rate=0.1",),
            "BC, BatchNorm, ALC": ("--training.learning-rate=0.3",),
            "BC, BatchNorm, MF": ("--training.learning-rate=1",),
        },
    ),
}


def cases(name: str) -> list[Case]:
    """The cells of an experiment's table."""
    data = DATA_SETS[name]
    return [
        Case(method, f"ε = {epsilon}", (*data.args, *args, *data.tuned[method], budget))
        for method, args in METHODS.items()
        for epsilon in EPSILONS
        for budget in [f"--plan.epsilon={epsilon}"]
    ]


def tuning_cases(name: str) -> list[Case]:
    """Every method at every point of its grid, at ε = 3."""
    data = DATA_SETS[name]
    found = []
    for method, args in METHODS.items():
        for point in itertools.product(*data.grid.values()):
            options = tuple(f"--{key}={value}" for key, value in zip(data.grid, point, strict=True))
            given = (*data.args, *data.tuning_args, *args, *options, "--plan.epsilon=3")
            found.append(Case(method, " ".join(options), given))
    return found


def folder_of(root: Path, name: str, case: Case, seed: int) -> Path:
    words = re.sub(r"[^\w.]+", "-", f"{case.row} {case.column}").strip("-").lower()
    return root / name / f"{words}-seed-{seed}"


def train(root: Path, name: str, found: Sequence[Case], seeds: Sequence[int]) -> None:
    """Trains what has no results yet, each in a process of its own."""
    for seed, case in itertools.product(seeds, found):
        folder = folder_of(root, name, case, seed)
        if (folder / "private" / "results.json").is_file():
            continue
        start = ["--resume", str(folder)] if folder.exists() else [*case.args, f"--seed={seed}"]
        start += [] if folder.exists() else [f"--output={folder}"]
        done = subprocess.run(
            [sys.executable, "-m", "jaxdp.train", *start], capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"{folder} failed:\n{done.stdout}{done.stderr}")
        print(f"{folder}: {show([load_record(folder)])}", flush=True)


def show(records: Sequence[Record]) -> str:
    """Median of the last test accuracies and, in brackets, of the best: that is a selection."""
    last = [record.results["test_accuracy"] for record in records]
    best = [max(score["accuracy"] for score in record.scores) for record in records]
    return f"{statistics.median(last):.3f} ({statistics.median(best):.3f})"


def records_of(root: Path, name: str, case: Case, seeds: Sequence[int]) -> list[Record]:
    folders = [folder_of(root, name, case, seed) for seed in seeds]
    done = [f for f in folders if (f / "private" / "results.json").is_file()]
    return [load_record(folder) for folder in done]


def table(root: Path, name: str, found: Sequence[Case], seeds: Sequence[int]) -> None:
    """Prints rows and columns as Markdown."""
    columns = list(dict.fromkeys(case.column for case in found))
    print(f"| {name} | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
    for row in dict.fromkeys(case.row for case in found):
        cells = []
        for column in columns:
            here = [case for case in found if (case.row, case.column) == (row, column)]
            records = records_of(root, name, here[0], seeds) if here else []
            cells.append(show(records) if records else "-")
        print(f"| {row} | " + " | ".join(cells) + " |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("action", choices=["run", "tune", "tables"])
    parser.add_argument("names", nargs="+", choices=list(DATA_SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/clipping-paper"))
    args = parser.parse_args()
    for name in args.names:
        if args.action == "tune":
            found, where, seeds = tuning_cases(name), f"tune-{name}", args.seeds[:1]
            train(args.folder, where, found, seeds)
            ranked = [(show(records_of(args.folder, where, c, seeds)), c) for c in found]
            for accuracy, case in sorted(ranked, key=lambda pair: (pair[1].row, pair[0])):
                print(f"{accuracy}  {case.row}  {case.column}")
        elif args.action == "run":
            train(args.folder, name, cases(name), args.seeds)
        else:
            table(args.folder, name, cases(name), args.seeds)


if __name__ == "__main__":
    main()
