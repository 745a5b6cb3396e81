"""The command `python -m jaxdp.report RUN [RUN2 ...]`: pictures of a run, or several compared.

Everything comes from the files of the runs, and is private, but for what a release says.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from . import averaging
from .config import ClippingConfig
from .record import Record, load_record
from .statement import round_up

try:
    from rich.console import Console
    from rich.table import Table

    from . import pictures
except ModuleNotFoundError as error:
    if error.name is None or error.name.startswith("jaxdp"):
        raise
    sys.exit(
        f"python -m jaxdp.report needs {error.name}, which is not installed: "
        "pip install 'jaxdp[train]' (in a checkout: pip install -e '.[train]')"
    )


def main(args: Sequence[str]) -> int:
    """Runs the command with the given arguments and returns the exit status."""
    if not args or any(arg.startswith("-") for arg in args):
        print(
            "usage: python -m jaxdp.report RUN [RUN2 ...]\n\nPrints a table of runs (their "
            "folders), and draws into private/: of one run its\ntraining, gradient norms, ε(δ) and "
            "trade-off curve; of several, their losses."
        )
        return 0 if args and args[0] in ("-h", "--help") else 2
    try:
        records = [load_record(Path(arg)) for arg in args]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console = Console(highlight=False, markup=False)
    console.print(compare(records))
    try:
        written = (
            pictures.draw_run(records[0]) if len(records) == 1 else [pictures.draw_runs(records)]
        )
    except OSError as error:
        print(f"error: {error}: the pictures can't be written, make room for them", file=sys.stderr)
        return 1
    for path in written:
        print(path)
    return 0


def compare(records: Sequence[Record]) -> Table:
    """One column for every run."""
    table = Table("", *(record.name for record in records), highlight=False)
    row = lambda name, tell: table.add_row(name, *(tell(record) for record in records))
    row("test accuracy", lambda r: _shown(r.results.get("test_accuracy"), ".4f"))
    row("of the parameters", lambda r: averaging.describe(r.config.training.ema))
    row("test loss", lambda r: _shown(r.results.get("test_loss"), ".4f"))
    row("ε spent", lambda r: f"{round_up(pictures.epsilon(r)):g} of {r.budget.epsilon:g}")
    row("δ", lambda r: f"{round_up(r.budget.delta, 3):g}")
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
    if config.bounds == "given":
        return f"{config.kind} {config.norm:g}"
    norm = f", the largest {config.norm:g}" if config.bounds == "public" else ""
    return f"{config.kind}, norms from public records{norm}"


def _shown(value: float | None, spec: str) -> str:
    return "not known yet" if value is None else format(value, spec)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
