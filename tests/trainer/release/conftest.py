"""A run that has ended, for the tests of what is done with it."""

import subprocess
import sys

import pytest


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A short run with an average, another optimizer and schedule, and a frozen layer."""
    for module in ("tyro", "sklearn", "safetensors", "matplotlib"):
        pytest.importorskip(module)
    train = pytest.importorskip("jaxdp.train")
    folder = tmp_path_factory.mktemp("finished") / "run"
    args = [
        *("--plan.steps", "6", "--plan.expected-batch-size", "64", "--model.widths", "2"),
        *("--training.optimizer", "adamw", "--training.optimizer-options", "b1", "0.8"),
        *("--training.schedule", "linear", "--training.learning-rate", "0.1"),
        *("--training.schedule-options", "init_value", "1", "end_value", "0"),
        *("transition_steps", "6", "--training.ema", "0.9", "--training.frozen", "Conv_0"),
    ]
    assert train.main([*args, "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def run_without():
    """Runs a command in a process that lacks a module: (exit status, what it said on stderr)."""

    def run(missing, command):
        code = (
            f"import runpy, sys; sys.modules[{missing!r}] = None; "
            f"runpy.run_module({command!r}, run_name='__main__')"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        return done.returncode, done.stderr

    return run
