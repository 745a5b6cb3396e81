"""One run, from a job to its release: open, train, release, score."""

import dataclasses
import datetime
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from ..datasets import feeding
from ..dpsgd import processes
from ..dpsgd.devices import held
from ..tasks.task import variables_of
from ..types import PyTree, Tell
from . import console as shown
from . import distributed, loop, metrics, scoring
from .device import describe_device
from .job import Job, RunOptions
from .release import parameters
from .release.claims import make_statement
from .release.model import NotExported, export_task
from .release.statement import Statement
from .run import checkpoint, files, resume
from .run.canaries import save_canaries
from .run.fingerprint import check_same_facts
from .run.ledger import Payment
from .setup import Run, resume_run, start_run
from .signals import StopRequest, stop_on_signals
from .step import TrainState

Prepare = Callable[[resume.History | None, Tell], Job]
"""Makes the job. It gets the history of a stopped run, whose records must be the same."""

BAD_ROWS = 20  # that a dry run shows

Watch = Callable[[metrics.Metrics], None]


class Opened(NamedTuple):
    """A run that is prepared.

    Attributes:
      run: the run.
      files: its files, which are locked and open; None: a dry run has made none, or another process
        has them.
      left: whether there are steps to take.
    """

    run: Run
    files: resume.History | None
    left: bool

    @property
    def history(self) -> resume.History:
        """Its files. Only the process that has them needs them, and no dry run does."""
        assert self.files is not None
        return self.files

    @property
    def folder(self) -> Path:
        return self.history.folder

    @property
    def private(self) -> Path:
        return self.folder / "private"


class Trained(NamedTuple):
    """The end of the steps.

    Attributes:
      state: after the last step.
      steps: number of steps that were paid for and begun, in the whole run.
      end: the first step that was not in the plan, or not in the budget.
      signal: the signal that asked to stop, if one did.
      compile_seconds: time of the first step, which compiles.
      waiting_seconds: spent waiting for data.
    """

    state: TrainState
    steps: int
    end: int
    signal: int | None
    compile_seconds: float
    waiting_seconds: float

    @property
    def stopped_by(self) -> int | None:
        """The signal that stopped it before its end."""
        return self.signal if self.steps < self.end else None


class Released(NamedTuple):
    """The content of `release/`, without the program."""

    params: PyTree
    batch_stats: PyTree | None
    statement: Statement


@contextmanager
def opened(prepare: Prepare, options: RunOptions, console: Console) -> Iterator[Opened]:
    """Prepares a new or a stopped run, shows its plan, and opens its files.

    Raises:
      ValueError: if anything is wrong. No budget is spent yet.
      KeyboardInterrupt: if it was interrupted.
    """
    distributed.check_alone()
    with ExitStack() as stack:
        stack.enter_context(checkpoint.without_tracebacks())
        yield _open(prepare, options, console, stack)


def _open(prepare: Prepare, options: RunOptions, console: Console, stack: ExitStack) -> Opened:
    console.print(f"jaxdp: {options.name}, on {describe_device()}")
    check_same_facts("the options", dataclasses.asdict(options))
    history, resumes = None, options.resume is not None
    if resumes and processes.is_first():
        history = _open_history(options, console, stack)
    # A signal during a compilation can be lost or crash it. So it is handled after this block.
    with stop_on_signals(shown.tell_not_started) as early:
        job = prepare(history, console.print)
        processes.check_all("the job", None)  # one may take much longer to load its data
        tell = console.print
        run = resume_run(job, history, tell) if resumes else start_run(job, tell)
    if early.requested:
        raise KeyboardInterrupt
    console.print(shown.describe_plan(run))
    if options.seed is not None:
        console.print("A seed was given: noise and sampling are reproducible: NOT PRIVATE.")
    if options.dry_run:
        console.print(shown.describe_data(run, console.width))
        _list_bad_rows(run, None, console)
        console.print(shown.describe_cost(run))
        return Opened(run, history, left=False)
    if resumes:
        return Opened(run, history, _has_steps_left(run, history, console))
    budget = resume.make_budget(run.plan)  # it may refuse: call it before anything is written
    state = held(run.state)
    if not processes.is_first():
        return Opened(run, None, left=True)
    folder = files.make_run_folder(
        options.name, options.output, datetime.datetime.now(), numbered=options.numbered
    )
    stack.enter_context(files.locked(folder))
    save_canaries(folder, job.data)
    history = resume.begin(folder, budget, run.plan, run.saved, state, options.checkpoint.keep)
    stack.callback(history.close)
    _list_bad_rows(run, history, console)
    return Opened(run, history, left=True)


def _list_bad_rows(run: Run, history: resume.History | None, console: Console) -> None:
    """Lists the rows that can't be used in a file of the run; after a dry run, on the terminal."""
    found = [
        f"{split}, row {row}: {reason}"
        for split, rows in run.job.data.bad_rows.items()
        for row, reason in sorted(rows.items())
    ]
    if not found:
        return
    told = "1 row can't be used, and is"
    if len(found) > 1:
        told = f"{len(found)} rows can't be used, and are"
    if history is None:
        more = [] if len(found) <= BAD_ROWS else ["..."]
        console.print("\n".join([f"{told} in no batch:", *found[:BAD_ROWS], *more]))
        return
    path = history.folder / "private" / "bad_rows.txt"
    files.write_private(path, "\n".join(found) + "\n")
    console.print(f"{told} in no batch: see {path}")


def _open_history(options: RunOptions, console: Console, stack: ExitStack) -> resume.History:
    folder = Path(options.resume or "")
    stack.enter_context(files.locked(folder))
    history = resume.open_history(folder, options.checkpoint.keep, console.print)
    stack.callback(history.close)
    return history


def _has_steps_left(run: Run, history: resume.History | None, console: Console) -> bool:
    def left() -> bool:
        assert history is not None
        _list_bad_rows(run, history, console)
        return _is_step_left(run, history, console)

    return distributed.first("whether a step is left", left)


def _is_step_left(run: Run, history: resume.History, console: Console) -> bool:
    # Read now: a statement that is damaged must not cost the steps that are still to be taken.
    if parameters.released_steps(history.folder) != history.ledger.steps:
        return True
    release = history.folder / "release"
    if history.step >= run.plan.steps:
        console.print(f"All steps were taken: the release is in {release}")
        return False
    if not resume.steps_left(history, run.plan, run.repeats):
        console.print(f"No step is left in the budget: the release is in {release}")
        return False
    return True


def train(opened: Opened, console: Console, watchers: Sequence[Watch] = ()) -> Trained:
    """Takes the steps that are left and in the budget. Each is paid for before it is dispatched.

    In several processes, only the first has files; the others take the steps with it.

    Args:
      opened: the run.
      console: shows the steps.
      watchers: get the metrics of every step, which are private.
    """
    with stop_on_signals(shown.tell_stopping) as stop:
        if opened.files is None:
            return _follow(opened.run, stop)
        return _train(opened, opened.files, stop, console, watchers)


def _train(
    opened: Opened,
    history: resume.History,
    stop: StopRequest,
    console: Console,
    watchers: Sequence[Watch],
) -> Trained:
    run = opened.run
    options = run.job.options
    ledger = history.ledger
    console.print(
        "Loss and clipping below are private numbers, without noise: keep them to yourself."
    )
    if options.resume is not None:
        _go_on(opened, console)
    steps = _Steps(run, stop, history)
    if steps.end < run.plan.steps:
        console.print(
            f"The budget ends before step {steps.end + 1}: that is where the run will stop."
        )
    saver = checkpoint.Saver(history.checkpoints, ledger, run.frozen)
    scorer = scoring.PeriodicScores(
        lambda state: run.score(run.variables(run.released(state))),
        opened.private / "scores.jsonl",
        console.print,
    )
    try:
        with (
            shown.step_display(console, steps.end) as display,
            files.append_private(opened.private / "metrics.jsonl") as metrics_file,
        ):
            told = False

            def watch(facts: metrics.Metrics) -> None:
                nonlocal told
                metrics.write_metrics(metrics_file, facts)
                display.show(facts)
                if facts.loss is not None and math.isnan(facts.loss) and not told:
                    told = True
                    console.print(
                        f"The loss of a record is NaN at step {facts.step}: look for a label or an "
                        "input that it can't take. The steps go on, and each costs ε."
                    )
                for watcher in watchers:
                    watcher(facts)

            state = steps.take(watch, scorer.visit, saver.visit)
    except BaseException:
        console.print(
            f"Failed: {ledger.steps} steps were spent, nothing is released. What was logged is in "
            f"{opened.private}"
        )
        raise
    if steps.payment.count > steps.begun:
        saver.visit(steps.payment.count, state)
        history.checkpoints.wait()
    return steps.trained(state, display.compile_seconds)


def _follow(run: Run, stop: StopRequest) -> Trained:
    """Takes the steps of another process's run with it."""
    if run.job.options.resume is not None and not run.repeats:
        held(run.state)  # as process 0 does, in `_go_on`
    steps = _Steps(run, stop, None)
    nothing = lambda step, state: None
    return steps.trained(steps.take(lambda facts: None, nothing, nothing), 0.0)


class _Steps:
    """The steps of a run, in all its processes alike: process 0 decides what is in them."""

    def __init__(self, run: Run, stop: StopRequest, history: resume.History | None) -> None:
        def span() -> tuple[int, int]:
            assert history is not None
            return history.step, resume.affordable_end(history.ledger, run.plan)

        self.begun, self.end = distributed.first("the steps to take", span)
        ledger = None if history is None else history.ledger
        self.payment = Payment(ledger, self.begun, self.end)
        self._run, self._stop = run, stop
        self._batches = feeding.Waiting(run.batches(self.begun, max(self.begun, self.end)))

    def take(self, watch: Watch, score: loop.Visit, save: loop.Visit) -> TrainState:
        """Takes them. Returns the last state, as this process can read it."""
        run, options = self._run, self._run.job.options
        distributed.pass_on(self._stop)
        at_end_of_block = self.payment.may_stop if processes.several() else lambda step: True
        scores_due = scoring.evenly(run.plan.steps, options.evaluations)
        clock = checkpoint.Clock(options.checkpoint.every_seconds, at_end_of_block)

        def save_in_turn(step: int, state: TrainState) -> None:
            save(step, state)
            clock.restart()

        with closing(self._batches):  # its threads end, also after a failure
            state = loop.train(
                run.take_step,
                run.state,
                self._batches,
                payment=self.payment,
                stop=lambda: distributed.first("whether to stop", lambda: self._stop.requested),
                watch=watch,
                start=self.begun,
                # In this order: what is saved has been scored.
                visitors=(loop.Visitor(scores_due, score), loop.Visitor(clock.due, save_in_turn)),
                refresh=run.before_step,
                hold=held,
            )
        return held(state)

    def trained(self, state: TrainState, compile_seconds: float) -> Trained:
        """The end of them."""
        count, seconds = self.payment.count, self._batches.seconds
        return Trained(state, count, self.end, self._stop.signal, compile_seconds, seconds)


def _go_on(opened: Opened, console: Console) -> None:
    """Removes the records of steps that are taken again. Opens a new segment if one is needed."""
    run, history = opened.run, opened.history
    history.checkpoints.drop_after(history.step)
    for name in ("metrics.jsonl", "scores.jsonl"):
        resume.drop_metrics_after(opened.private / name, history.step)
    if not run.repeats:
        state = held(run.state)
        resume.open_segment(opened.folder, history.ledger, history.step, run.plan, run.saved, state)
    console.print(shown.describe_resume(history.ledger, history.step))


def release(opened: Opened, trained: Trained, console: Console) -> Released:
    """Writes the parameters and the statement at once: a later failure can't lose them."""
    run, history = opened.run, opened.history
    params = run.released(trained.state)
    aside = parameters.set_aside(opened.folder)
    if aside is not None:
        console.print(f"The release before this one is now in {aside}")
    batch_stats = run.statistics(params)
    program = None
    try:
        program = export_task(run.job.task, params, batch_stats, run.job.data.real)
    except NotExported as error:
        console.print(f"The release can't predict by itself: {error}")
    parameters.save_params(opened.folder, params, batch_stats, program)
    statement = make_statement(
        run.plan, resume.spent_segments(history), has_statistics=batch_stats is not None
    )
    parameters.save_statement(opened.folder, statement)
    return Released(params, batch_stats, statement)


def report(
    opened: Opened, trained: Trained, released: Released, start: float, console: Console
) -> scoring.Scores:
    """Scores the release, and shows the results and what was spent.

    `start` is the time at which the run began, by `time.monotonic`.
    """
    run = opened.run
    scores = run.score(variables_of(released.params, released.batch_stats))
    if scores:
        scoring.write_scores(opened.private / "scores.jsonl", trained.steps, scores)
    results = {
        "scores": scores,
        "steps": trained.steps,
        "seconds": round(time.monotonic() - start, 2),
        "seconds_of_first_step": round(trained.compile_seconds, 2),
        "seconds_waiting_for_data": round(trained.waiting_seconds, 2),
    }
    files.write_private(opened.private / "results.json", json.dumps(results, indent=2) + "\n")
    console.print(shown.result_table(run, released.statement, results, opened.folder))
    if not released.statement.reproducible and trained.stopped_by is None:
        console.print(
            f"When the run is over, destroy its keys: python -m jaxdp.seal {opened.folder}",
            soft_wrap=True,
        )
    return scores
