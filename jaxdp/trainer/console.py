"""What a run prints on the terminal: its plan, its cost, its steps, its results."""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from ..accounting import guarantee
from ..accounting.rounding import round_up, shown_delta
from ..datasets import feeding
from ..dpsgd.noise import noise_norm
from . import averages, microbatches, public_norms
from .columns import folded
from .learner import shape_of_batch
from .metrics import Metrics
from .release.claims import epsilons
from .release.markdown import NO_PRIVACY, SAMPLINGS, labelled_epsilons
from .release.statement import Statement
from .run.ledger import Ledger
from .scoring import counted
from .setup import Run

PLAIN_LINES = 10  # number of lines about the steps, if there is no terminal


def describe_plan(run: Run) -> str:
    """The plan in a few lines, with all numbers that decide privacy and noise."""
    plan, state = run.plan, run.state
    noise = noise_norm(
        plan,
        plan.clipping.groups(state.params),
        jnp.asarray(np.asarray(state.privatize.clipping.clipping_norms)),  # also if it is shared
        run.job.options.allocation,
    )
    epsilon = plan.target_epsilon
    aim = "target ε" if epsilon is not None else "which costs ε"
    epsilon = round_up(plan.epsilon()) if epsilon is None else epsilon
    warned = f"\n{NO_PRIVACY}" if epsilon > guarantee.NO_PRIVACY else ""
    return (
        f"Plan: N = {plan.num_examples:,}, expected batch size {plan.expected_batch_size:g} "
        f"({describe_sampling(run)}), {plan.steps} steps, noise "
        f"multiplier {plan.noise_multiplier:g}, {describe_clipping(run)}, expected norm of the "
        f"noise on the mean gradient {float(noise):.3g}, {aim} = {epsilon:g} at "
        f"δ = {shown_delta(plan.delta):g}{warned}"
    )


def describe_sampling(run: Run) -> str:
    """How the records of a step are chosen, in a few words."""
    plan = run.plan
    if plan.sampling == "poisson":
        return f"sampling probability {plan.sampling_probability:.4g}"
    if plan.sampling == "shuffled":
        return f"{plan.mechanism().epochs_begun} shuffled epochs"
    return SAMPLINGS[plan.sampling]


def describe_clipping(run: Run) -> str:
    """What is clipped, and to which norms, in a few words."""
    plan, options = run.plan, run.job.clipping_options
    groups = plan.clipping.groups(run.state.params)
    norms = run.state.privatize.clipping.clipping_norms
    low, high = float(np.min(norms)), float(np.max(norms))
    text = f"clipping norm {high:.6g}"
    if low < high:
        text = f"clipping norms from {low:.3g} to {high:.3g}"
    kind = plan.clipping.kind if options is None else options.kind
    if kind != "individual":
        text = f"{kind} {text}"
    if len(groups.names) > 1:
        layers = "layers" if options is None or options.groups is None else "groups of layers"
        each = "each of " if low == high else ""
        text += f" for {each}{len(groups.names)} {layers}"
    if plan.num_units is not None:
        text += f" of the mean gradient of {plan.num_units} unit(s)"
    return text


def describe_cost(run: Run) -> str:
    """The lines that --dry-run adds to the plan: how gradients are computed, the memory, and ε."""
    private = run.job.data.private
    batch, mask = shape_of_batch(private, run.plan, run.layout)
    program = run.train_step.lower(run.state, batch, mask, run.placed)
    memory = program.compile().memory_analysis()
    resident = feeding.resolve(run.job.options.placement, private) == "device"
    records = private.nbytes if resident else 0
    size = "unknown: this device does not tell"
    if memory is not None:
        total = memory.temp_size_in_bytes + memory.argument_size_in_bytes + records
        size = f"{total / 2**20:.1f} MiB, of which {records / 2**20:.1f} MiB are the data"
    parts = 1 if run.layout is None else run.layout.parts
    chosen = run.saved.microbatches
    gradients = microbatches.describe(run.job, run.learner, run.plan, chosen, parts)
    spent = epsilons(run.plan, run.plan.steps)
    which = "the device" if run.layout is None else "each device"
    return (
        f"{gradients}\nMemory on {which}: {size}.\nε after {run.plan.steps} steps: "
        + ", ".join(f"{value:g} by {name.upper()}" for name, value in spent.items())
        + ".\nDry run: nothing was trained, spent or written."
    )


def describe_data(run: Run, width: int) -> str:
    """Which records are private, public and test, and where every constant comes from."""
    job, plan = run.job, run.plan
    data, prepared = job.data, job.preprocessing
    told = {
        "private": f"protected; their number N = {plan.num_examples:,} is published",
        "public": "not protected",
        "test": "declared public" if data.test_is_public else "private: so are their scores",
    }
    kind = "" if data.source == data.name else f" ({data.source})"
    rows = [("records", f"{data.name}{kind}")]
    for use, what in told.items():
        records = getattr(data, use)
        which = "none"
        if records is not None:
            which = f"{data.rules[use]}: {len(records):,} records, {what}"
        rows.append((use, which))
    if data.canaries is not None:
        made_up = f"{len(data.canaries.included):,} of the private records are made up, from public"
        rows.append(("canaries", f"{made_up} facts alone; each takes part by a secret coin"))
    constants = "a part of the task: they must not come from private records"
    if prepared is not None:
        constants = prepared.description
    rows.append(("constants", constants))
    rows += [("", f"{name}: {what}") for name, what in data.fields.items()]
    rows.append(("clipping norms", public_norms.describe(job)))
    rows.append(("δ", f"{shown_delta(plan.delta):g}"))
    indent = max(len(name) for name, _ in rows) + 2
    lines = []
    for name, text in rows:
        first, *others = folded(text, max(20, width - indent))
        lines += [f"{name:{indent}}{first}", *(f"{'':{indent}}{line.strip()}" for line in others)]
    return "\n".join(line.rstrip() for line in lines)


def result_table(run: Run, statement: Statement, results: dict[str, Any], folder: Path) -> Table:
    """The results of the run and what it has spent, for its owner."""
    data, options = run.job.data, run.job.options
    public = "declared public" if data.test_is_public else "PRIVATE: so is this number"
    table = Table(show_header=False, highlight=False)
    table.add_column()
    table.add_column(overflow="fold")  # paths can be long, and must not be cut
    for name, score in results["scores"].items():
        assert data.test is not None
        table.add_row(f"test {name}", f"{score:.4f} on {counted(data.test)}, {public}")
    table.add_row("of the parameters", averages.describe(options.ema))
    if data.window is not None and "loss" in results["scores"]:
        perplexity = math.exp(results["scores"]["loss"])
        table.add_row("test perplexity", f"{perplexity:.3f} a character")
    delta = shown_delta(statement.delta)
    for label, value in labelled_epsilons(statement):
        table.add_row(f"ε by {label}", f"{value:g} at δ = {delta:g}")
    noise, mu = run.plan.noise_multiplier, statement.gaussian_dp.mu
    table.add_row("noise multiplier", f"{noise:g}, μ = {mu:g} in Gaussian DP")
    if statement.claimed_epsilon > guarantee.NO_PRIVACY:
        table.add_row("privacy", NO_PRIVACY)
    if statement.reproducible:
        table.add_row("privacy", "NONE: noise and sampling are reproducible from the seed")
    early = ", stopped early" if statement.steps < statement.steps_planned else ""
    table.add_row("steps", f"{statement.steps} of {statement.steps_planned}{early}")
    first = results["seconds_of_first_step"]
    table.add_row("wall time", f"{results['seconds']:.1f} s, {first:.1f} s of it compiling")
    shared = "not private" if statement.reproducible else "may be shared"
    table.add_row(shared, f"{folder / 'release'}")
    table.add_row("keep private", f"{folder / 'private'}")
    return table


def describe_resume(ledger: Ledger, begun: int) -> str:
    """The step at which a run goes on, and what it has spent so far."""
    return (
        f"Resuming after step {begun}, in segment {len(ledger.segments)}: {ledger.steps} steps are "
        f"charged, ε = {round_up(ledger.epsilon()):g} of {ledger.budget.epsilon:g}."
    )


def tell_not_started() -> None:
    """Like `tell_stopping`, for the time before there is anything to release."""
    os.write(2, b"\nStopping before the first step. Ctrl-C again to kill.\n")


def tell_stopping() -> None:
    """Says that the run is stopping. A signal handler calls it, so it takes no lock."""
    os.write(2, b"\nStopping after this step; the release is written next. Ctrl-C again to kill.\n")


class StepDisplay:
    """Shows the steps of a run, and measures the first one, which compiles."""

    def __init__(self, console: Console, steps: int) -> None:
        self.compile_seconds = 0.0
        self._console = console
        self._steps = steps
        self._start = time.monotonic()
        self._compiling = Progress(
            SpinnerColumn(),
            TextColumn("Compiling the train step ... {task.elapsed:.0f} s"),
            console=console,
            transient=True,
        )
        self._compiling.add_task("")
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=console,
        )
        self._task = self._progress.add_task("", total=steps, facts="", visible=False)

    def open(self) -> None:
        """Says that the train step compiles; in a terminal with a clock, as it may take long."""
        if self._console.is_terminal:
            self._compiling.start()
        else:
            self._console.print("Compiling the train step, then training ...")

    def close(self) -> None:
        """Leaves the last line as it is."""
        self._compiling.stop()
        self._progress.stop()

    def show(self, metrics: Metrics) -> None:
        """Shows the metrics of one more step."""
        facts = "empty batch"
        if metrics.clipped_fraction is not None:
            facts = "measures, no update"
        if metrics.loss is not None:
            facts = f"loss {metrics.loss:.3f}, clipped {metrics.clipped_fraction:.0%}"
        if not self.compile_seconds:  # the first step of this process
            self.compile_seconds = time.monotonic() - self._start
        if self._console.is_terminal:
            if self._compiling.live.is_started:
                self._compiling.stop()
                self._progress.start()
            self._progress.update(self._task, completed=metrics.step, facts=facts, visible=True)
            return
        every = max(1, self._steps // PLAIN_LINES)
        if metrics.step % every == 0 or metrics.step in (1, self._steps):
            seconds = time.monotonic() - self._start
            width = len(str(self._steps))
            self._console.print(
                f"step {metrics.step:{width}d}/{self._steps}  {facts}  {seconds:.1f} s"
            )


@contextmanager
def step_display(console: Console, steps: int) -> Iterator[StepDisplay]:
    """Shows that the train step compiles, then the steps while the context is open."""
    display = StepDisplay(console, steps)
    display.open()
    try:
        yield display
    finally:
        display.close()
