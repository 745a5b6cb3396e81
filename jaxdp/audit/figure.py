"""The picture of an audit: the claimed trade-off curve, and what attackers reached."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..accounting.gdp import gaussian_tradeoff
from ..accounting.tradeoffs import LEVELS
from .bounds import Errors, clopper_pearson

POINTS = 15
LIMIT = 0.025  # the chance that one end of one interval is wrong


def draw(claimed_mu: float, measured: str, errors: Errors, path: str | Path) -> None:
    """Writes the picture, in the format that the ending of the file's name gives.

    A point is an attacker, with 95 % intervals of its two errors, each on its own.

    Args:
      claimed_mu: μ of the claimed curve.
      measured: the label of the points.
      errors: of the attackers.
      path: of the file.
    """
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axes = figure.subplots()
    claim = gaussian_tradeoff(claimed_mu, LEVELS)
    axes.fill_between(LEVELS, 0, claim, color="0.92", label="not as private as claimed")
    axes.plot(LEVELS, claim, color="0.0", label=f"claimed: μ = {claimed_mu:.3g}")
    axes.plot(LEVELS, 1 - LEVELS, "--", color="0.5", label="perfect privacy")
    order = np.argsort(errors.false_alarms)
    chosen = order[np.unique(np.linspace(0, len(order) - 1, POINTS).astype(int))]
    x, y = (np.asarray(counts)[chosen] for counts in errors[:2])
    intervals = []
    for counts in (x, y):
        lower, upper = clopper_pearson(counts, errors.trials, LIMIT)
        share = counts / errors.trials
        intervals.append(np.maximum(0, [share - lower, upper - share]))
    axes.errorbar(
        x / errors.trials,
        y / errors.trials,
        xerr=intervals[0],
        yerr=intervals[1],
        fmt="o",
        markersize=3,
        color="0.0",
        elinewidth=1,
        label=f"measured: {measured}",
    )
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1),
        aspect="equal",
        xlabel="chance of a false alarm (α)",
        ylabel="chance to miss the record (β)",
    )
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)
