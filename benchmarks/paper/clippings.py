"""Experiments on batch clipping and layerwise clipping: `python -m benchmarks.paper.clippings`.

    run [NAME ...]       trains the runs that are missing, into FOLDER/NAME/...
    tune NAME ...        the same over learning rates, scored on a slice of train
    tables [NAME ...]    prints the tables of docs/studies/clipping-paper.md from the run folders;
                         "-" is a cell that has not been run or does not exist
    plot                 draws docs/studies/clipping-paper.png from them; needs digits and mnist

The paper is arXiv 2307.11939. Runs are seeded so that they repeat: they are no private releases.
"""

import argparse
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from jaxdp import accounting
from jaxdp.trainer.config import Config
from jaxdp.trainer.parsing import parse
from jaxdp.trainer.run.record import Record, load_record

from .cases import EXPERIMENTS, Args, Case
from .privacy import in_words

RATES = ("0.003", "0.01", "0.03", "0.1", "0.3", "1", "3", "10", "30")
STYLES = (
    {"color": "0.0", "marker": "o", "linestyle": "-"},
    {"color": "0.0", "marker": "s", "linestyle": "--"},
    {"color": "0.6", "marker": "v", "linestyle": "-"},
    {"color": "0.6", "marker": "^", "linestyle": "--"},
    {"color": "0.6", "marker": "D", "linestyle": ":"},
)


def folder_of(root: Path, name: str, words: Sequence[str], seed: int) -> Path:
    label = re.sub(r"[^\w.]+", "-", " ".join(words)).strip("-").lower()
    return root / name / f"{label}-seed-{seed}"


def is_done(folder: Path) -> bool:
    return (folder / "private" / "results.json").is_file()


def train(folder: Path, args: Args, seed: int) -> None:
    """Trains one model in a process of its own, unless its folder holds that run already."""
    args = (*args, f"--seed={seed}", f"--output={folder}")
    if folder.exists():
        if not is_done(folder) or differ(load_record(folder).config, parse(args)):
            sys.exit(f"{folder} holds a run that did not end, or has other settings: delete it")
        return
    done = subprocess.run(
        [sys.executable, "-m", "jaxdp.train", *args], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{folder} failed:\n{done.stdout}{done.stderr}")
    print(f"{folder}: {accuracies([load_record(folder)])}", flush=True)


def differ(one: Config, other: Config) -> bool:
    """Returns whether two configs differ in anything but the folder that they write."""
    return replace(one, output=None) != replace(other, output=None)


def trainings(root: Path, name: str) -> list[tuple[Path, Args, int]]:
    """Returns every run of an experiment: its folder, options and seed."""
    experiment = EXPERIMENTS[name]
    return [
        (
            folder_of(root, name, (case.row, case.column), seed),
            (*case.args, f"--training.learning-rate={case.rate}"),
            seed,
        )
        for seed in experiment.seeds
        for case in experiment.cases
    ]


def tuning_folder(root: Path, name: str, case: Case, rate: str) -> Path:
    return folder_of(root, f"tune-{name}", (case.row, case.column, "rate", rate), 0)


def tunings(root: Path, name: str, rates: Sequence[str]) -> list[tuple[Path, Args, int]]:
    """Returns every run of the tuning of an experiment, with one seed."""
    experiment = EXPERIMENTS[name]
    return [
        (
            tuning_folder(root, name, case, rate),
            (*case.args, *experiment.tuning, f"--training.learning-rate={rate}"),
            0,
        )
        for case in experiment.tuned()
        for rate in rates
    ]


def accuracies(records: Sequence[Record]) -> str:
    """Returns the median last test accuracy and, in brackets, the median best: a selection."""
    return (
        f"{statistics.median(map(last, records)):.3f} ({statistics.median(map(best, records)):.3f})"
    )


def last(record: Record) -> float:
    return record.results["scores"]["accuracy"]


def best(record: Record) -> float:
    return max(score["accuracy"] for score in record.scores)


def records_of(root: Path, name: str, case: Case) -> list[Record]:
    """Returns the records of a cell for all seeds; none while one is missing."""
    seeds = EXPERIMENTS[name].seeds
    folders = [folder_of(root, name, (case.row, case.column), seed) for seed in seeds]
    return [load_record(folder) for folder in folders] if all(map(is_done, folders)) else []


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Prints rows as Markdown; the first one holds the titles."""
    for i, row in enumerate(rows):
        print("| " + " | ".join(row) + " |")
        if i == 0:
            print("|" + "---|" * len(row))
    print()


def case_table(root: Path, name: str) -> None:
    """Prints accuracies by the rows and columns of the cases."""
    cases = EXPERIMENTS[name].cases
    by_place = {(case.row, case.column): case for case in cases}
    columns = list(dict.fromkeys(case.column for case in cases))
    table = [[name, *columns]]
    for row in dict.fromkeys(case.row for case in cases):
        table.append([row])
        for column in columns:
            case = by_place.get((row, column))
            records = records_of(root, name, case) if case else []
            table[-1].append(accuracies(records) if records else "-")
    print_table(table)


def privacy_table(root: Path, name: str) -> None:
    """Prints accuracies and what the noise guarantees, a row for every case."""
    table = [[name, "last accuracy (best)", "mean clipped / C", "z", "μ", "ε", "privacy"]]
    for case in EXPERIMENTS[name].cases:
        if records := records_of(root, name, case):
            (run,) = records[0].spent
            epsilon = accounting.epsilon(run, records[0].budget.delta)
            mu = accounting.gaussian_mu(run)
            table.append(
                [
                    case.row,
                    accuracies(records),
                    f"{clipped_length(records[0]):.2f}",
                    f"{run.noise_multiplier:.5f}",
                    f"{math.ceil(mu):,}",
                    f"{math.ceil(epsilon):,}",
                    in_words(epsilon),
                ]
            )
    print_table(table)


def clipped_length(record: Record) -> float:
    """Returns the norm of the mean clipped gradient over that step's C: the median of the steps."""
    settings, sampling = record.config.clipping, record.facts.mechanism.sampling
    epoch_steps = accounting.batches_per_epoch(sampling.num_examples, sampling.expected_batch_size)
    return statistics.median(
        metrics["clipped_mean_norm"]
        / (settings.norm * settings.decay ** ((metrics["step"] - 1) // epoch_steps))
        for metrics in record.metrics
    )


def tuning_table(root: Path, name: str) -> None:
    """Prints accuracies on the slice of train by learning rate."""
    table = [[f"tuning of {name}", *RATES]]
    for case in EXPERIMENTS[name].tuned():
        table.append([f"{case.row}, {case.column}"])
        for rate in RATES:
            folder = tuning_folder(root, name, case, rate)
            table[-1].append(f"{last(load_record(folder)):.3f}" if is_done(folder) else "")
    print_table(table)


def plot(root: Path, path: Path) -> None:
    """Draws test accuracy against ε: the median, and a bar from the worst to the best seed."""
    names = ("digits", "mnist")
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names)), names, strict=True):
        cases = EXPERIMENTS[name].cases
        rows = list(dict.fromkeys(case.row for case in cases))
        for i, (row, style) in enumerate(zip(rows, STYLES, strict=True)):
            # Side by side, so that no bar hides another one.
            shift = 1.06 ** (i - len(rows) // 2)
            points = [
                (float(case.column.removeprefix("ε = ")) * shift, scores)
                for case in cases
                if case.row == row
                for scores in [[last(record) for record in records_of(root, name, case)]]
                if scores
            ]
            middle = [statistics.median(scores) for _, scores in points]
            axes.errorbar(
                [x for x, _ in points],
                middle,
                yerr=[
                    [m - min(scores) for m, (_, scores) in zip(middle, points, strict=True)],
                    [max(scores) - m for m, (_, scores) in zip(middle, points, strict=True)],
                ],
                label=row,
                capsize=2,
                **style,
            )
        axes.set(xscale="log", xlabel="ε", ylabel="test accuracy", title=name)
        axes.set_xticks([1, 3, 8], ["1", "3", "8"])
        axes.minorticks_off()
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["run", "tune", "tables", "plot"])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(EXPERIMENTS))
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/clipping-paper"), help="of the runs"
    )
    parser.add_argument("--figure", type=Path, default=Path("docs/studies/clipping-paper.png"))
    parser.add_argument(
        "--rates",
        nargs="+",
        default=RATES,
        choices=RATES,
        metavar="RATE",
        help="for tune: " + ", ".join(RATES),
    )
    parser.add_argument("--jobs", type=int, default=1, help="how many to train at a time")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in EXPERIMENTS]
    if unknown:
        parser.error(f"no experiment {', '.join(unknown)}: there are {', '.join(EXPERIMENTS)}")
    names = args.names or list(EXPERIMENTS)
    if args.action == "plot":
        plot(args.folder, args.figure)
    elif args.action == "tables":
        for name in names:
            show = privacy_table if EXPERIMENTS[name].shows_privacy else case_table
            show(args.folder, name)
    else:
        tuning = args.action == "tune"
        tunable = [name for name, experiment in EXPERIMENTS.items() if experiment.tuning]
        if tuning and (not args.names or not set(names) <= set(tunable)):
            parser.error(f"tune takes names among {', '.join(tunable)}")
        for name in names:
            todo = (
                tunings(args.folder, name, args.rates) if tuning else trainings(args.folder, name)
            )
            with ThreadPoolExecutor(args.jobs) as pool:
                list(pool.map(lambda run: train(*run), todo))
            print(f"{name}: {len(todo)} runs, all done")
            if tuning:
                tuning_table(args.folder, name)


if __name__ == "__main__":
    main()
