"""The figure of docs/accuracy.md: accuracy against ε, a panel for every data set."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from .rows import BAO, DE, TRAMER, Published, Row
from .summary import Summary, summarise

TICKS = (1, 2, 3, 4, 8)
# One for every row of a panel.
LINES: tuple[tuple[str, Literal["-", "--"]], ...] = (
    ("0.0", "-"),
    ("0.45", "-"),
    ("0.0", "--"),
    ("0.45", "--"),
)  # colour and style
MARKERS = {TRAMER: "^", BAO: "s", DE: "D"}
# Where a point has its number, in points (1/72 inch).
NUMBERS = {TRAMER: (6, -3), BAO: (-10, -14), DE: (6, -3)}
LAYOUT: list[Any] = [
    ["Fashion-MNIST", "MNIST", "IMDB reviews"],
    ["CIFAR-10", "CIFAR-10", "Adult"],
]
# For the legend, below the data: this share of their height for every line of it, and once more.
ROOM = 0.08
APART = 1.04  # how far points of the same ε are moved to the sides, as a factor


def draw(folder: Path, rows: Mapping[str, Row], tell: Callable[[str], object]) -> Figure:
    """Draws ours as lines with bars from the least to the largest seed, and theirs as points.

    Args:
      folder: of the results.
      rows: by their names.
      tell: gets a line about every result that can't be used.

    Raises:
      ValueError: if no row has a result.
    """
    found = {
        row.name: {
            epsilon: summary
            for epsilon in row.epsilons
            if (summary := summarise(folder, row, epsilon, tell))
        }
        for row in rows.values()
    }
    if not any(found.values()):
        raise ValueError(f"there is no result in {folder}: python -m benchmarks.accuracy run ROW")
    figure = Figure(figsize=(9, 7), layout="constrained")
    panels = figure.subplot_mosaic(LAYOUT)
    for name, axes in panels.items():
        members = [row for row in rows.values() if row.set == name]
        for i, row in enumerate(members):
            shift = APART ** (i - (len(members) - 1) / 2)
            color, style = LINES[i]
            _draw_ours(axes, row.method, found[row.name], color, style, shift)
            _draw_theirs(axes, row.theirs, color, shift)
            plain = summarise(folder, row, None, tell)
            if row.within is not None and plain is not None:
                axes.axhline(plain.median, color="0.5", linestyle=":", label="without privacy")
        axes.set(xscale="log", xlim=(0.75, 11), title=name)
        axes.set_xticks(TICKS, [str(tick) for tick in TICKS])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom - ROOM * (1 + len(members)) * (top - bottom), top)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(loc="lower right", frameon=False, fontsize="small")
        axes.set_xlabel("ε")
    for line in LAYOUT:
        panels[line[0]].set_ylabel("test accuracy")
    sources = [
        axes.plot([], [], marker, color="0.3", fillstyle="none", linestyle="", label=source)[0]
        for source, marker in MARKERS.items()
    ]
    figure.legend(handles=sources, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_ours(
    axes: Axes,
    label: str,
    found: Mapping[float, Summary],
    color: str,
    style: Literal["-", "--"],
    shift: float,
) -> None:
    if not found:
        return
    axes.errorbar(
        [epsilon * shift for epsilon in found],
        [summary.median for summary in found.values()],
        yerr=[
            [summary.median - min(summary.accuracies) for summary in found.values()],
            [max(summary.accuracies) - summary.median for summary in found.values()],
        ],
        label=label,
        color=color,
        linestyle=style,
        marker="o",
        markersize=4,
        capsize=2,
    )


def _draw_theirs(axes: Axes, theirs: Sequence[Published], color: str, shift: float) -> None:
    for published in theirs:
        place = (published.epsilon * shift, published.accuracy)
        axes.plot(*place, MARKERS[published.source], color=color, fillstyle="none", zorder=3)
        axes.annotate(
            f"{published.accuracy:g}",
            place,
            xytext=NUMBERS[published.source],
            textcoords="offset points",
            fontsize="small",
            color=color,
            path_effects=[withStroke(linewidth=2, foreground="1.0")],
        )
