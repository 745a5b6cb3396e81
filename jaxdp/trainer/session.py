"""One call of the trainer, from options to exit status: open, train, release, report."""

import datetime
import json
import logging
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from ..datasets import feeding
from ..models.scores import make_scorer
from . import console as shown
from . import loop, metrics, scoring
from .config import Config
from .device import describe_device
from .release import parameters
from .release.claims import EarlierSegment, make_statement
from .release.statement import Statement
from .run import checkpoint, files, resume
from .run.ledger import Payment
from .setup import Run, resume_run, start_run
from .signals import StopRequest, stop_on_signals
from .step import TrainState


class Opened(NamedTuple):
    """A run whose folder is locked and whose ledger is open."""

    run: Run
    history: resume.History

    @property
    def folder(self) -> Path:
        return self.history.folder

    @property
    def private(self) -> Path:
        return self.history.folder / "private"


class Trained(NamedTuple):
    """The end of the steps.

    Attributes:
      state: after the last step.
      steps: number of steps that were paid for and begun, in the whole run.
      end: the first step that was not in the plan, or not in the budget.
      compile_seconds: time of the first step, which compiles.
      waiting_seconds: spent waiting for data.
    """

    state: TrainState
    steps: int
    end: int
    compile_seconds: float
    waiting_seconds: float


class Released(NamedTuple):
    """The content of `release/`."""

    params: object
    batch_stats: object | None
    statement: Statement


def train(config: Config) -> int:
    """Trains, writes the release, and only then scores it.

    Args:
      config: the settings; `config.resume` names a run to go on with.

    Returns:
      The exit status of the command: 0 if all went well, 1 after a failure that may have spent
      budget, 2 for wrong options, 130 if it was interrupted before the first step, 128 + signal
      if it was stopped.
    """
    start = time.monotonic()
    console = Console(highlight=False, markup=False)
    # Orbax logs whole tracebacks of failures. Here they are told in one line.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        stack.enter_context(checkpoint.without_leftovers())
        try:
            opened = _open(config, console, stack)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            console.print("Interrupted before the first step: nothing was spent or written.")
            return 130
        if opened is None:
            return 0
        try:
            with stop_on_signals(tell=shown.tell_stopping) as stop:
                trained = _train(opened, stop, console)
                released = _release(opened, trained, console)
            _report(opened, trained, released, start, console)
        except loop.NotFinite as error:
            cure = "Try a lower training.learning-rate: --resume goes on from the last checkpoint"
            print(f"error: {error}: nothing is released. {cure}", file=sys.stderr)
            return 1
        except OSError as error:
            folder = opened.folder
            print(
                f"error: {error}: stopped, what was spent stays charged. Make the folder {folder} "
                f"writable with room on its disk, then: python -m jaxdp.train --resume {folder}",
                file=sys.stderr,
            )
            return 1
        if stop.signal is None or trained.steps >= trained.end:
            return 0
        console.print(f"To go on: python -m jaxdp.train --resume {opened.folder}", soft_wrap=True)
        return 128 + stop.signal  # as a shell reports it: 130 for Ctrl-C, 143 for SIGTERM


def _open(config: Config, console: Console, stack: ExitStack) -> Opened | None:
    """Prepares a new or a stopped run, and shows its plan.

    Returns:
      None if there is nothing to train.

    Raises:
      ValueError: if anything is wrong. No budget is spent yet.
      KeyboardInterrupt: if it was interrupted.
    """
    console.print(f"jaxdp: {config.name}, on {describe_device()}")
    history = None if config.resume is None else _open_history(config, console, stack)
    # A signal during a compilation can be lost or crash it. So it is handled after this block.
    with stop_on_signals(shown.tell_not_started) as early:
        if history is None:
            run = start_run(config, console.print)
        else:
            run = resume_run(config, history, console.print)
    if early.requested:
        raise KeyboardInterrupt
    console.print(shown.describe_plan(run))
    if config.seed is not None:
        console.print("A seed was given: noise and sampling are reproducible: NOT PRIVATE.")
    if config.dry_run:
        console.print(shown.describe_cost(run))
        return None
    if history is not None:
        # Read now: a statement that is damaged must not cost the steps that are still to be taken.
        released = parameters.released_steps(history.folder)
        if released == history.ledger.steps:
            release = history.folder / "release"
            if history.step >= run.plan.steps:
                console.print(f"All steps were taken: the release is in {release}")
                return None
            if not resume.steps_left(history, run.plan, run.repeats):
                console.print(f"No step is left in the budget: the release is in {release}")
                return None
        return Opened(run, history)
    budget = resume.make_budget(run.plan)  # it may refuse: call it before anything is written
    folder = files.make_run_folder(config.name, config.output, datetime.datetime.now())
    stack.enter_context(files.locked(folder))
    history = resume.begin(folder, budget, run.plan, run.saved, run.state)
    stack.callback(history.close)
    return Opened(run, history)


def _open_history(config: Config, console: Console, stack: ExitStack) -> resume.History:
    folder = Path(config.resume or "")
    stack.enter_context(files.locked(folder))
    history = resume.open_history(folder, config.checkpoint.keep, console.print)
    stack.callback(history.close)
    return history


def _train(opened: Opened, stop: StopRequest, console: Console) -> Trained:
    """Takes the steps that are left and in the budget. Each is paid for before it is dispatched."""
    run, history = opened
    ledger, begun = history.ledger, history.step
    console.print(
        "Loss and clipping below are private numbers, without noise: keep them to yourself."
    )
    if run.config.resume is not None:
        _go_on(opened, console)
    end = resume.affordable_end(ledger, run.plan)
    if end < run.plan.steps:
        console.print(f"The budget ends before step {end + 1}: that is where the run will stop.")
    payment = Payment(ledger, begun, end)
    saver = checkpoint.PeriodicSaver(
        history.checkpoints, ledger, run.config.checkpoint.every_seconds, run.frozen
    )
    score = make_scorer(run.model, run.dataset)
    scorer = scoring.PeriodicScores(
        lambda state: score(params := run.released(state), run.statistics(params)),
        opened.private / "scores.jsonl",
        run.plan.steps,
        run.config.evaluations,
        console.print,
    )
    batches = feeding.Waiting(run.batches(begun, max(begun, end)))
    try:
        with (
            shown.step_display(console, end) as display,
            files.append_private(opened.private / "metrics.jsonl") as metrics_file,
        ):

            def watch(facts: metrics.Metrics) -> None:
                metrics.write_metrics(metrics_file, facts)
                display.show(facts)

            state = loop.train(
                run.train_step,
                run.state,
                batches,
                payment=payment,
                stop=stop,
                watch=watch,
                start=begun,
                visitors=(scorer, saver),  # in this order: what is saved has been scored
                refresh=run.before_step,
            )
    except BaseException:
        console.print(
            f"Failed: {ledger.steps} steps were spent, nothing is released. What was logged is in "
            f"{opened.private}"
        )
        raise
    if payment.count > begun:
        saver.visit(payment.count, state)
        history.checkpoints.wait()
    return Trained(state, payment.count, end, display.compile_seconds, batches.seconds)


def _go_on(opened: Opened, console: Console) -> None:
    """Removes the records of steps that are taken again. Opens a new segment if one is needed."""
    run, history = opened
    history.checkpoints.drop_after(history.step)
    for name in ("metrics.jsonl", "scores.jsonl"):
        resume.drop_metrics_after(opened.private / name, history.step)
    if not run.repeats:
        resume.open_segment(
            opened.folder, history.ledger, history.step, run.plan, run.saved, run.state
        )
    console.print(shown.describe_resume(history.ledger, history.step))


def _release(opened: Opened, trained: Trained, console: Console) -> Released:
    """Writes the parameters and the statement at once: a later failure can't lose them."""
    run, history = opened
    params = run.released(trained.state)
    aside = parameters.set_aside(opened.folder)
    if aside is not None:
        console.print(f"The release before this one is now in {aside}")
    batch_stats = run.statistics(params)
    parameters.save_params(opened.folder, params, batch_stats)
    clipping, adjacency = run.plan.clipping, run.plan.adjacency
    first_norms = clipping.init(run.state.params).clipping_norms
    *earlier, last = history.ledger.mechanisms()
    configs = resume.segment_configs(history)
    statement = make_statement(
        run.plan,
        run.config,
        run.dataset,
        last.steps,
        float(clipping.sensitivity(adjacency, first_norms)),
        [EarlierSegment(m, config) for m, config in zip(earlier, configs[:-1], strict=True)],
        batch_norm=batch_stats is not None,
    )
    parameters.save_statement(opened.folder, statement)
    return Released(params, batch_stats, statement)


def _report(
    opened: Opened, trained: Trained, released: Released, start: float, console: Console
) -> None:
    """Scores the release, and shows the results and what was spent."""
    run = opened.run
    scores = make_scorer(run.model, run.dataset)(released.params, released.batch_stats)
    scoring.write_scores(opened.private / "scores.jsonl", trained.steps, scores)
    results = {
        "test_accuracy": scores.accuracy,
        "test_loss": scores.loss,
        "steps": trained.steps,
        "seconds": round(time.monotonic() - start, 2),
        "seconds_of_first_step": round(trained.compile_seconds, 2),
        "seconds_waiting_for_data": round(trained.waiting_seconds, 2),
    }
    files.write_private(opened.private / "results.json", json.dumps(results, indent=2) + "\n")
    console.print(shown.result_table(run, released.statement, results, opened.folder))
