"""The table of a report: what runs spent and how well they did. It is private."""

from collections.abc import Sequence

from rich.table import Table

from ...accounting.rounding import round_up, shown_delta
from .. import averages
from ..run.record import Record
from . import figures


def compare(records: Sequence[Record]) -> Table:
    """Makes a table with one column for every run."""
    table = Table("", *(record.name for record in records), highlight=False)
    row = lambda name, tell: table.add_row(name, *(tell(record) for record in records))
    scores = dict.fromkeys(name for r in records for name in r.results.get("scores", {}))
    for name in scores or ("scores",):
        row(f"test {name}", lambda r: _shown(r.results.get("scores", {}).get(name), ".4f"))
    row("of the parameters", lambda r: averages.describe(r.facts.ema))
    row("ε spent", lambda r: f"{round_up(figures.epsilon(r)):g} of {r.budget.epsilon:g}")
    row("δ", lambda r: f"{shown_delta(r.budget.delta):g}")
    row("steps charged", lambda r: f"{sum(m.steps for m in r.spent)}")
    row("segments", lambda r: f"{len(r.spent)}")
    row("noise multiplier", lambda r: f"{r.spent[-1].noise_multiplier:g}")
    row("sampling probability", lambda r: f"{r.spent[-1].sampling_probability:.4g}")
    row("clipping", _clipping)
    row("task", lambda r: r.facts.task.name)
    row("model", lambda r: "its owner's" if r.config is None else r.config.model.name)
    row("optimizer", _optimizer)
    row("seconds", lambda r: _shown(r.results.get("seconds"), ".0f"))
    return table


def _optimizer(record: Record) -> str:
    if record.config is None:
        return "its owner's"
    training = record.config.training
    return f"{training.optimizer} {training.learning_rate:g}"


def _clipping(record: Record) -> str:
    if record.config is None:
        return record.facts.mechanism.clipping.call
    config = record.config.clipping
    if config.norms_from == "given":
        return f"{config.kind} {config.norm:g}"
    norm = f", the largest {config.norm:g}" if config.norms_from == "public" else ""
    return f"{config.kind}, norms from public records{norm}"


def _shown(value: float | None, spec: str) -> str:
    return "not known yet" if value is None else format(value, spec)
