"""The command `python -m jaxdp.train`, end to end."""

import contextlib
import io
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import jaxdp
from jaxdp.trainer import parsing

pytest.importorskip("tyro")
pytest.importorskip("sklearn")
train = pytest.importorskip("jaxdp.train")
from jaxdp.trainer import setup  # noqa: E402

SHORT = ["--plan.steps", "6", "--plan.expected-batch-size", "64"]


def run(*args: str) -> int:
    """A short run of the linear model, which compiles fast."""
    return train.main([*SHORT, "--model.name", "linear", *args])


@pytest.fixture(scope="module")
def finished_and_said(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        assert train.main([*SHORT, "--model.widths", "4", "--output", str(folder)]) == 0
    return folder, said.getvalue()


@pytest.fixture(scope="module")
def finished(finished_and_said):
    return finished_and_said[0]


def test_release_holds_parameters_and_statement_only(finished):
    assert sorted(p.name for p in finished.iterdir()) == ["private", "release"]
    names = {p.name for p in (finished / "release").iterdir()}
    assert names == {"params", "privacy.json", "PRIVACY.md"}
    params, statement = jaxdp.load_release(finished)
    assert {layer: list(leaves) for layer, leaves in params.items()} == {
        "Conv_0": ["bias", "kernel"],
        "GroupNorm_0": ["bias", "scale"],
        "Dense_0": ["bias", "kernel"],
    }
    assert statement["steps"] == 6
    assert statement["private"]
    assert 0 < statement["epsilon"]["pld"] <= 3.0


def test_private_holds_metrics_and_config(finished):
    private = finished / "private"
    assert {p.name for p in private.iterdir()} == {
        *("metrics.jsonl", "scores.jsonl", "config.json", "results.json"),
        *("ledger.txt", "segment-1.json", "checkpoints", "lock"),
    }
    lines = [json.loads(line) for line in (private / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert len({line["examples"] for line in lines}) > 1  # Poisson
    config = json.loads((private / "config.json").read_text())
    assert config["plan"]["steps"] == 6
    assert private.stat().st_mode & 0o077 == 0


def test_nothing_private_reaches_the_statement(finished):
    private = json.loads((finished / "private" / "metrics.jsonl").read_text().splitlines()[-1])
    text = (finished / "release" / "privacy.json").read_text()
    assert not {"loss", "clipped", "examples", "seed"} & set(json.loads(text))
    assert str(private["loss"]) not in text


def test_plain_lines_where_there_is_no_terminal(finished_and_said):
    _, said = finished_and_said
    lines = said.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in said
    words = " ".join(said.split())
    for fact in (
        r"Plan: N = 1,437, expected batch size 64 \(sampling probability 0\.04454\), 6 steps, "
        r"noise multiplier \d\.\d+, clipping norm [\d.]+, expected norm of the noise on the mean "
        r"gradient [\d.]+, target ε = 3 at δ = 0\.000337",
        r"private numbers, without noise",
        r"Compiling .* step 1/6 loss \d",
        r"step 6/6",
        r"test accuracy │ 0\.\d{4} on 360 records, declared public",
        r"of the parameters │ moving average, training.ema 0.9999",
        r"ε by PLD, the claim │ [\d.]+ at δ = 0\.000337",
        r"ε by RDP, a looser bound │ [\d.]+ at δ",
        r"steps │ 6 of 6 ",
        r"wall time",
    ):
        assert re.search(fact, words), fact
    assert len([line for line in lines if line.startswith("step")]) <= 12
    assert "NOT PRIVATE" not in said


def test_a_seed_repeats_the_run_and_is_labelled(tmp_path, capsys):
    runs = []
    for name in ("a", "b"):
        assert run("--seed", "3", "--output", str(tmp_path / name)) == 0
        runs.append(jaxdp.load_release(tmp_path / name))
        said = " ".join(capsys.readouterr().out.split())
        assert "noise and sampling are reproducible: NOT PRIVATE" in said
        page = (tmp_path / name / "release" / "PRIVACY.md").read_text()
        assert "noise and sampling are reproducible: NOT PRIVATE" in " ".join(page.split())
    jax.tree.map(np.testing.assert_array_equal, runs[0].params, runs[1].params)
    assert not runs[0].statement["private"]
    assert "seed" not in runs[0].statement


def test_without_a_seed_every_stream_is_secret():
    config = parsing.parse([*SHORT, "--model.name", "linear"])
    one, other = setup.prepare(config), setup.prepare(config)
    streams = [
        {k: jax.random.key_data(v) for k, v in vars(r.saved.secrets).items()} for r in (one, other)
    ]
    assert all(not np.array_equal(streams[0][name], streams[1][name]) for name in streams[0])
    noise_keys = [jax.random.key_data(r.state[1][0].privatize_key) for r in (one, other)]
    assert not np.array_equal(*noise_keys)
    kernels = [r.state[0]["Dense_0"]["kernel"] for r in (one, other)]
    assert not np.array_equal(*kernels)


def test_dry_run_prints_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("--dry-run", "--seed", "3") == 0
    said = capsys.readouterr().out
    assert "NOT PRIVATE" in said
    assert re.search(r"Memory on the device: [\d.]+ MiB", said)
    assert re.search(r"ε after 6 steps: [\d.]+ by PLD, [\d.]+ by RDP", said)
    assert list(tmp_path.iterdir()) == []


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


def test_an_existing_output_folder_is_left_alone(finished, capsys):
    before = (finished / "release" / "privacy.json").read_bytes()
    assert run("--output", str(finished)) == 2
    assert "exists already" in capsys.readouterr().err
    assert (finished / "release" / "privacy.json").read_bytes() == before


def test_a_missing_config_file_is_one_line(capsys):
    assert train.main(["configs/digits_cn.py"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: there is no config file configs/digits_cn.py")


def test_a_failing_evaluation_does_not_cost_the_release(tmp_path, monkeypatch):
    def fails(*args):
        raise RuntimeError("no memory for the test records")

    monkeypatch.setattr(train.models, "make_scorer", lambda model, dataset: fails)
    with pytest.raises(RuntimeError, match="test records"):
        run("--output", str(tmp_path / "run"))
    assert jaxdp.load_release(tmp_path / "run").statement["steps"] == 6


def test_a_failing_step_releases_nothing_and_says_what_was_spent(tmp_path, capsys, monkeypatch):
    def fails(file, metrics):
        if metrics.step == 2:
            raise OSError("no space left")

    monkeypatch.setattr(train.training, "write_metrics", fails)
    assert run("--output", str(tmp_path / "run")) == 1
    said = capsys.readouterr()
    assert re.search(r"[2-6] steps were spent", said.out)
    assert re.fullmatch(r"error: no space left: stopped, .*\n", said.err)
    assert not (tmp_path / "run" / "release").exists()


def test_ctrl_c_stops_after_the_step_and_writes_the_release(tmp_path):
    folder = tmp_path / "run"
    args = ["--plan.steps", "100000", "--plan.expected-batch-size", "8", "--plan.epsilon", "50"]
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxdp.train", *args, "--model.name=linear", f"--output={folder}"],
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
    _, statement = jaxdp.load_release(folder)
    assert 20 <= statement["steps"] == steps < 100000
    assert statement["epsilon"]["pld"] < 50 / 2
    assert "Stopping after this step" in said
    assert f"{steps} of 100000, stopped early" in said
    assert said.endswith(f"To go on: python -m jaxdp.train --resume {folder}\n")


@pytest.mark.parametrize("missing", ["flax", "sklearn"])
def test_a_missing_extra_is_one_line_that_names_the_command(missing):
    code = (
        f"import sys, runpy; sys.modules[{missing!r}] = None; "
        "runpy.run_module('jaxdp.train', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert missing in done.stderr
    assert "pip install 'jaxdp[train]'" in done.stderr
    assert "pip install -e '.[train]'" in done.stderr


def test_the_main_job_reaches_its_accuracy(tmp_path):
    """ε = 3 on digits: the median of seeds 0, 1, 2 is at least 0.93, as the README says."""
    accuracies = []
    for seed in ("0", "1", "2"):
        folder = tmp_path / seed
        assert train.main(["--seed", seed, "--output", str(folder)]) == 0
        results = json.loads((folder / "private" / "results.json").read_text())
        accuracies.append(results["test_accuracy"])
        assert jaxdp.load_release(folder).statement["epsilon"]["pld"] <= 3.0
    assert statistics.median(accuracies) >= 0.93, accuracies
