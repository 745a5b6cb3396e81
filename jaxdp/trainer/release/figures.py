"""The figures of a report. They are private, and can be read in grey print."""

import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import patheffects, pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...accounting import composition
from ...accounting.mechanism import Mechanism
from ...accounting.rounding import round_up, shown_delta
from ...dpsgd.sums import NORM_BIN_EDGES
from .. import averages
from ..run.files import write_private
from ..run.record import Record

EPSILON_POINTS = 12  # of a segment, in the curve of ε against steps

NORM_COLUMNS = 100  # at most, in the figure of norms; all stand for as many steps

BINS_PER_OCTAVE = 4

RAREST = 1e-4  # share of all norms: octaves at the ends that have less are left out

DELTAS = np.logspace(-12, -0.3, 40)

OUTLINED = patheffects.withStroke(linewidth=4, foreground="white")

STYLES = ("-", "--", "-.", ":")


def draw_run(record: Record, folder: Path | None = None) -> list[Path]:
    """Writes the figures of one run into a folder; None takes its private folder."""
    folder = record.folder / "private" if folder is None else folder
    return [
        _save(folder / name, draw, record)
        for name, draw in (
            ("training.png", draw_training),
            ("norms.png", draw_norms),
            ("epsilon.png", draw_epsilon),
            ("tradeoff.png", draw_tradeoff),
        )
    ]


def draw_runs(records: Sequence[Record], folder: Path | None = None) -> Path:
    """Writes the comparison into a folder; None takes the current one."""
    return _save((folder or Path()) / "compared.png", draw_comparison, records)


def draw_training(figure: Figure, record: Record) -> None:
    """Draws accuracy and loss against steps, and ε."""
    upper, lower = figure.subplots(2, 1, sharex=True)
    scored, accuracies, losses = _scores(record)
    upper.plot(scored, accuracies, "o-", color="black", markersize=4, label="test accuracy")
    upper.set(ylabel="test accuracy")
    upper.set_title(f"{record.name}\nscored: {averages.describe(record.facts.ema)}")
    steps, batch_losses = _losses(record)
    lower.plot(steps, batch_losses, "-", color="0.75", linewidth=0.8, label="loss of a batch")
    lower.plot(steps, _smoothed(batch_losses), "-", color="black", label="the same, smoothed")
    lower.plot(scored, losses, "s:", color="0.3", markersize=4, label="test loss")
    lower.set(xlabel="step", ylabel="loss")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    lower.set_ylim(bottom=0)
    handles = [*_handles(upper), *_handles(lower)]
    for axes in (upper, lower):
        right = axes.twinx()
        right.plot(*_epsilon_curve(record), "--", color="tab:blue", label="ε spent")
        right.axhline(record.budget.epsilon, color="tab:blue", linestyle=":", label="ε to spend")
        right.set(ylabel=f"ε at δ = {shown_delta(record.budget.delta):g}")
        right.set_ylim(0, 1.15 * record.budget.epsilon)
    _legend_below(figure, [*handles, *_handles(right)], columns=3)


def draw_norms(figure: Figure, record: Record) -> None:
    """Draws the distribution of gradient norms, by step and of all steps, and the clipping norm."""
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    left.set(xlabel="step", ylabel="gradient norm", yscale="log")
    left.set_title(f"{record.name}\ndarker: more common in that step")
    right.set(xlabel="share of all")
    right.set_title("all steps")
    steps, clipping_norms = [
        [m[name] for m in record.metrics] for name in ("step", "clipping_norm")
    ]
    counts, edges = _norm_counts(record)
    if counts.any():
        used = np.flatnonzero(counts.sum(axis=0) >= RAREST * counts.sum())
        counts, edges = counts[:, used[0] : used[-1] + 1], edges[used[0] : used[-1] + 2]
        width = math.ceil(len(steps) / NORM_COLUMNS)
        columns = np.add.reduceat(counts, np.arange(0, len(steps), width))
        darkness = columns / np.maximum(columns.max(axis=1, keepdims=True), 1)
        places = [*(step - 0.5 for step in steps[::width]), steps[-1] + 0.5]
        left.pcolormesh(places, edges, darkness.T, cmap="Greys", vmax=1.3, rasterized=True)
        total = counts.sum(axis=0)
        right.stairs(total / total.sum(), edges, orientation="horizontal", fill=True, color="0.6")
    if clipping_norms:
        line = {"color": "tab:blue", "linestyle": "--", "path_effects": [OUTLINED]}
        left.plot(steps, clipping_norms, label="clipping norm: longer ones are clipped", **line)
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        right.axhline(clipping_norms[-1], **line)
    _legend_below(figure, _handles(left))


def draw_epsilon(figure: Figure, record: Record) -> None:
    """Draws ε of what was spent against δ."""
    axes = figure.subplots()
    axes.plot(DELTAS, _epsilons(record), "-", color="black", label="ε of what was spent")
    axes.plot([record.budget.delta], [epsilon(record)], "o", color="tab:blue", label="the claim")
    axes.set(xlabel="δ", ylabel="ε", xscale="log", title=record.name)
    axes.set_ylim(bottom=0)
    _legend_below(figure, _handles(axes))


def draw_tradeoff(figure: Figure, record: Record) -> None:
    """Draws the least type II error of an attacker at every type I error."""
    axes = figure.subplots()
    alphas = np.linspace(0, 1, 201)
    betas = np.zeros_like(alphas)
    for value, delta in zip(_epsilons(record), DELTAS, strict=True):
        if math.isfinite(value):
            betas = np.maximum(betas, 1 - delta - np.exp(value) * alphas)
            betas = np.maximum(betas, np.exp(-value) * (1 - delta - alphas))
    axes.plot(alphas, betas, "-", color="black", label="this run, at least")
    axes.plot(alphas, 1 - alphas, "--", color="0.5", label="perfect privacy")
    axes.set(
        xlabel="type I error: the record is thought to be in, and is not",
        ylabel="type II error: it is in, and thought not to be",
        title=record.name,
        aspect="equal",
    )
    _legend_below(figure, _handles(axes))


def draw_comparison(figure: Figure, records: Sequence[Record]) -> None:
    """Draws the training losses of several runs."""
    axes = figure.subplots()
    for i, record in enumerate(records):
        steps, losses = _losses(record)
        accuracy = record.results.get("test_accuracy")
        label = f"{record.name}: ε = {round_up(epsilon(record), 3):g}"
        if accuracy is not None:
            label += f", test accuracy {accuracy:.3f}"
        share = 0.65 * i / max(len(records) - 1, 1)
        style = STYLES[i % len(STYLES)]
        axes.plot(steps, _smoothed(losses), style, color=str(share), label=label)
    axes.set(xlabel="step", ylabel="training loss, smoothed")
    axes.set_ylim(bottom=0)
    _legend_below(figure, _handles(axes), columns=1)


def epsilon(record: Record) -> float:
    """ε of all steps that were charged."""
    return composition.epsilon(record.spent, record.budget.delta)


def _save(path: Path, draw: Callable[[Figure, Any], None], what: Any) -> Path:
    matplotlib.use("agg")
    figure = pyplot.figure(figsize=(7, 5.5), layout="constrained")
    draw(figure, what)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=130, format="png")
    pyplot.close(figure)
    write_private(path, drawn.getvalue())
    return path


def _handles(axes: Axes) -> list[Any]:
    return axes.get_legend_handles_labels()[0]


def _legend_below(figure: Figure, handles: Sequence[Any], columns: int = 4) -> None:
    """Puts the legend outside the axes, where it hides nothing."""
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def _scores(record: Record) -> tuple[list[int], list[float], list[float]]:
    found = list({score["step"]: score for score in record.scores}.values())
    return [s["step"] for s in found], [s["accuracy"] for s in found], [s["loss"] for s in found]


def _losses(record: Record) -> tuple[list[int], np.ndarray]:
    losses = [math.nan if m["loss"] is None else m["loss"] for m in record.metrics]
    return [m["step"] for m in record.metrics], np.array(losses)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Moving means over a twentieth of the run; empty batches are left out."""
    if not len(values):
        return values
    width = max(1, len(values) // 20)
    known = np.isfinite(values)
    kernel = np.ones(width)
    total = np.convolve(np.where(known, values, 0), kernel, "same")
    count = np.convolve(known, kernel, "same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _norm_counts(record: Record) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many norms each step has in each octave, `[steps, octaves]`, and the edges."""
    counts = np.zeros((len(record.metrics), len(NORM_BIN_EDGES) + 1))
    for row, m in zip(counts, record.metrics, strict=True):
        first, found = m["norm_counts"]
        row[first : first + len(found)] = found
    # The first and last bins have no end: they are drawn as wide as the others.
    ratio = NORM_BIN_EDGES[1] / NORM_BIN_EDGES[0]
    edges = [NORM_BIN_EDGES[0] / ratio, *NORM_BIN_EDGES, NORM_BIN_EDGES[-1] * ratio]
    starts = np.arange(0, counts.shape[1], BINS_PER_OCTAVE)
    return np.add.reduceat(counts, starts, axis=1), np.array([*np.take(edges, starts), edges[-1]])


def _epsilons(record: Record) -> list[float]:
    with warnings.catch_warnings():  # about δ above 1/N: here they are points of a curve, no claim
        warnings.simplefilter("ignore", UserWarning)
        return [composition.epsilon(record.spent, float(delta)) for delta in DELTAS]


def _epsilon_curve(record: Record) -> tuple[list[int], list[float]]:
    """ε against the steps of the run.

    At the end of a segment, ε also counts the steps that were charged but whose results are lost.
    """
    steps: list[int] = []
    spent: list[float] = []
    earlier: list[Mechanism] = []
    ends = [*record.starts[1:], math.inf]
    for mechanism, start, end in zip(record.spent, record.starts, ends, strict=True):
        kept = int(min(mechanism.steps, end - start))
        for count in sorted({round(kept * i / EPSILON_POINTS) for i in range(EPSILON_POINTS + 1)}):
            steps.append(start + count)
            parts = [*earlier, replace(mechanism, steps=count)]
            spent.append(composition.epsilon(parts, record.budget.delta))
        earlier.append(mechanism)
    return steps, spent
