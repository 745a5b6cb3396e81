"""The table of a report: what runs spent and how well they did. It is private."""

from collections.abc import Sequence

from rich.table import Table

from ...accounting.rounding import round_up, shown_delta
from .. import averages
from ..config import ClippingConfig
from ..run.files import Record
from . import figures


def compare(records: Sequence[Record]) -> Table:
    """Makes a table with one column for every run."""
    table = Table("", *(record.name for record in records), highlight=False)
    row = lambda name, tell: table.add_row(name, *(tell(record) for record in records))
    row("test accuracy", lambda r: _shown(r.results.get("test_accuracy"), ".4f"))
    row("of the parameters", lambda r: averages.describe(r.config.training.ema))
    row("test loss", lambda r: _shown(r.results.get("test_loss"), ".4f"))
    row("ε spent", lambda r: f"{round_up(figures.epsilon(r)):g} of {r.budget.epsilon:g}")
    row("δ", lambda r: f"{shown_delta(r.budget.delta):g}")
    row("steps charged", lambda r: f"{sum(m.steps for m in r.spent)}")
    row("segments", lambda r: f"{len(r.spent)}")
    row("noise multiplier", lambda r: f"{r.spent[-1].noise_multiplier:g}")
    row("sampling probability", lambda r: f"{r.spent[-1].sampling_probability:.4g}")
    row("clipping", lambda r: _clipping(r.config.clipping))
    row("model", lambda r: r.config.model.name)
    row("optimizer", lambda r: f"{r.config.training.optimizer} {r.config.training.learning_rate:g}")
    row("seconds", lambda r: _shown(r.results.get("seconds"), ".0f"))
    return table


def _clipping(config: ClippingConfig) -> str:
    if config.norms_from == "given":
        return f"{config.kind} {config.norm:g}"
    norm = f", the largest {config.norm:g}" if config.norms_from == "public" else ""
    return f"{config.kind}, norms from public records{norm}"


def _shown(value: float | None, spec: str) -> str:
    return "not known yet" if value is None else format(value, spec)
