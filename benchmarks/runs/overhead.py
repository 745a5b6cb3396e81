"""Measures what a run costs besides its steps.

python -m benchmarks.runs.overhead [CONFIG.py [OPTIONS]]

Without a config it is what `jaxdp.fit` does with a network on random records, whose step takes
about 50 ms on two cores.

The bare step is the run's own compiled train step, called in a loop on batches that are on the
device already. It takes turns with the whole trainer in one process: sampling, gathering the batch,
metrics, the ledger, checkpoints, and the scores of the test records if the options ask for some.
Both start from the same state and take the same steps; nothing is compiled while time is taken.
The medians of the turns' ratios are printed: of the time by the clock, and of the processor time of
all threads, which other programs on the machine disturb less.
"""

import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

import jaxdp
from jaxdp.trainer import loop, parsing, scoring
from jaxdp.trainer.command import make_job
from jaxdp.trainer.job import Job, RunOptions
from jaxdp.trainer.metrics import write_metrics
from jaxdp.trainer.run import checkpoint, resume
from jaxdp.trainer.run.ledger import Payment
from jaxdp.trainer.setup import Run, start_run
from jaxdp.trainer.signals import StopRequest
from jaxdp.trainer.step import TrainState

from ..hardware import hardware

TURNS = 9


class Seconds(NamedTuple):
    wall: float
    processor: float

    @classmethod
    def now(cls) -> "Seconds":
        return cls(time.perf_counter(), time.process_time())

    def since(self, start: "Seconds") -> "Seconds":
        return Seconds(self.wall - start.wall, self.processor - start.processor)


def bare(run: Run, batches: list[Any]) -> Seconds:
    """Takes the steps and nothing else."""
    state = _copied(run.state)
    start = Seconds.now()
    for batch, mask in batches:
        state, _ = run.take_step(state, batch, mask)
    jax.block_until_ready(state)
    return Seconds.now().since(start)


def trainer(run: Run, steps: int, between_checkpoints: float) -> tuple[Seconds, int]:
    """Trains as the command does.

    Returns:
      The seconds of the training, and how many checkpoints it wrote.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "private").mkdir()
        options = run.job.options
        budget = resume.make_budget(run.plan)
        keep = options.checkpoint.keep
        history = resume.begin(folder, budget, run.plan, run.saved, run.state, keep)
        scorer = scoring.PeriodicScores(
            lambda state: run.score(run.variables(run.released(state))),
            folder / "private" / "scores.jsonl",
            steps,
            options.evaluations,
            print,
        )
        batches = run.batches(0, steps)
        first = next(batches)  # compiles how records are gathered, which a run does once
        state = _copied(run.state)
        payment = Payment(history.ledger, 0, steps)
        start = Seconds.now()
        saver = checkpoint.PeriodicSaver(
            history.checkpoints, history.ledger, between_checkpoints, run.frozen
        )
        with (folder / "private" / "metrics.jsonl").open("a") as file:
            loop.train(
                run.take_step,
                state,
                itertools.chain([first], batches),
                payment=payment,
                stop=StopRequest(),
                watch=lambda metrics: write_metrics(file, metrics),
                visitors=(scorer, saver),
                refresh=run.before_step,
            )
        seconds = Seconds.now().since(start)
        history.checkpoints.wait()
        written = len([p for p in (folder / "private" / "checkpoints").iterdir() if p.is_dir()])
        history.close()
    return seconds, written


def measure(run: Run) -> dict[str, Any]:
    """Returns the figures of the run's training, with what they were measured on."""
    steps = run.plan.steps
    batches = list(itertools.islice(run.batches(), steps))
    jax.block_until_ready(batches)
    # Compiles everything, and says how long a turn takes: each has one checkpoint.
    params = run.released(run.state)
    run.score(run.variables(params))
    bare(run, batches)
    between = bare(run, batches).wall / 2
    trainer(run, steps, between)
    start = Seconds.now()
    run.score(run.variables(params))
    one_evaluation = Seconds.now().since(start).wall

    turns = [(bare(run, batches), *trainer(run, steps, between)) for _ in range(TURNS)]
    facts: dict[str, Any] = {
        "hardware": hardware(),
        "jax": jax.__version__,
        "config": run.job.options.name,
        "steps of a turn": steps,
        "evaluations of a turn": max(run.job.options.evaluations - 1, 0),
        "one evaluation, ms": _thousandths([one_evaluation], 1),
        "checkpoints of the turns": [written for *_, written in turns],
    }
    for i, clock in enumerate(Seconds._fields):
        ratios = [whole[i] / alone[i] for alone, whole, _ in turns]
        facts[clock] = {
            "bare step, ms": _thousandths([alone[i] for alone, *_ in turns], steps),
            "trainer's step, ms": _thousandths([whole[i] for _, whole, _ in turns], steps),
            "overhead, %": round(100 * (statistics.median(ratios) - 1), 2),
            "of every turn, %": [round(100 * (ratio - 1), 1) for ratio in ratios],
        }
    return facts


def _thousandths(seconds: list[float], steps: int) -> float:
    return round(1e3 * statistics.median(seconds) / steps, 1)


def _copied(state: TrainState) -> TrainState:
    """The step is given the memory of its state, so each loop has a state of its own."""
    return jax.tree.map(lambda leaf: leaf.copy(), state)


def own_job(steps: int = 40) -> Job:
    """What `jaxdp.fit` makes of a network on random records."""
    rng = np.random.default_rng(0)
    rows = (
        rng.standard_normal((8000, 512), np.float32),
        rng.integers(0, 10, 8000).astype(np.int32),
    )
    layers = [layer for _ in range(8) for layer in (nn.Dense(512), nn.relu)]
    return Job(
        jaxdp.tasks.classifier(nn.Sequential([*layers, nn.Dense(10)])),
        jaxdp.Dataset.split(rows, private="rows[:90%]", test="rows[90%:]"),
        jaxdp.PlanSettings(
            expected_batch_size=512,
            steps=steps,
            noise_multiplier=1.0,
            clipping=jaxdp.clip_individual(1.0),
        ),
        optax.sgd(0.1),
        RunOptions(name="fit, a network of 9 layers", evaluations=0),
    )


def main(args: list[str]) -> None:
    job = make_job(parsing.parse(args)) if args else own_job()
    print(json.dumps(measure(start_run(job)), indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
