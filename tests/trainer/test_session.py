"""A session of the trainer: what it writes, where to, and what it says when something fails."""

import json
import os
import re
import signal

import jax
import numpy as np
import pytest
from helpers.interrupts import interrupts_raise

for module in ("tyro", "sklearn", "safetensors"):
    pytest.importorskip(module)
import jaxdp  # noqa: E402
from jaxdp import train  # noqa: E402
from jaxdp.trainer import metrics, session, setup  # noqa: E402

SHORT = ["--plan.steps", "6", "--plan.expected-batch-size", "64", "--model.name", "linear"]


def run(*args: str) -> int:
    """A short run of the linear model, which compiles fast."""
    return train.main([*SHORT, *args])


def test_release_holds_parameters_and_statement_only(finished):
    assert sorted(p.name for p in finished.iterdir()) == ["private", "release"]
    names = {p.name for p in (finished / "release").iterdir()}
    assert names == {"params.safetensors", "model.stablehlo", "privacy.json", "PRIVACY.md"}
    release = jaxdp.load_release(finished)
    assert {layer: list(leaves) for layer, leaves in release.params.items()} == {
        "Conv_0": ["bias", "kernel"],
        "GroupNorm_0": ["bias", "scale"],
        "Dense_0": ["bias", "kernel"],
    }
    assert release.statement.steps == 6
    assert release.statement.private
    assert 0 < release.statement.epsilon["pld"] <= 3.0


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
    assert not runs[0].statement.private
    assert "seed" not in json.loads((tmp_path / "a" / "release" / "privacy.json").read_text())


def test_dry_run_prints_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("--dry-run", "--seed", "3") == 0
    said = capsys.readouterr().out
    assert "NOT PRIVATE" in said
    assert re.search(r"Memory on the device: [\d.]+ MiB", said)
    assert re.search(r"ε after 6 steps: [\d.]+ by PLD, [\d.]+ by RDP", said)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_folder_is_left_alone(finished, capsys):
    before = (finished / "release" / "privacy.json").read_bytes()
    assert run("--output", str(finished)) == 2
    assert "exists already" in capsys.readouterr().err
    assert (finished / "release" / "privacy.json").read_bytes() == before


def test_a_failing_evaluation_does_not_cost_the_release(tmp_path, monkeypatch):
    def fails(*args):
        raise RuntimeError("no memory for the test records")

    monkeypatch.setattr(setup, "make_scorer", lambda task, records: fails)
    with pytest.raises(RuntimeError, match="test records"):
        run("--output", str(tmp_path / "run"))
    assert jaxdp.load_release(tmp_path / "run").statement.steps == 6


def test_a_failing_step_releases_nothing_and_says_what_was_spent(tmp_path, capsys, monkeypatch):
    def fails(file, metrics):
        if metrics.step == 2:
            raise OSError("no space left")

    monkeypatch.setattr(metrics, "write_metrics", fails)
    assert run("--output", str(tmp_path / "run")) == 1
    said = capsys.readouterr()
    assert re.search(r"[2-6] steps were spent", said.out)
    assert re.fullmatch(r"error: no space left: stopped, .*\n", said.err)
    assert not (tmp_path / "run" / "release").exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_before_the_first_step_spends_and_writes_nothing(
    tmp_path, monkeypatch, capfd, signum
):
    def interrupted(config, tell):
        os.kill(os.getpid(), signum)
        return setup.start_run(config, tell)

    monkeypatch.setattr(session, "start_run", interrupted)
    monkeypatch.chdir(tmp_path)
    with interrupts_raise():
        assert run() == 130
    said = capfd.readouterr()
    assert "Stopping before the first step" in said.err
    assert "nothing was spent or written" in said.out
    assert list(tmp_path.iterdir()) == []
