"""The command `python -m jaxdp.train`: trains a private classifier and writes its release."""

import datetime
import itertools
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from . import (
    accounting,
    augmentation,
    averaging,
    clipping,
    data,
    feeding,
    freezing,
    release,
    segments,
    statement,
)
from . import config as configs
from .accounting import Unit
from .ledger import Ledger
from .plan import Plan
from .privatize import noise_norm, privatize

try:
    import flax.linen as nn
    import orbax.checkpoint
    import sklearn
    import tyro
    from rich.console import Console
    from rich.table import Table

    from . import checkpoints, display, models, payment, runs, training
except ModuleNotFoundError as error:
    if error.name is None or error.name.startswith("jaxdp"):
        raise
    sys.exit(
        f"python -m jaxdp.train needs {error.name}, which is not installed: "
        "pip install 'jaxdp[train]' (in a checkout: pip install -e '.[train]')"
    )

del orbax, sklearn, tyro  # only needed to be there


@dataclass(frozen=True)
class Run:
    """Everything that is decided before the first step."""

    config: configs.Config
    dataset: data.Dataset
    plan: Plan
    model: nn.Module
    state: training.State
    train_step: jax.stages.Wrapped
    saved: segments.SavedSegment
    frozen: freezing.Params  # the parameters that are not trained
    repeats: bool = False  # whether it goes on in the segment that it was stopped in

    def released(self, state: training.State) -> freezing.Params:
        """What is scored and released: averages if there are any, and the frozen parameters."""
        params, (_, optimizer_state) = state
        average = averaging.averaged(optimizer_state)
        return freezing.merge(params if average is None else average, self.frozen)

    def batches(
        self, start: int = 0, end: int | None = None
    ) -> Iterator[tuple[feeding.Batch, np.ndarray]]:
        """Samples the records of every step and brings them to the device."""
        data_config, secrets = self.config.data, self.saved.secrets
        count = (self.plan.steps if end is None else end) - start
        return feeding.feed(
            self.dataset.private,
            itertools.islice(self.plan.batches(secrets.sampling, start), count),
            placement=data_config.placement,
            augment=augmentation.crop_and_flip if data_config.augment == "crop_flip" else None,
            key=secrets.augmentation,
            start=start,
        )


def main(args: Sequence[str]) -> int:
    """Runs the command with the given arguments and returns the exit status."""
    start = time.monotonic()
    console = Console(highlight=False, markup=False)
    # Orbax logs whole tracebacks of what is told in one line here.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        try:
            config = configs.parse(args, runs.saved_config)
            console.print(f"jaxdp: {config.name}, on {describe_device()}")
            history = None
            if config.resume is not None:
                folder = Path(config.resume)
                stack.enter_context(runs.locked(folder))
                history = runs.open_history(folder, config.checkpoint.keep, console.print)
                stack.callback(history.close)
            # A signal inside a compilation can be lost, or crash it: it waits for the next line.
            with training.stop_on_signals(tell_not_started) as early:
                run = prepare(config, console.print, history)
            if early.requested:
                raise KeyboardInterrupt
            console.print(describe_plan(run))
            if config.dry_run:
                console.print(describe_cost(run))
                return 0
            if history is not None and history.step >= run.plan.steps and is_released(folder):
                console.print(f"All steps were taken: the release is in {folder / 'release'}")
                return 0
            if history is None:
                now = datetime.datetime.now()
                folder = release.make_run_folder(config.name, config.output, now)
                stack.enter_context(runs.locked(folder))
                history = runs.begin(folder, run.plan, run.saved, run.state)
                stack.callback(history.close)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            console.print("Interrupted before the first step: nothing was spent or written.")
            return 130
        try:
            return train_and_release(run, history, config.resume is not None, console, start)
        except training.NotFinite as error:
            cure = "Try a lower training.learning-rate: --resume goes on from the last checkpoint"
            print(f"error: {error}: nothing is released. {cure}", file=sys.stderr)
        except OSError as error:
            print(
                f"error: {error}: stopped, what was spent stays charged. Make the folder {folder} "
                f"writable with room on its disk, then: python -m jaxdp.train --resume {folder}",
                file=sys.stderr,
            )
        return 1


def prepare(
    config: configs.Config,
    tell: Callable[[str], None] = print,
    history: "runs.History | None" = None,
) -> Run:
    """Loads the data, solves the plan and builds the model.

    Args:
      config: the settings.
      tell: gets a line about what takes long or is not as expected.
      history: of the run to go on with; its budget binds.

    Raises:
      ValueError: for any number or name that makes no sense, before a budget is spent.
    """
    dataset = data.load(config.data, tell)
    if config.data.augment == "crop_flip" and dataset.private.inputs.ndim != 4:
        raise ValueError("data.augment is crop_flip, and the records are no images: choose none")
    delta = config.plan.delta
    if delta is None and history is not None:
        delta = history.ledger.budget.delta
    plan = Plan(
        num_examples=len(dataset.private),
        expected_batch_size=config.plan.expected_batch_size,
        steps=config.plan.steps,
        clipping=make_clipping(config.clipping),
        num_units=config.clipping.units if is_batch(config.clipping) else None,
        epsilon=config.plan.epsilon,
        delta=delta,
        adjacency=config.plan.adjacency,
    )
    fingerprint = segments.make_fingerprint(config, dataset.private, plan)
    if history is None:
        secrets = segments.draw_secrets(config.seed)
        return build(config, dataset, plan, segments.SavedSegment(config, fingerprint, secrets))

    runs.check_budget(history, config, plan)
    saved, frozen = replace(history.last, config=config), None
    if history.newest is not None:
        drawn = build(config, dataset, plan, saved).frozen
        _, arrays = checkpoints.split_frozen(history.newest.arrays)
        frozen = checkpoints.from_arrays(arrays, {checkpoints.FROZEN: drawn})[checkpoints.FROZEN]
    run = build(config, dataset, plan, saved, frozen)
    state = runs.restore(history, config, run.state, lambda line: None)
    if runs.repeats(history, fingerprint, state):
        return replace(run, state=state, repeats=True)
    changed = segments.changes(history.last.fingerprint, fingerprint)
    tell(
        "Not the computation that was stopped "
        f"({changed or 'the checkpoint is of an earlier segment'}): steps that were charged "
        "stay charged, and a new segment begins, with new secrets."
    )
    saved = segments.SavedSegment(config, fingerprint, runs.next_secrets(history))
    run = build(config, dataset, plan, saved, frozen)
    return replace(run, state=runs.restore(history, config, run.state, tell))


def build(
    config: configs.Config,
    dataset: data.Dataset,
    plan: Plan,
    saved: segments.SavedSegment,
    frozen: freezing.Params | None = None,
) -> Run:
    """Builds the model and its first state; `frozen` parameters come from a checkpoint, if any."""
    model = models.make_model(config.model, dataset)
    params, drawn = freezing.split(
        models.init_params(model, saved.secrets.init, dataset), config.training.frozen
    )
    frozen = drawn if frozen is None else frozen
    full_loss = models.make_loss(model, dataset)
    loss = lambda params, x, y: full_loss(freezing.merge(params, frozen), x, y)
    privatizer = privatize(plan, key=saved.secrets.noise, allocation=config.clipping.allocation)
    optimizer = training.make_optimizer(config.training, plan.steps)
    return Run(
        config=config,
        dataset=dataset,
        plan=plan,
        model=model,
        state=training.init_state(params, privatizer, optimizer),
        train_step=training.make_train_step(
            loss if frozen else full_loss,
            privatizer,
            optimizer,
            config.training.microbatch_size,
            plan.clipping.unit,
        ),
        saved=saved,
        frozen=frozen,
    )


def is_batch(config: configs.ClippingConfig) -> bool:
    return config.kind == "batch" or config.unit == "batch"


def make_clipping(config: configs.ClippingConfig) -> clipping.Clipping:
    """Builds the clipping that the config describes."""
    unit: Unit = "batch" if is_batch(config) else "example"
    layer = None if config.layer == "model" else config.layer
    if config.kind == "normalised":
        return clipping.clip_normalised(config.norm, stability=config.stability, unit=unit)
    if config.kind == "quantile":
        return clipping.clip_quantile(
            config.norm,
            target=config.quantile,
            learning_rate=config.quantile_rate,
            count_std=config.count_std,
            layer=layer,
            unit=unit,
        )
    if config.kind == "layerwise" and layer is not None:
        return clipping.clip_layerwise(config.norm, layer=layer, unit=unit)
    return (
        clipping.clip_batch(config.norm)
        if unit == "batch"
        else clipping.clip_individual(config.norm)
    )


def train_and_release(
    run: Run, history: "runs.History", resumed: bool, console: Console, start: float
) -> int:
    """Trains, writes the release, and only then looks at how good it is."""
    folder, private = history.folder, history.folder / "private"
    if run.config.seed is not None:
        console.print("A seed was given: noise and sampling are reproducible: NOT PRIVATE.")
    console.print(
        "Loss and clipping below are private numbers, without noise: keep them to yourself."
    )

    # Asked before the state is donated.
    bounds = run.state[1][0].clipping.clipping_bounds
    sensitivity = float(run.plan.clipping.sensitivity(run.plan.adjacency, bounds))
    keeper, ledger, begun = history.checkpoints, history.ledger, history.step
    if resumed:
        keeper.drop_after(begun)
        runs.drop_metrics_after(private / "metrics.jsonl", begun)
        if not run.repeats:
            runs.open_segment(folder, ledger, begun, run.plan, run.saved, run.state)
        console.print(describe_resume(ledger, begun))
    end = runs.affordable_end(ledger, run.plan)
    if end < run.plan.steps:
        console.print(f"The budget ends before step {end + 1}: that is where the run will stop.")
    spent = payment.LedgerPayment(ledger, begun, end)
    saver = checkpoints.PeriodicSaver(
        keeper, ledger, run.config.checkpoint.every_seconds, run.frozen
    )
    batches = feeding.Waiting(run.batches(begun, max(begun, end)))
    with training.stop_on_signals(tell=tell_stopping) as stop:
        try:
            with (
                display.step_display(console, end) as shown,
                (private / "metrics.jsonl").open("a") as metrics_file,
            ):

                def watch(metrics: training.Metrics) -> None:
                    training.write_metrics(metrics_file, metrics)
                    shown.show(metrics)

                state = training.train(
                    run.train_step,
                    run.state,
                    batches,
                    spent=spent,
                    stop=stop,
                    watch=watch,
                    start=begun,
                    saver=saver,
                )
        except BaseException:
            console.print(
                f"Failed: {ledger.steps} steps were spent, nothing is released. What was logged is "
                f"in {private}"
            )
            raise
        if spent.count > begun:
            saver.save(spent.count, state)
            keeper.wait()
        # The results come first, so that no later failure can cost them.
        params = run.released(state)
        aside = release.set_aside(folder)
        if aside is not None:
            console.print(f"The release before this one is now in {aside}")
        release.save_params(folder, params)
        *earlier, last = ledger.mechanisms()
        facts = statement.make_statement(
            run.plan, run.config, run.dataset, last.steps, sensitivity, earlier
        )
        release.save_statement(folder, facts, statement.as_markdown(facts))

    scores = models.evaluate(run.model, run.dataset, params)
    results = {
        "test_accuracy": scores.accuracy,
        "test_loss": scores.loss,
        "steps": spent.count,
        "seconds": round(time.monotonic() - start, 2),
        "seconds_of_first_step": round(shown.compile_seconds, 2),
        "seconds_waiting_for_data": round(batches.seconds, 2),
    }
    (private / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    console.print(result_table(run, facts, results, folder))
    if stop.signal is not None and spent.count < end:
        return 128 + stop.signal  # as a shell reports it: 130 for Ctrl-C, 143 for SIGTERM
    return 0


def describe_resume(ledger: Ledger, begun: int) -> str:
    return (
        f"Resuming after step {begun}, in segment {len(ledger.segments)}: {ledger.steps} steps are "
        f"charged, ε = {statement.round_up(ledger.epsilon()):g} of {ledger.budget.epsilon:g}."
    )


def is_released(folder: Path) -> bool:
    return (folder / "release").is_dir()


def tell_not_started() -> None:
    """As `tell_stopping`, before there is anything to release."""
    os.write(2, b"\nStopping before the first step. Ctrl-C again to kill.\n")


def tell_stopping() -> None:
    """Called from a signal handler, so it writes without any lock."""
    os.write(2, b"\nStopping after this step; the release is written next. Ctrl-C again to kill.\n")


def describe_device() -> str:
    device = jax.devices()[0]
    if device.platform == "cpu":
        return f"CPU with {os.cpu_count()} cores"
    return f"{jax.device_count()} x {device.device_kind}"


def describe_plan(run: Run) -> str:
    """The plan in one line: all the numbers that decide privacy and noise."""
    plan, (params, (private_state, _)) = run.plan, run.state
    noise = noise_norm(
        plan,
        plan.clipping.groups(params),
        private_state.clipping.clipping_bounds,
        run.config.clipping.allocation,
    )
    return (
        f"Plan: N = {plan.num_examples:,}, expected batch size {plan.expected_batch_size:g} "
        f"(sampling probability {plan.sampling_probability:.4g}), {plan.steps} steps, noise "
        f"multiplier {plan.noise_multiplier:g}, {describe_clipping(run)}, expected norm of the "
        f"noise on the mean gradient {float(noise):.3g}, target ε = {plan.target_epsilon:g} at "
        f"δ = {statement.round_up(plan.delta, 3):g}"
    )


def describe_clipping(run: Run) -> str:
    config = run.config.clipping
    groups = run.plan.clipping.groups(run.state[0])
    text = f"clipping norm {config.norm:g}"
    if config.kind != "individual":
        text = f"{config.kind} {text}"
    if len(groups.names) > 1:
        text += f" for each of {len(groups.names)} layers"
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
    table.add_row("test accuracy", f"{results['test_accuracy']:.4f} on {total} records, {public}")
    if run.dataset.center is None:
        table.add_row("test perplexity", f"{math.exp(results['test_loss']):.3f} a character")
    delta = statement.round_up(facts["delta"], 3)
    for name, value in facts["epsilon"].items():
        table.add_row(f"ε by {statement.LABELS[name]}", f"{value:g} at δ = {delta:g}")
    if next(iter(facts["epsilon"].values())) > accounting.NO_PRIVACY:
        table.add_row("privacy", statement.NO_PRIVACY)
    if facts["reproducible"]:
        table.add_row("privacy", "NONE: noise and sampling are reproducible from the seed")
    stopped = ", stopped early" if facts["steps"] < facts["steps_planned"] else ""
    table.add_row("steps", f"{facts['steps']} of {facts['steps_planned']}{stopped}")
    first = results["seconds_of_first_step"]
    table.add_row("wall time", f"{results['seconds']:.1f} s, {first:.1f} s of it compiling")
    table.add_row("may be shared", f"{folder / 'release'}")
    table.add_row("keep private", f"{folder / 'private'}")
    return table


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    if status != 0:
        # All is written. What was cut short (a compilation, a checkpoint) has threads that would
        # crash or print tracebacks while Python takes itself down.
        os._exit(status)
    sys.exit(0)
