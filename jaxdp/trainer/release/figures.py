"""The figures of a report. They are private, and can be read in grey print."""

import functools
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
from ...accounting.tradeoffs import LEVELS
from ...dpsgd.sums import NORM_BIN_EDGES
from .. import averages
from ..run.files import write_private
from ..run.record import Record

EPSILON_POINTS = 16  # of a segment, in the curve of ε against steps

NORM_COLUMNS = 100  # at most, in the figure of norms; all stand for as many steps

BINS_PER_OCTAVE = 4

RAREST = 1e-4  # share of all norms: octaves at the ends that have less are left out

# Where ε is found: most points are where the trade-off curve bends.
DELTAS = np.concatenate([np.logspace(-12, -2, 16), np.geomspace(0.015, 0.8, 32)])

LARGEST_DELTA = 0.5  # in the figure of ε against δ

OUTLINED = patheffects.withStroke(linewidth=4, foreground="white")

SPENT = "ε of what was spent"

STYLES = ("-", "--", "-.", ":")

MARKERS = ("o", "s", "^", "D", "v")


def draw_run(record: Record, folder: Path | None = None) -> list[Path]:
    """Writes the figures of one run into a folder; None takes its private folder."""
    folder = record.folder / "private" if folder is None else folder
    return [
        _save(folder / name, draw, record, size)
        for name, draw, size in (
            ("training.png", draw_training, (7, 7)),
            ("norms.png", draw_norms, (7.5, 5.5)),
            ("epsilon.png", draw_epsilon, (7, 5)),
            ("tradeoff.png", draw_tradeoff, (5.5, 6)),
        )
    ]


def draw_runs(records: Sequence[Record], folder: Path | None = None) -> Path:
    """Writes the comparison into a folder; None takes the current one."""
    size = (10, 4.2 + 0.25 * len(records))
    return _save((folder or Path()) / "compared.png", draw_comparison, records, size)


def draw_training(figure: Figure, record: Record) -> None:
    """Draws the test scores, the loss and ε against steps."""
    score = _score_name([record])
    parts = figure.subplots(3 if score else 2, 1, sharex=True)
    *upper, lower, spent = parts
    steps, scores = _scores(record, score or "")
    for axes in upper:
        axes.plot(steps, scores, "o-", color="black", markersize=4, label=f"test {score}")
        axes.set(ylabel=f"test {score}")
    parts[0].set_title(f"{record.name}\nscored: {averages.describe(record.facts.ema)}")
    steps, losses = _losses(record)
    lower.plot(steps, losses, "-", color="0.75", linewidth=0.8, label="loss of a batch")
    lower.plot(steps, _smoothed(losses), "-", color="black", label="the same, smoothed")
    lower.plot(*_scores(record, "loss"), "s:", color="0.3", markersize=4, label="test loss")
    lower.set(ylabel="loss")
    lower.set_ylim(bottom=0)
    spent.plot(*_epsilon_curve(record), "-", color="tab:blue", label="ε spent")
    spent.axhline(record.budget.epsilon, color="tab:blue", linestyle=":", label="ε to spend")
    spent.set(xlabel="step", ylabel=f"ε at δ = {shown_delta(record.budget.delta):g}")
    spent.set_ylim(0, 1.15 * record.budget.epsilon)
    spent.set_xlim(left=0)
    spent.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    _legend_below(figure, [handle for axes in parts for handle in _handles(axes)], columns=3)


def draw_norms(figure: Figure, record: Record) -> None:
    """Draws the distribution of gradient norms, by step and of all steps, and the clipping norm."""
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    left.set(xlabel="step", ylabel="gradient norm", yscale="log")
    left.set_title(record.name)
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
        shares = columns / np.maximum(columns.sum(axis=1, keepdims=True), 1)
        places = [*(step - 0.5 for step in steps[::width]), steps[-1] + 0.5]
        # A few steps with nearly equal norms would leave the others white.
        top = float(np.quantile(shares[shares > 0], 0.98))
        mesh = left.pcolormesh(
            places, edges, shares.T, cmap="Greys", vmin=0, vmax=top, rasterized=True
        )
        bar = figure.colorbar(mesh, ax=[left, right], location="right", pad=0.02, extend="max")
        bar.set_label("share of the gradients of a step")
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
    shown = DELTAS <= LARGEST_DELTA
    axes.plot(DELTAS[shown], np.array(_epsilons(record))[shown], "-", color="black", label=SPENT)
    axes.plot([record.budget.delta], [epsilon(record)], "o", color="tab:blue", label="the claim")
    axes.set(xlabel="δ", ylabel="ε", xscale="log", title=record.name)
    axes.set_ylim(bottom=0)
    _legend_below(figure, _handles(axes))


def draw_tradeoff(figure: Figure, record: Record) -> None:
    """Draws how often an attacker must miss a record, at every rate of false alarms."""
    axes = figure.subplots()
    alphas = LEVELS
    betas = np.zeros_like(alphas)
    for value, delta in zip(_epsilons(record), DELTAS, strict=True):
        if math.isfinite(value):
            betas = np.maximum(betas, 1 - delta - np.exp(value) * alphas)
            betas = np.maximum(betas, np.exp(-value) * (1 - delta - alphas))
    axes.plot(alphas, betas, "-", color="black", label="this run, at least")
    axes.plot(alphas, 1 - alphas, "--", color="0.5", label="perfect privacy")
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xlabel="chance of a false alarm (α)",
        ylabel="least chance to miss the record (β)",
        title=f"{record.name}\nan attacker guesses whether a record was in",
        aspect="equal",
    )
    _legend_below(figure, _handles(axes))


def draw_comparison(figure: Figure, records: Sequence[Record]) -> None:
    """Draws the test score of several runs against steps, ε and time."""
    score = _score_name(records)
    parts = figure.subplots(1, 3, sharey=True)
    for i, record in enumerate(records):
        label = f"{record.name}: ε = {round_up(epsilon(record), 3):g}"
        steps, scores = _scores(record, score or "")
        if scores:
            label += f", test {score} {scores[-1]:.3f}"
        share = 0.85 * i / max(len(records) - 1, 1)
        look: dict[str, Any] = {
            "color": pyplot.get_cmap("viridis")(share),
            "linestyle": STYLES[i % len(STYLES)],
        }
        look |= {"marker": MARKERS[i % len(MARKERS)], "markersize": 4}
        parts[0].plot(steps, scores, label=label, **look)
        parts[1].plot(np.interp(steps, *_epsilon_curve(record)), scores, **look)
        times = _seconds(record, score or "")
        parts[2].plot(times, scores[len(scores) - len(times) :], **look)
    parts[0].set(xlabel="steps", ylabel=f"test {score or 'score'}")
    deltas = {f"{shown_delta(record.budget.delta):g}" for record in records}
    parts[1].set(xlabel=f"ε at δ = {deltas.pop()}" if len(deltas) == 1 else "ε at a run's own δ")
    parts[2].set(xlabel="seconds since the start")
    for axes in parts:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        axes.grid(color="0.9")
    for axes in parts[:2]:
        axes.set_xlim(left=0)
    _legend_below(figure, _handles(parts[0]), columns=1)


def epsilon(record: Record) -> float:
    """ε of all steps that were charged."""
    return composition.epsilon(record.spent, record.budget.delta)


def _save(
    path: Path,
    draw: Callable[[Figure, Any], None],
    what: Any,
    size: tuple[float, float] = (7, 5.5),
) -> Path:
    matplotlib.use("agg")
    figure = pyplot.figure(figsize=size, layout="constrained")
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


def _score_name(records: Sequence[Record]) -> str | None:
    """The score to draw: the first that is no loss, the same for all runs; None if none has any."""
    names = dict.fromkeys(name for r in records for line in r.scores for name in line)
    for known in ("step", "time", "loss"):
        names.pop(known, None)
    return next(iter(names), "loss" if any(record.scores for record in records) else None)


def _scores(record: Record, name: str) -> tuple[list[int], list[float]]:
    """The steps after which a score was taken, and the score."""
    found = {line["step"]: line[name] for line in record.scores if name in line}
    return [*found], [*found.values()]


def _seconds(record: Record, name: str) -> list[float]:
    """When scores were taken, in seconds since the last start; earlier ones are left out."""
    found = {line["step"]: line["time"] for line in record.scores if name in line}
    if not found or "seconds" not in record.results:
        return []
    start = max(found.values()) - record.results["seconds"]
    return [time - start for time in found.values() if time >= start]


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


def _epsilons(record: Record) -> tuple[float, ...]:
    """ε of what was spent, at every δ of `DELTAS`."""
    return _epsilons_of(tuple(record.spent), tuple(map(float, DELTAS)))


@functools.lru_cache(maxsize=1)  # two figures of a run show it
def _epsilons_of(spent: tuple[Mechanism, ...], deltas: tuple[float, ...]) -> tuple[float, ...]:
    with warnings.catch_warnings():  # about δ above 1/N: here they are points of a curve, no claim
        warnings.simplefilter("ignore", UserWarning)
        return tuple(composition.epsilon(spent, delta) for delta in deltas)


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
        # ε grows about as the root of the steps. It jumps at the first one.
        counts = {round(kept * (i / EPSILON_POINTS) ** 2) for i in range(EPSILON_POINTS + 1)}
        for count in sorted(counts | {min(1, kept)} if earlier else (counts | {1}) - {0}):
            steps.append(start + count)
            parts = [*earlier, replace(mechanism, steps=count)]
            spent.append(composition.epsilon(parts, record.budget.delta))
        earlier.append(mechanism)
    return steps, spent
