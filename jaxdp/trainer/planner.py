"""The noise planner of `python -m jaxdp.plan`: options in, a table or a figure out."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from ..accounting.noise_table import NoiseRow, NoiseTable, plan_noise
from ..accounting.rounding import round_up, shown_delta
from ..types import Accountant, Adjacency, Sampling, Unit
from . import command_line, parsing
from .clipping_options import make_clipping
from .command import make_job
from .device import check_device
from .planner_figure import draw

COMMAND = "python -m jaxdp.plan"
HELP = "Prints how much noise ε needs, by batch size. CONFIG.py sets what is not given."
EXAMPLES = """examples:
  python -m jaxdp.plan configs/digits_cnn.py --epsilon 1
  python -m jaxdp.plan --num-examples 60000 --num-parameters 7840 --epochs 10 \\
      --batch-sizes 256 1024 4096 --plot noise.png"""
DROPPED = ("ε by\nRDP", "noise\nstd", "longest\nmean", "noise\nnorm")  # first, for want of room
_WIDE = Console(width=1000)
FORMATS = (".png", ".pdf", ".svg")


@dataclass(frozen=True)
class Options:
    num_examples: int
    """N, the number of private records."""

    num_parameters: int
    """Number of parameters that are trained."""

    batch_sizes: tuple[float, ...]
    """Expected batch sizes to compare."""

    epsilon: float = 3.0
    """Target ε."""

    delta: float | None = None
    """δ, below 1/N. None: N^-1.1."""

    epochs: float | None = None
    """How often a record takes part, on average. The number of steps is rounded up."""

    steps: int | None = None
    """Number of updates. Give either this or epochs."""

    clipping_norm: float = 1.0
    """Clipping norm C. For layers that are clipped separately: root of the sum of their squares."""

    unit: Unit = "example"
    """What is clipped: every example's gradient, or the mean gradient of a batch unit."""

    units: int | None = None
    """With unit batch: the number of units into which a step's records are sorted. None: 1."""

    sampling: Sampling = "poisson"
    """How the records of a step are chosen."""

    adjacency: Adjacency = "add_remove"
    """Which neighbouring data sets the guarantee compares."""

    accountant: Accountant | None = None
    """The accountant by which ε meets the target. None: the tightest sound one."""

    plot: Path | None = None
    """Draw the norms by batch size, and the trade-off curve, into this file: .png, .pdf, .svg."""

    json: bool = False
    """Print JSON instead of the table."""


def solve(given: Options) -> NoiseTable:
    """Solves the noise for every batch size."""
    return plan_noise(
        num_examples=given.num_examples,
        num_parameters=given.num_parameters,
        batch_sizes=given.batch_sizes,
        epsilon=given.epsilon,
        delta=given.delta,
        epochs=given.epochs,
        steps=given.steps,
        clipping_norm=given.clipping_norm,
        unit=given.unit,
        num_units=given.units,
        sampling=given.sampling,
        adjacency=given.adjacency,
        accountant=given.accountant,
    )


def show(table: NoiseTable, console: Console) -> None:
    """Prints a table with its explanation and its warnings."""
    console.print(describe(table))
    shown, left_out = as_table(table, console.width)
    console.print(shown)
    if left_out:
        console.print(
            f"No room for: {', '.join(left_out)}. Make the terminal wider, or use --json."
        )
    console.print(
        "Noise std and norm: on the mean gradient. Longest mean: its norm if all clipped gradients "
        "point one way. Ratio: longest mean over noise norm, * the largest."
    )
    for warning in table.warnings:
        console.print(f"warning: {warning}.")


def parse(args: Sequence[str]) -> Options:
    """Reads the command line `[CONFIG.py] [OPTIONS]`; the options overrule the file.

    Raises:
      ValueError: for a config file that is missing or wrong, and for wrong or missing options.
      SystemExit: for --help.
    """
    if parsing.wants_help(args):
        parsing.show_help(Options, f"{COMMAND} [CONFIG.py]", HELP, EXAMPLES)
    values, others = command_line.read(args, Options, COMMAND)
    plot = values.get("plot")
    if plot is not None and plot.suffix not in FORMATS:
        raise ValueError(f"plot is {plot}: end the name in {', '.join(FORMATS)}")
    if plot is not None and not plot.parent.is_dir():
        raise ValueError(f"{plot} can't be written: name a file in a folder that exists")
    if others:
        default = from_config(parsing.only_config(others))
        if "steps" in values and "epochs" not in values:
            values["epochs"] = None  # they come from the file: the user gave steps instead
        return command_line.replaced(default, values)
    required = ("num_examples", "num_parameters", "batch_sizes")
    if missing := [f"--{command_line.shown(name)}" for name in required if name not in values]:
        raise ValueError(f"{' and '.join(missing)} not given: give numbers, or a config file")
    return Options(**values)


def from_config(path: str) -> Options:
    """Makes options from a config file: its epochs, and its batch size times powers of 2.

    Raises:
      ValueError: for a file that is missing or wrong, or settings that the planner does not know.
    """
    tell = lambda line: print(line, file=sys.stderr)
    config = parsing.load_config(path)
    check_device()
    job, clipping = make_job(config, tell), make_clipping(config.clipping)
    record = job.data.private.zero()
    params = jax.eval_shape(lambda key: job.task.init(key, record), jax.random.key(0))
    groups = clipping.groups(params)
    if config.plan.epsilon is None or config.plan.sampling != "poisson":
        raise ValueError(
            f"{path} gives a noise multiplier or another sampling than Poisson, and the planner "
            "needs a target ε with Poisson sampling: give it numbers instead of the file, see "
            "`python -m jaxdp.plan --help`"
        )
    if config.clipping.norms_from != "given":
        raise ValueError(
            f"{path}: clipping.norms-from is {config.clipping.norms_from!r}, so the clipping norms "
            "are not known beforehand: `python -m jaxdp.train --dry-run` prints them and the noise"
        )
    if config.clipping.allocation == "dimension" and len(groups.names) > 1:
        raise ValueError(
            f"{path}: clipping.allocation is 'dimension', which the planner does not know: its "
            "noise norm is at most that of 'proportional', which you can plan with"
        )
    if config.clipping.kind == "quantile":
        tell("note: the clipping norm of the first step, and no noise for its counts, are assumed.")
    n, size = len(job.data.private), config.plan.expected_batch_size
    return Options(
        num_examples=n,
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        batch_sizes=tuple(
            sorted({size, *(float(min(max(round(size * 2.0**k), 1), n)) for k in range(-4, 4))})
        ),
        epsilon=config.plan.epsilon,
        delta=config.plan.delta,
        epochs=config.plan.steps * size / n,
        clipping_norm=config.clipping.norm
        * (1 if clipping.joint else math.sqrt(len(groups.names))),
        unit=clipping.unit,
        units=config.clipping.units if clipping.unit == "batch" else None,
        adjacency=config.plan.adjacency,
    )


def save_plot(table: NoiseTable, path: Path) -> None:
    """Draws the table.

    Raises:
      ValueError: if the file can't be written, or its ending is not a known format.
    """
    try:
        draw(table, path)
    except OSError as error:
        raise ValueError(
            f"{path} can't be written ({error.strerror}): name a file in a folder that exists"
        ) from None


def describe(table: NoiseTable) -> str:
    """Says in a sentence what the table shows."""
    clipped = "every example's gradient"
    if table.unit == "batch":
        clipped = f"the mean gradient of {table.num_units} unit(s) a step"
    return (
        f"Noise for ε = {table.epsilon:g} at δ = {shown_delta(table.delta):g}, "
        f"by {table.accountant.upper()}: "
        f"{table.num_examples:,} records, {table.num_parameters:,} parameters, {clipped} clipped "
        f"to {table.clipping_norm:g}, {table.sampling} sampling, {table.adjacency}."
    )


def as_table(table: NoiseTable, width: int = 80) -> tuple[Table, list[str]]:
    """The table for a terminal, and the columns that it has no room for. No number is cut."""
    epsilon = lambda value: "-" if value is None else f"{round_up(value, 4):g}"
    best = lambda row: "*" if row.batch_size == table.best else ""
    columns: dict[str, Callable[[NoiseRow], str]] = {
        "batch\nsize": lambda row: f"{row.batch_size:g}",
        "\nsteps": lambda row: f"{row.steps}",
        "noise\nmultiplier": lambda row: f"{row.noise_multiplier:g}",
        "noise\nstd": lambda row: f"{row.noise_std:.3g}",
        "noise\nnorm": lambda row: f"{row.noise_norm:.3g}",
        "longest\nmean": lambda row: f"{row.largest_gradient:.3g}",
        "\nratio": lambda row: f"{best(row)}{row.signal_to_noise:.3g}",
        "ε by\nPLD": lambda row: epsilon(row.epsilon_pld),
        "ε by\nRDP": lambda row: epsilon(row.epsilon_rdp),
    }
    left_out: list[str] = []
    while True:
        shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, highlight=False)
        for heading in columns:
            shown.add_column(heading, justify="right", no_wrap=True)
        for row in table.rows:
            shown.add_row(*(tell(row) for tell in columns.values()))
        if not columns or Measurement.get(_WIDE, _WIDE.options, shown).maximum <= width:
            return shown, left_out
        last = next((name for name in DROPPED if name in columns), next(reversed(columns)))
        del columns[last]
        left_out.append(" ".join(last.split()))
