"""What a run says of itself: its plan, its cost, its results."""

import math
import os
from pathlib import Path
from typing import Any

import jax
from rich.table import Table

from ..accounting import guarantee
from ..accounting.rounding import round_up
from ..datasets import feeding
from ..dpsgd.noise import noise_norm
from . import averages
from .release import statement
from .run.ledger import Ledger
from .setup import Run


def describe_device() -> str:
    device = jax.devices()[0]
    if device.platform == "cpu":
        return f"CPU with {os.cpu_count()} cores"
    return f"{jax.device_count()} x {device.device_kind}"


def describe_plan(run: Run) -> str:
    """The plan in a few lines: all the numbers that decide privacy and noise."""
    plan, (params, (private_state, _)) = run.plan, run.state
    noise = noise_norm(
        plan,
        plan.clipping.groups(params),
        private_state.clipping.clipping_bounds,
        run.config.clipping.allocation,
    )
    epsilon = plan.target_epsilon
    aim = "target ε" if epsilon is not None else "which costs ε"
    epsilon = round_up(plan.epsilon()) if epsilon is None else epsilon
    warned = f"\n{statement.NO_PRIVACY}" if epsilon > guarantee.NO_PRIVACY else ""
    return (
        f"Plan: N = {plan.num_examples:,}, expected batch size {plan.expected_batch_size:g} "
        f"({describe_sampling(run)}), {plan.steps} steps, noise "
        f"multiplier {plan.noise_multiplier:g}, {describe_clipping(run)}, expected norm of the "
        f"noise on the mean gradient {float(noise):.3g}, {aim} = {epsilon:g} at "
        f"δ = {round_up(plan.delta, 3):g}{warned}"
    )


def describe_sampling(run: Run) -> str:
    plan = run.plan
    if plan.sampling == "poisson":
        return f"sampling probability {plan.sampling_probability:.4g}"
    if plan.sampling == "shuffled":
        return f"{plan.mechanism().epochs_begun} shuffled epochs"
    return statement.SAMPLINGS[plan.sampling]


def describe_clipping(run: Run) -> str:
    config = run.config.clipping
    groups = run.plan.clipping.groups(run.state[0])
    text = f"clipping norm {config.norm:g}"
    if config.bounds != "given":
        bounds = run.state[1][0].clipping.clipping_bounds
        text = f"clipping norms from {float(bounds.min()):.3g} to {float(bounds.max()):.3g}"
    if config.kind != "individual":
        text = f"{config.kind} {text}"
    if len(groups.names) > 1:
        kind = "layers" if config.groups is None else "groups of layers"
        text += f" for {'' if config.bounds != 'given' else 'each of '}{len(groups.names)} {kind}"
    if run.plan.num_units is not None:
        text += f" of the mean gradient of {run.plan.num_units} unit(s)"
    return text


def describe_cost(run: Run) -> str:
    """What --dry-run adds to the plan: memory, as the compiler sees it, and ε."""
    batch, mask = next(run.batches())
    memory = run.train_step.lower(run.state, batch, mask).compile().memory_analysis()
    private = run.dataset.private
    resident = feeding.resolve(run.config.data.placement, private) == "device"
    records = private.inputs.nbytes + private.labels.nbytes if resident else 0
    size = "unknown: this device does not tell"
    if memory is not None:
        total = memory.temp_size_in_bytes + memory.argument_size_in_bytes + records
        size = f"{total / 2**20:.1f} MiB, of which {records / 2**20:.1f} MiB are the data"
    epsilons = statement.epsilons(run.plan, run.plan.steps)
    return (
        f"Memory on the device: {size}.\nε after {run.plan.steps} steps: "
        + ", ".join(f"{value:g} by {name.upper()}" for name, value in epsilons.items())
        + ".\nDry run: nothing was trained, spent or written."
    )


def result_table(run: Run, facts: dict[str, Any], results: dict[str, Any], folder: Path) -> Table:
    config, total = run.config, len(run.dataset.test)
    public = "declared public" if config.data.test_is_public else "PRIVATE: so is this number"
    table = Table(show_header=False, highlight=False)
    table.add_column()
    table.add_column(overflow="fold")  # paths can be long, and are needed whole
    table.add_row("test accuracy", f"{results['test_accuracy']:.4f} on {total} records, {public}")
    table.add_row("of the parameters", averages.describe(config.training.ema))
    if run.dataset.center is None:
        table.add_row("test perplexity", f"{math.exp(results['test_loss']):.3f} a character")
    delta = round_up(facts["delta"], 3)
    for label, value in statement.labelled(facts["epsilon"]):
        table.add_row(f"ε by {label}", f"{value:g} at δ = {delta:g}")
    noise = run.plan.noise_multiplier
    table.add_row(
        "noise multiplier", f"{noise:g}, μ = {facts['gaussian_dp']['mu']:g} in Gaussian DP"
    )
    if next(iter(facts["epsilon"].values())) > guarantee.NO_PRIVACY:
        table.add_row("privacy", statement.NO_PRIVACY)
    if facts["reproducible"]:
        table.add_row("privacy", "NONE: noise and sampling are reproducible from the seed")
    early = ", stopped early" if facts["steps"] < facts["steps_planned"] else ""
    table.add_row("steps", f"{facts['steps']} of {facts['steps_planned']}{early}")
    first = results["seconds_of_first_step"]
    table.add_row("wall time", f"{results['seconds']:.1f} s, {first:.1f} s of it compiling")
    table.add_row("may be shared", f"{folder / 'release'}")
    table.add_row("keep private", f"{folder / 'private'}")
    return table


def describe_resume(ledger: Ledger, begun: int) -> str:
    return (
        f"Resuming after step {begun}, in segment {len(ledger.segments)}: {ledger.steps} steps are "
        f"charged, ε = {round_up(ledger.epsilon()):g} of {ledger.budget.epsilon:g}."
    )


def tell_not_started() -> None:
    """As `tell_stopping`, before there is anything to release."""
    os.write(2, b"\nStopping before the first step. Ctrl-C again to kill.\n")


def tell_stopping() -> None:
    """Called from a signal handler, so it writes without any lock."""
    os.write(2, b"\nStopping after this step; the release is written next. Ctrl-C again to kill.\n")
