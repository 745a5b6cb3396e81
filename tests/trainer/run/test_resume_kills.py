"""Real processes that are killed at random moments, or asked to end, and then resumed."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import jaxdp
from jaxdp.trainer.run.ledger import Ledger

for module in ("tyro", "sklearn", "safetensors"):
    pytest.importorskip(module)
from jaxdp import train  # noqa: E402

STEPS = 24
# A checkpoint after every step, so that kills fall into the writing of one.
RUN = [
    *("--plan.steps", str(STEPS), "--plan.expected-batch-size", "32", "--model.name", "linear"),
    *("--seed", "1", "--checkpoint.every-seconds", "0"),
]


def start(*args):
    return subprocess.Popen(
        [sys.executable, "-m", "jaxdp.train", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_step(process, folder, step):
    """Until the run in that process has logged a step, or has ended."""
    metrics = folder / "private" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= step:
            return
        time.sleep(0.01)


def kill_and_resume(folder, kills, rng):
    """Kills a run so often, then lets it finish; returns what the last process said."""
    process = start(*RUN, "--output", str(folder))
    for kill in range(1, kills + 1):
        wait_for_step(process, folder, kill * STEPS // (kills + 4))
        time.sleep(rng.uniform(0, 0.4))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        process = start("--resume", str(folder))
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def check(folder, reference):
    assert train.main([*RUN, "--output", str(reference)]) == 0
    expected, got = jaxdp.load_release(reference), jaxdp.load_release(folder)
    jax.tree.map(np.testing.assert_array_equal, expected.params, got.params)
    assert got.statement == expected.statement
    book = Ledger.read(folder / "private" / "ledger.txt")
    assert (book.steps, len(book.segments)) == (STEPS, 1)
    lines = (folder / "private" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_kill_changes_nothing(tmp_path):
    kill_and_resume(tmp_path / "run", 1, random.Random(0))
    check(tmp_path / "run", tmp_path / "reference")


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path):
    kill_and_resume(tmp_path / "run", 20, random.Random(1))
    check(tmp_path / "run", tmp_path / "reference")


@pytest.mark.slow
def test_sigterm_releases_and_the_run_can_go_on(tmp_path):
    folder = tmp_path / "run"
    long = ["--plan.steps", "100000", "--plan.epsilon", "8", "--model.name=linear"]
    process = start(*long, "--plan.expected-batch-size=8", f"--output={folder}")
    wait_for_step(process, folder, 20)
    second = start("--resume", str(folder))
    said, _ = second.communicate(timeout=200)
    assert second.returncode == 2
    assert f"is being trained in by process {process.pid}" in " ".join(said.split())
    process.terminate()
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 143, said
    first = jaxdp.load_release(folder).statement
    assert 20 <= first.steps < 100000
    book = Ledger.read(folder / "private" / "ledger.txt")
    assert book.steps == first.steps

    process = start("--resume", str(folder))
    wait_for_step(process, folder, first.steps + 20)
    process.terminate()
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 143, said
    assert f"Resuming after step {first.steps}, in segment 1" in " ".join(said.split())
    assert jaxdp.load_release(folder).statement.steps >= first.steps + 20
    before = folder / f"release-after-{first.steps}-steps"
    assert jaxdp.load_release(before).statement == first


@pytest.mark.slow
def test_a_deleted_folder_stops_the_run_with_one_line(tmp_path):
    folder = tmp_path / "run"
    process = start(*RUN, "--plan.steps", "1000", "--output", str(folder))
    wait_for_step(process, folder, 2)
    shutil.rmtree(folder, ignore_errors=True)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 1, said
    after = said[said.index("Failed:") :]
    assert "Traceback" not in after, said
    assert re.search(r"^error: .*: stopped, what was spent stays charged", after, re.MULTILINE)
