"""The command `python -m jaxdp.train`: trains a private classifier and writes its release."""

import datetime
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from .datasets import feeding
from .models.scores import make_scorer
from .trainer import loop, parsing, progress, scoring
from .trainer.metrics import Metrics, write_metrics
from .trainer.release import statement
from .trainer.release.parameters import save_params, save_statement, set_aside
from .trainer.run import checkpoint, payment, resume
from .trainer.run.files import locked, make_run_folder
from .trainer.setup import Run, prepare
from .trainer.signals import stop_on_signals

try:
    import flax
    import orbax.checkpoint
    import sklearn
    import tyro
    from rich.console import Console
except ModuleNotFoundError as error:
    if error.name is None or error.name.startswith("jaxdp"):
        raise
    sys.exit(
        f"python -m jaxdp.train needs {error.name}, which is not installed: "
        "pip install 'jaxdp[train]' (in a checkout: pip install -e '.[train]')"
    )


del flax, orbax, sklearn, tyro  # only needed to be there


def main(args: Sequence[str]) -> int:
    """Runs the command with the given arguments and returns the exit status."""
    start = time.monotonic()
    console = Console(highlight=False, markup=False)
    # Orbax logs whole tracebacks of what is told in one line here.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        stack.enter_context(checkpoint.without_leftovers())
        try:
            config = parsing.parse(args, resume.saved_config)
            console.print(f"jaxdp: {config.name}, on {console.describe_device()}")
            history = None
            if config.resume is not None:
                folder = Path(config.resume)
                stack.enter_context(locked(folder))
                history = resume.open_history(folder, config.checkpoint.keep, console.print)
                stack.callback(history.close)
            # A signal inside a compilation can be lost, or crash it: it waits for the next line.
            with stop_on_signals(console.tell_not_started) as early:
                run = prepare(config, console.print, history)
            if early.requested:
                raise KeyboardInterrupt
            console.print(console.describe_plan(run))
            if run.config.seed is not None:
                console.print("A seed was given: noise and sampling are reproducible: NOT PRIVATE.")
            if config.dry_run:
                console.print(console.describe_cost(run))
                return 0
            if history is not None and history.step >= run.plan.steps and is_released(folder):
                console.print(f"All steps were taken: the release is in {folder / 'release'}")
                return 0
            if history is None:
                budget = resume.make_budget(run.plan)  # may refuse: before anything is written
                now = datetime.datetime.now()
                folder = make_run_folder(config.name, config.output, now)
                stack.enter_context(locked(folder))
                history = resume.begin(folder, budget, run.plan, run.saved, run.state)
                stack.callback(history.close)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            console.print("Interrupted before the first step: nothing was spent or written.")
            return 130
        try:
            return train_and_release(run, history, config.resume is not None, console, start)
        except loop.NotFinite as error:
            cure = "Try a lower training.learning-rate: --resume goes on from the last checkpoint"
            print(f"error: {error}: nothing is released. {cure}", file=sys.stderr)
        except OSError as error:
            print(
                f"error: {error}: stopped, what was spent stays charged. Make the folder {folder} "
                f"writable with room on its disk, then: python -m jaxdp.train --resume {folder}",
                file=sys.stderr,
            )
        return 1


def train_and_release(
    run: Run, history: resume.History, resumed: bool, console: Console, start: float
) -> int:
    """Trains, writes the release, and only then looks at how good it is."""
    folder, private = history.folder, history.folder / "private"
    console.print(
        "Loss and clipping below are private numbers, without noise: keep them to yourself."
    )

    clip = run.plan.clipping
    first = clip.init(run.state[0]).clipping_bounds
    sensitivity = float(clip.sensitivity(run.plan.adjacency, first))
    keeper, ledger, begun = history.checkpoints, history.ledger, history.step
    scores_file = private / "scores.jsonl"
    if resumed:
        keeper.drop_after(begun)
        for path in (private / "metrics.jsonl", scores_file):
            resume.drop_metrics_after(path, begun)
        if not run.repeats:
            resume.open_segment(folder, ledger, begun, run.plan, run.saved, run.state)
        console.print(console.describe_resume(ledger, begun))
    end = resume.affordable_end(ledger, run.plan)
    if end < run.plan.steps:
        console.print(f"The budget ends before step {end + 1}: that is where the run will stop.")
    spent = payment.LedgerPayment(ledger, begun, end)
    saver = checkpoint.PeriodicSaver(
        keeper, ledger, run.config.checkpoint.every_seconds, run.frozen
    )
    score = make_scorer(run.model, run.dataset)
    scorer = scoring.PeriodicScores(
        lambda state: score(params := run.released(state), run.statistics(params)),
        scores_file,
        run.plan.steps,
        run.config.evaluations,
        console.print,
    )
    batches = feeding.Waiting(run.batches(begun, max(begun, end)))
    with stop_on_signals(tell=console.tell_stopping) as stop:
        try:
            with (
                progress.step_display(console, end) as shown,
                (private / "metrics.jsonl").open("a") as metrics_file,
            ):

                def watch(metrics: Metrics) -> None:
                    write_metrics(metrics_file, metrics)
                    shown.show(metrics)

                state = loop.train(
                    run.train_step,
                    run.state,
                    batches,
                    spent=spent,
                    stop=stop,
                    watch=watch,
                    start=begun,
                    visitors=(scorer, saver),  # what is saved has been scored
                    refresh=run.before_step,
                )
        except BaseException:
            console.print(
                f"Failed: {ledger.steps} steps were spent, nothing is released. What was logged is "
                f"in {private}"
            )
            raise
        if spent.count > begun:
            saver.visit(spent.count, state)
            keeper.wait()
        # The results come first, so that no later failure can cost them.
        params = run.released(state)
        aside = set_aside(folder)
        if aside is not None:
            console.print(f"The release before this one is now in {aside}")
        batch_stats = run.statistics(params)
        save_params(folder, params, batch_stats)
        *earlier, last = ledger.mechanisms()
        facts = statement.make_statement(
            run.plan,
            run.config,
            run.dataset,
            last.steps,
            sensitivity,
            earlier,
            batch_norm=batch_stats is not None,
            earlier_data=[used for used, _ in resume.earlier_data(history)],
        )
        save_statement(folder, facts, statement.as_markdown(facts))

    scores = score(params, batch_stats)
    scoring.write_scores(scores_file, spent.count, scores)
    results = {
        "test_accuracy": scores.accuracy,
        "test_loss": scores.loss,
        "steps": spent.count,
        "seconds": round(time.monotonic() - start, 2),
        "seconds_of_first_step": round(shown.compile_seconds, 2),
        "seconds_waiting_for_data": round(batches.seconds, 2),
    }
    (private / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    console.print(console.result_table(run, facts, results, folder))
    if stop.signal is not None and spent.count < end:
        console.print(f"To go on: python -m jaxdp.train --resume {folder}", soft_wrap=True)
        return 128 + stop.signal  # as a shell reports it: 130 for Ctrl-C, 143 for SIGTERM
    return 0


def is_released(folder: Path) -> bool:
    return (folder / "release").is_dir()


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    if status != 0:
        # All is written. What was cut short (a compilation, a checkpoint) has threads that would
        # crash or print tracebacks while Python takes itself down.
        os._exit(status)
    sys.exit(0)
