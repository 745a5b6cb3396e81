"""The trainer in tests: configs as files, runs that crash, and what a resume would go on with."""

import json
from contextlib import closing, contextmanager

import jax
import numpy as np
import pytest

import jaxdp
from jaxdp import train
from jaxdp.trainer import metrics, parsing, setup
from jaxdp.trainer.command import make_job
from jaxdp.trainer.metrics import write_metrics
from jaxdp.trainer.run import ledger, resume
from jaxdp.trainer.run.ledger import Ledger

STEPS = 8
SHORT = [
    *("--plan.steps", str(STEPS), "--plan.expected-batch-size", "64", "--model.name", "linear"),
    *("--checkpoint.every-seconds", "0", "--checkpoint.keep", "3"),
]


class Crash(BaseException):
    """Like a kill, but for open files."""


@contextmanager
def crash_at(step):
    """A run in here crashes when it writes that step's metrics: the checkpoint before is there."""
    write = write_metrics

    def crash(file, metrics):
        if metrics.step == step:
            raise Crash
        write(file, metrics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "write_metrics", crash)
        patch.setattr(ledger, "LARGEST_BLOCK", 1)  # so that the charges don't depend on the time
        with pytest.raises(Crash):
            yield


def write_config(config, folder):
    """The path of a config file that sets it."""
    path = folder / "config.py"
    path.write_text(f"from jaxdp.trainer import *\nconfig = {config!r}\n")
    return str(path)


def start(config, tell=lambda line: None):
    """A new run of the command before its first step."""
    return setup.start_run(make_job(config, tell), tell)


def stopped_run(folder, *args, at=5):
    """The folder of a short run that crashed at a step."""
    with crash_at(at):
        train.main([*SHORT, "--output", str(folder), *args])
    return folder


def go_on(folder, *args):
    """Resumes a run by the command; returns the exit status."""
    return train.main(["--resume", str(folder), *args])


def prepare_resume(folder, *args):
    """What a resume would go on with: (run, history, what was told)."""
    config = parsing.parse(["--resume", str(folder), *args], resume.saved_config)
    history, said = resume.open_history(folder, config.checkpoint.keep, print), []
    with closing(history):
        run = setup.resume_run(make_job(config, said.append, history), history, said.append)
    return run, history, " ".join(said)


def ledger_of(folder):
    return Ledger.read(folder / "private" / "ledger.txt")


def steps_on_disk(folder):
    """The steps that have a checkpoint."""
    names = [path.name for path in (folder / "private" / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdigit())


def logged(path):
    """The lines of JSON in a file, without the time of day."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


def assert_same_run(reference, folder):
    """Two runs of `STEPS` steps have released and logged the same, bit for bit."""
    expected, got = jaxdp.load_release(reference), jaxdp.load_release(folder)
    jax.tree.map(np.testing.assert_array_equal, expected.params, got.params)
    assert got.statement == expected.statement
    for name in ("metrics.jsonl", "scores.jsonl"):
        lines = [logged(f / "private" / name) for f in (reference, folder)]
        assert lines[0] == lines[1]
        assert len(lines[0]) == STEPS
    assert ledger_of(folder).steps == STEPS
