"""The planner's figure: noise by batch size, and the trade-off curve of the best batch size."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from ..accounting.noise_table import NoiseTable
from ..accounting.rounding import shown_delta
from ..accounting.tradeoffs import LEVELS, tradeoff


def draw(table: NoiseTable, path: Path) -> None:
    """Writes the figure, in the format that the ending of the file's name gives."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    norms, curve = figure.subplots(1, 2, width_ratios=[5, 4])

    rows = sorted(table.rows, key=lambda row: row.batch_size)
    sizes = [row.batch_size for row in rows]
    norms.plot(sizes, [row.noise_norm for row in rows], "o-", color="0.0", label="noise, expected")
    norms.plot(
        sizes,
        [row.largest_gradient for row in rows],
        "--",
        color="0.5",
        label="clipped mean gradient, at most",
    )
    best = next(row for row in rows if row.batch_size == table.best)
    norms.plot(
        best.batch_size,
        best.noise_norm,
        "o",
        color="0.0",
        markersize=12,
        fillstyle="none",
        label=f"best ratio, {best.signal_to_noise:.3g}",
    )
    norms.set(xscale="log", yscale="log", xlabel="expected batch size", ylabel="norm on the update")
    norms.set_xticks(sizes, [f"{size:g}" for size in sizes])
    norms.xaxis.set_minor_formatter(NullFormatter())
    for axis in (norms.yaxis.set_major_formatter, norms.yaxis.set_minor_formatter):
        axis(lambda norm, _: f"{norm:g}" if f"{norm:e}"[0] in "125" else "")
    norms.set_title(f"ε = {table.epsilon:g} at δ = {shown_delta(table.delta):g}", fontsize="medium")
    norms.legend(frameon=False, fontsize="small")

    curve.plot(LEVELS, 1 - LEVELS, "--", color="0.5", label="perfect privacy")
    betas = tradeoff(table.mechanism(best), LEVELS)
    curve.plot(LEVELS, betas, color="0.0", label=f"batch size {best.batch_size:g}")
    curve.set(
        xlim=(0, 1),
        ylim=(0, 1),
        aspect="equal",
        xlabel="chance of a false alarm (α)",
        ylabel="least chance to miss the record (β)",
    )
    curve.set_title("any attacker's errors", fontsize="medium")
    curve.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)
