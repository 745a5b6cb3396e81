"""The command `python -m jaxdp.train`, end to end."""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time

import pytest
from helpers.cases import slow
from helpers.interrupts import interrupts_raise

for module in ("tyro", "sklearn", "safetensors"):
    pytest.importorskip(module)
import jaxdp  # noqa: E402
from jaxdp import train  # noqa: E402

SHORT = ["--plan.steps", "6", "--plan.expected-batch-size", "64"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("--plan.epsilon -1", "epsilon is -1.0"),
        ("--plan.epsilon nan", "epsilon is nan"),
        ("--plan.delta 0.1", "delta is 0.1: it must be .* below 1/N"),
        ("--plan.expected-batch-size 2000", "expected_batch_size is 2000.0, with 1437 examples"),
        ("--plan.expected-batch-size 0", "expected_batch_size is 0.0"),
        ("--plan.steps 0", "steps is 0"),
        ("--clipping.norm 0", "clipping norm is 0.0"),
        ("--clipping.norm nan", "clipping norm is nan"),
        ("--clipping.norm inf", "give a finite clipping norm"),
        ("--plan.epsilon None --plan.noise-multiplier 0", "for which no ε holds"),
        ("--model.widths 4 4 4 4 4", "model.widths"),
    ],
)
def test_bad_numbers_are_refused_before_anything_is_written(
    tmp_path, capsys, monkeypatch, args, says
):
    monkeypatch.chdir(tmp_path)
    assert train.main([*SHORT, *args.split()]) == 2
    assert re.fullmatch(f"error: .*{says}.*\n", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("--training.optimizer adamm", "which Optax does not have: did you mean adam?"),
        ("--training.optimizer chain", "which takes no learning rate"),
        ("--training.optimizer adam --training.optimizer-options bb 1", "adam takes learning_rate"),
        ("--training.schedule lineal", "which Optax does not have: did you mean linear?"),
        ("--training.schedule linear", "missing a required argument"),
        ("--training.frozen Conv_7", "which no parameter matches"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(capsys, args, says):
    assert train.main(args.split()) == 2
    said = capsys.readouterr().err
    assert says in said
    assert len(said.splitlines()) == 1


def test_a_missing_config_file_is_one_line(capsys):
    assert train.main(["configs/digits_cn.py"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: there is no config file configs/digits_cn.py")


@pytest.mark.slow
def test_ctrl_c_stops_after_the_step_and_writes_the_release(tmp_path):
    folder = tmp_path / "run"
    args = ["--plan.steps", "100000", "--plan.expected-batch-size", "8", "--plan.epsilon", "8"]
    command = [sys.executable, "-m", "jaxdp.train", *args, "--model.name=linear"]
    with interrupts_raise():
        process = subprocess.Popen(
            [*command, f"--output={folder}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    metrics = folder / "private" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 20):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    steps = len(metrics.read_text().splitlines())
    statement = jaxdp.load_release(folder).statement
    assert 20 <= statement.steps == steps < 100000
    assert statement.epsilon["pld"] < 8 / 2
    assert "Stopping after this step" in said
    assert f"{steps} of 100000, stopped early" in said
    assert said.endswith(f"To go on: python -m jaxdp.train --resume {folder}\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "status"),
    [
        ("flax", 1),
        *(slow(name, 1) for name in ("orbax.checkpoint", "rich", "safetensors", "tyro")),
        ("sklearn", 2),  # which only the digits need
    ],
)
def test_a_missing_extra_is_one_line_that_names_the_command(missing, status):
    code = (
        f"import sys, runpy; sys.modules[{missing!r}] = None; "
        "runpy.run_module('jaxdp.train', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == status
    assert len(done.stderr.splitlines()) == 1
    assert missing in done.stderr
    assert "pip install 'jaxdp-privacy[train]'" in done.stderr
    assert "pip install -e '.[train]'" in done.stderr


@pytest.mark.slow
def test_the_main_job_reaches_its_accuracy(tmp_path):
    """ε = 3 on digits: the median of seeds 0, 1, 2 is at least 0.93, as the README says."""
    accuracies = []
    for seed in ("0", "1", "2"):
        folder = tmp_path / seed
        assert train.main(["--seed", seed, "--output", str(folder)]) == 0
        results = json.loads((folder / "private" / "results.json").read_text())
        accuracies.append(results["scores"]["accuracy"])
        assert jaxdp.load_release(folder).statement.epsilon["pld"] <= 3.0
    assert statistics.median(accuracies) >= 0.93, accuracies
