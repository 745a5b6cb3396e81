"""The table of docs/accuracy.md, in Markdown."""

from collections.abc import Callable, Mapping
from pathlib import Path

from .rows import Row
from .summary import Summary, margin, summarise

TITLES = (
    *("set, method", "ε", "δ", "ours: median (least to largest)", "theirs", "beaten"),
    *("steps", "batch", "minutes", "without privacy"),
)
NOT_RUN = "not run"
NOTHING = "–"

LEAST = 0.001  # seeds change more than this


def markdown(folder: Path, rows: Mapping[str, Row], tell: Callable[[str], object]) -> str:
    """Returns the table, and under it the command and the machine of every row.

    Args:
      folder: of the results.
      rows: by their names.
      tell: gets a line about every result that can't be used.
    """
    lines, notes = [TITLES, ("---",) * len(TITLES)], []
    for row in rows.values():
        plain = summarise(folder, row, None, tell)
        found = {epsilon: summarise(folder, row, epsilon, tell) for epsilon in row.epsilons}
        lines += [
            _line(row, epsilon, ours, plain)
            for epsilon, ours in found.items()
            if ours or _has_target(row, epsilon)
        ]
        notes.append(_note(row, [s for s in (*found.values(), plain) if s]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n\n" + "\n".join(notes)


def _has_target(row: Row, epsilon: float) -> bool:
    return (row.to_beat(epsilon) or row.within_at(epsilon)) is not None


def _line(row: Row, epsilon: float, ours: Summary | None, plain: Summary | None) -> tuple[str, ...]:
    own = (NOTHING, NOT_RUN, NOTHING, NOTHING, NOTHING, NOTHING)
    if ours is not None:
        run = ours.runs[0]
        own = (
            f"{run.delta:g}",
            accuracies(ours),
            verdict(row, epsilon, ours, plain),
            f"{run.steps:,}",
            f"{run.expected_batch_size:,g}",
            minutes(ours),
        )
    delta, accuracy, beaten, steps, batch, time = own
    return (
        *(f"{row.set}, {row.method}", f"{epsilon:g}", delta, accuracy, theirs(row, epsilon)),
        *(beaten, steps, batch, time, accuracies(plain) if plain else NOT_RUN),
    )


def accuracies(summary: Summary) -> str:
    """Returns the median, the least and the largest accuracy, and the number of seeds."""
    if len(summary.runs) == 1:
        return f"{summary.median:.4f} (one seed)"
    least, largest = min(summary.accuracies), max(summary.accuracies)
    return f"{summary.median:.4f} ({least:.4f} to {largest:.4f}, {len(summary.runs)} seeds)"


def theirs(row: Row, epsilon: float) -> str:
    """Returns what is to be beaten, with its source."""
    target = row.to_beat(epsilon)
    if target is not None:
        return f"{target.accuracy:g} ({target.source})"
    within = row.within_at(epsilon)
    if within is not None:
        return f"at most {within:g} below without privacy"
    return NOTHING


def verdict(row: Row, epsilon: float, ours: Summary, plain: Summary | None) -> str:
    """Returns whether the median beats what there is to beat, and by how much."""
    if not _has_target(row, epsilon):
        return NOTHING
    more = margin(row, epsilon, ours, plain)
    if more is None:
        return "without privacy is not run"
    # Compared as shown: test accuracies have four digits.
    more = round(more, 4)
    if abs(more) < LEAST:
        return f"equal ({more:+.4f})"
    return f"yes, by {more:.4f}" if more > 0 else f"fell short by {-more:.4f}"


def minutes(summary: Summary) -> str:
    """Returns the median time of a run."""
    time = summary.minutes
    return f"{time:.0f}" if time >= 9.5 else f"{time:.1f}"


def _note(row: Row, summaries: list[Summary]) -> str:
    runs = [run for summary in summaries for run in summary.runs]
    machines = sorted({f"{run.hardware}, JAX {run.jax}, jaxdp {run.jaxdp}" for run in runs})
    where = "; ".join(machines) or NOT_RUN
    return f"- {row.set}, {row.method}: `python -m benchmarks.accuracy run {row.name}` ({where})"
