"""Trains one run of a row: by the trainer's own command, or without privacy."""

import contextlib
import gc
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

import jaxdp
from jaxdp import train
from jaxdp.trainer import parsing
from jaxdp.trainer.run.record import load_record

from ..hardware import hardware
from ..runs import without_privacy
from .results import Result
from .runs import Case


class Stopped(Exception):
    """A run did not come to its end. The argument is the exit status of the trainer's command."""


def result_of(case: Case, files: Path) -> Result:
    """Trains one run and returns its result.

    Args:
      case: the run.
      files: the working folder: where a config finds data that it names by a file.

    Raises:
      Stopped: if the trainer stopped or refused; it has said why.
      ValueError: from the program without privacy, for options that make no sense.
    """
    with contextlib.chdir(files):
        facts = _private(case) if case.epsilon is not None else _plain(case)
    # The next run of this process needs the memory of the data and of compiled programs.
    jax.clear_caches()
    gc.collect()
    return Result(
        row=case.row.name,
        seed=case.seed,
        command=case.command,
        config=case.config_digest,
        hardware=hardware(),
        jax=jax.__version__,
        jaxdp=jaxdp.__version__,
        **facts,
    )


def _private(case: Case) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / case.row.name
        status = train.main([*case.args_anywhere, "--output", str(folder)])
        if status:
            raise Stopped(status)
        record = load_record(folder)
        statement = jaxdp.load_release(folder).statement
    (mechanism,) = statement.mechanisms
    scores = record.results["scores"]
    return dict(
        accuracy=scores["accuracy"],
        loss=scores["loss"],
        steps=record.results["steps"],
        expected_batch_size=mechanism.sampling.expected_batch_size,
        seconds=record.results["seconds"],
        epsilon=case.epsilon,
        epsilon_spent=statement.claimed_epsilon,
        delta=statement.delta,
        noise_multiplier=mechanism.noise_multiplier,
    )


def _plain(case: Case) -> dict[str, Any]:
    start = time.monotonic()
    run, _, scores, _ = without_privacy.train(parsing.parse(case.args_anywhere))
    return dict(
        accuracy=scores["accuracy"],
        loss=scores["loss"],
        steps=run.plan.steps,
        expected_batch_size=run.plan.expected_batch_size,
        seconds=round(time.monotonic() - start, 2),
    )
