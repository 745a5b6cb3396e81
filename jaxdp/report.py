"""The command `python -m jaxdp.report RUN [RUN2 ...]`: pictures of a run, or several compared.

Everything comes from the files of the runs, and is private, but for what a release says.
"""

import json
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import composition
from . import config as configs
from .ledger import Budget, Ledger
from .mechanism import Mechanism

try:
    import matplotlib
    from matplotlib import pyplot
    from matplotlib.axes import Axes
    from rich.console import Console
    from rich.table import Table
except ModuleNotFoundError as error:
    if error.name is None or error.name.startswith("jaxdp"):
        raise
    sys.exit(
        f"python -m jaxdp.report needs {error.name}, which is not installed: "
        "pip install 'jaxdp[train]' (in a checkout: pip install -e '.[train]')"
    )

EPSILON_POINTS = 12  # of ε against steps
DELTAS = np.logspace(-12, -0.3, 40)
STYLES = ("-", "--", "-.", ":")  # told apart in grey, too


@dataclass(frozen=True)
class Record:
    """What the files of a run say."""

    name: str
    folder: Path
    config: configs.Config
    budget: Budget
    spent: list[Mechanism]
    metrics: list[dict[str, Any]]
    results: dict[str, Any]  # empty until the run has ended


def main(args: Sequence[str]) -> int:
    """Runs the command with the given arguments and returns the exit status."""
    if not args or any(arg.startswith("-") for arg in args):
        print("usage: python -m jaxdp.report RUN [RUN2 ...]")
        return 0 if args and args[0] in ("-h", "--help") else 2
    try:
        records = [load_record(Path(arg)) for arg in args]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    matplotlib.use("agg")
    console = Console(highlight=False, markup=False)
    console.print(compare(records))
    private = records[0].folder / "private"
    written = []
    if len(records) == 1:
        for name, draw in (
            ("training.png", draw_training),
            ("norms.png", draw_norms),
            ("epsilon.png", draw_epsilon),
            ("tradeoff.png", draw_tradeoff),
        ):
            written.append(_save(private / name, draw, records[0]))
    else:
        written.append(_save(private / "compared.png", draw_comparison, records))
    for path in written:
        print(path)
    return 0


def load_record(folder: Path) -> Record:
    """Reads the files of a run.

    Raises:
      ValueError: if it is none, or they are damaged.
    """
    private = folder / "private"
    if not (private / "ledger.txt").is_file():
        raise ValueError(
            f"{folder} holds no run (private/ledger.txt): name a folder that "
            "`python -m jaxdp.train` made"
        )
    ledger = Ledger.read(private / "ledger.txt")
    results = private / "results.json"
    lines = (private / "metrics.jsonl").read_text().splitlines()
    return Record(
        name=folder.resolve().name,
        folder=folder,
        config=configs.from_json(configs.Config, json.loads((private / "config.json").read_text())),
        budget=ledger.budget,
        spent=ledger.mechanisms(),
        metrics=[json.loads(line) for line in lines if line.endswith("}")],
        results=json.loads(results.read_text()) if results.is_file() else {},
    )


def compare(records: Sequence[Record]) -> Table:
    """One column for every run."""
    table = Table("", *(record.name for record in records), highlight=False)
    row = lambda name, tell: table.add_row(name, *(tell(record) for record in records))
    row("test accuracy", lambda r: _shown(r.results.get("test_accuracy"), ".4f"))
    row("test loss", lambda r: _shown(r.results.get("test_loss"), ".4f"))
    row("ε spent", lambda r: f"{_epsilon(r):.4g} of {r.budget.epsilon:g}")
    row("δ", lambda r: f"{r.budget.delta:.3g}")
    row("steps charged", lambda r: f"{sum(m.steps for m in r.spent)}")
    row("segments", lambda r: f"{len(r.spent)}")
    row("noise multiplier", lambda r: f"{r.spent[-1].noise_multiplier:g}")
    row("sampling probability", lambda r: f"{r.spent[-1].sampling_probability:.4g}")
    row("clipping", lambda r: f"{r.config.clipping.kind} {r.config.clipping.norm:g}")
    row("model", lambda r: r.config.model.name)
    row("optimizer", lambda r: f"{r.config.training.optimizer} {r.config.training.learning_rate:g}")
    row("seconds", lambda r: _shown(r.results.get("seconds"), ".0f"))
    return table


def draw_training(axes: Axes, record: Record) -> None:
    steps, losses = _losses(record)
    axes.plot(steps, losses, "-", color="0.6", linewidth=0.8, label="loss of a batch")
    axes.plot(steps, _smoothed(losses), "-", color="black", label="loss, smoothed")
    axes.set(xlabel="step", ylabel="training loss", title=_title(record))
    axes.set_ylim(0, 1.05 * np.nanmax(losses))
    right = axes.twinx()
    counts, epsilons = _epsilon_curve(record)
    right.plot(counts, epsilons, "--", color="tab:blue", label="ε spent")
    right.axhline(record.budget.epsilon, color="tab:blue", linestyle=":", label="ε to spend")
    right.set(ylabel=f"ε at δ = {record.budget.delta:.3g}")
    right.set_ylim(0, 1.15 * record.budget.epsilon)
    handles = [*axes.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    _legend_below(axes, handles)


def draw_norms(axes: Axes, record: Record) -> None:
    shown = [m for m in record.metrics if m["norm_50"] is not None]
    steps = [m["step"] for m in shown]
    low, middle, high = ([m[name] for m in shown] for name in ("norm_10", "norm_50", "norm_90"))
    axes.fill_between(steps, low, high, color="0.8", label="80% of the norms")
    axes.plot(steps, middle, "-", color="black", label="median norm")
    at_first = " at the first step" if record.config.clipping.kind == "quantile" else ""
    axes.axhline(
        record.config.clipping.norm,
        color="tab:blue",
        linestyle="--",
        label=f"clipping norm{at_first}",
    )
    axes.set(xlabel="step", ylabel="gradient norm", title=_title(record), yscale="log")
    _legend_below(axes, axes.get_legend_handles_labels()[0])


def draw_epsilon(axes: Axes, record: Record) -> None:
    axes.plot(DELTAS, _epsilons(record), "-", color="black")
    axes.plot([record.budget.delta], [_epsilon(record)], "o", color="tab:blue", label="the claim")
    axes.set(xlabel="δ", ylabel="ε", xscale="log", title=_title(record))
    axes.set_ylim(bottom=0)
    _legend_below(axes, axes.get_legend_handles_labels()[0])


def draw_tradeoff(axes: Axes, record: Record) -> None:
    alphas = np.linspace(0, 1, 201)
    betas = np.zeros_like(alphas)
    for epsilon, delta in zip(_epsilons(record), DELTAS, strict=True):
        if math.isfinite(epsilon):
            betas = np.maximum(betas, 1 - delta - np.exp(epsilon) * alphas)
            betas = np.maximum(betas, np.exp(-epsilon) * (1 - delta - alphas))
    axes.plot(alphas, betas, "-", color="black", label="this run, at least")
    axes.plot(alphas, 1 - alphas, "--", color="0.5", label="perfect privacy")
    axes.set(
        xlabel="type I error: the record is thought to be in, and is not",
        ylabel="type II error",
        title=_title(record),
        aspect="equal",
    )
    _legend_below(axes, axes.get_legend_handles_labels()[0])


def draw_comparison(axes: Axes, records: Sequence[Record]) -> None:
    for i, record in enumerate(records):
        steps, losses = _losses(record)
        accuracy = record.results.get("test_accuracy")
        label = f"{record.name}: ε = {_epsilon(record):.3g}"
        if accuracy is not None:
            label += f", test accuracy {accuracy:.3f}"
        share = 0.65 * i / max(len(records) - 1, 1)
        style = STYLES[i % len(STYLES)]
        axes.plot(steps, _smoothed(losses), style, color=str(share), label=label)
    axes.set(xlabel="step", ylabel="training loss, smoothed")
    axes.set_ylim(bottom=0)
    _legend_below(axes, axes.get_legend_handles_labels()[0], columns=1)


def _save(path: Path, draw: Callable[[Axes, Any], None], what: Any) -> Path:
    figure, axes = pyplot.subplots(figsize=(7, 5), layout="constrained")
    draw(axes, what)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path


def _legend_below(axes: Axes, handles: Sequence[Any], columns: int = 4) -> None:
    """Outside the axes, where it hides nothing."""
    axes.figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def _title(record: Record) -> str:
    accuracy = record.results.get("test_accuracy")
    return record.name + (f", test accuracy {accuracy:.3f}" if accuracy is not None else "")


def _losses(record: Record) -> tuple[list[int], np.ndarray]:
    losses = [math.nan if m["loss"] is None else m["loss"] for m in record.metrics]
    return [m["step"] for m in record.metrics], np.array(losses)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Means over about a twentieth of the run; empty batches are left out."""
    width = max(1, len(values) // 20)
    known = np.isfinite(values)
    kernel = np.ones(width)
    total = np.convolve(np.where(known, values, 0), kernel, "same")
    count = np.convolve(known, kernel, "same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _epsilon(record: Record) -> float:
    return composition.epsilon(record.spent, record.budget.delta)


def _epsilons(record: Record) -> list[float]:
    with warnings.catch_warnings():  # of δ above 1/N: they are points of a curve here, no claim
        warnings.simplefilter("ignore", UserWarning)
        return [composition.epsilon(record.spent, float(delta)) for delta in DELTAS]


def _epsilon_curve(record: Record) -> tuple[list[int], list[float]]:
    """ε against steps: of the newest segment, on top of those before it."""
    *earlier, last = record.spent
    start = max((m["step"] for m in record.metrics), default=last.steps) - last.steps
    counts = sorted({round(last.steps * i / EPSILON_POINTS) for i in range(EPSILON_POINTS + 1)})
    spent = [
        composition.epsilon([*earlier, replace(last, steps=count)], record.budget.delta)
        for count in counts
    ]
    return [max(start, 0) + count for count in counts], spent


def _shown(value: float | None, spec: str) -> str:
    return "not known yet" if value is None else format(value, spec)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
