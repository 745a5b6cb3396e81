"""The command `python -m jaxdp.audit`, and the options of the other commands for it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

for module in ("tyro", "sklearn", "safetensors", "matplotlib"):
    pytest.importorskip(module)
from helpers.reports import few_points  # noqa: E402

import jaxdp  # noqa: E402
from jaxdp import plan, report, train  # noqa: E402
from jaxdp.audit import __main__ as command  # noqa: E402
from jaxdp.audit import audit_run  # noqa: E402
from jaxdp.audit.run import _down  # noqa: E402

SHORT = ["--plan.steps", "4", "--plan.expected-batch-size", "64", "--model.name", "linear"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit") / "run"
    assert train.main([*SHORT, "--audit.canaries", "60", "--output", str(folder)]) == 0
    return folder


def test_the_whole_command_on_digits(run, capsys):
    statement = jaxdp.load_release(run).statement
    assert statement.num_examples == 1437 + 60
    assert statement.data.canaries == 60
    capsys.readouterr()
    assert command.main([str(run)]) == 0
    said = capsys.readouterr().out
    path = str(run)
    assert max(len(line.replace(path, "")) for line in said.splitlines()) <= 80
    assert said.startswith("PRIVATE: keep this to yourself")
    assert f"claimed         ε = {statement.claimed_epsilon:g} at δ = " in said
    assert "lower bound     ε ≥ 0 at the same δ, confidence 95 %" in said
    included = json.loads((run / "private" / "canaries.json").read_text())["included"]
    assert f"{included.count('1')} of 60 canaries took part" in said
    assert "\n     10 " in said
    assert "\n     30 " in said


def test_its_options(run, capsys):
    assert command.main([str(run), "--guesses", "7", "20", "--significance=0.5"]) == 0
    said = capsys.readouterr().out
    assert "confidence 50 %" in said
    assert "\n      7 " in said
    assert "\n     20 " in said
    assert "\n     10 " not in said
    assert [g.number for g in audit_run(run, guesses=[7]).bound.guesses] == [7]


def test_the_status_tells_that_the_bound_is_above_the_claim(run, capsys, monkeypatch):
    found = replace(audit_run(run), claimed=0.1)
    found = replace(found, bound=replace(found.bound, epsilon=0.2), reproducible=True)
    monkeypatch.setattr(command, "audit_run", lambda *args, **options: found)
    assert command.main([str(run)]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "THE BOUND IS ABOVE THE CLAIM" in said
    assert "The run had a seed" in said


def test_bounds_are_rounded_down():
    assert [_down(value) for value in (0.0, 1.99999, 0.123456)] == [0, 1.999, 0.1234]


def test_the_attack_sees_losses_of_the_release(run):
    """Those of a classifier are the minus logarithms of what it predicts."""
    release = jaxdp.load_release(run)
    audit = audit_run(run)
    from jaxdp.datasets import DataConfig, load
    from jaxdp.trainer.run.canaries import load_canaries

    whole = load_canaries(run, *load(DataConfig()))
    images, labels = whole.canaries.fields
    chances = release.predict(images)["scores"][np.arange(60), labels]
    assert np.allclose(audit.scores, np.log(chances), atol=1e-5)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no run is given: give one folder"),
        (["a", "b"], "2 runs are given"),
        (["nowhere"], "nowhere is no folder of a run"),
        (["RUN", "--guesses", "0"], "guesses has 0: give whole numbers from 1 to 60"),
        (["RUN", "--guesses", "61"], "guesses has 61"),
        (["RUN", "--significance", "0"], "significance is 0.0"),
        (["RUN", "--guess", "3"], "did you mean --guesses?"),
    ],
)
def test_refusals_are_one_line(run, args, message, capsys):
    assert command.main([str(run) if arg == "RUN" else arg for arg in args]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert len(said.splitlines()) == 1


def test_an_unfinished_run_has_nothing_to_audit(run, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(folder / "release")
    assert command.main([str(folder)]) == 2
    assert "holds no release" in capsys.readouterr().err


def test_a_resume_of_the_command_keeps_the_number(run, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    assert train.main(["--resume", str(folder)]) == 0
    assert "All steps were taken" in capsys.readouterr().out
    assert train.main(["--resume", str(folder), "--audit.canaries", "61"]) == 2
    assert "audit.canaries is 61, and the run began with 60" in capsys.readouterr().err


@pytest.mark.slow
def test_a_dry_run_tells_of_them(capsys):
    assert train.main([*SHORT, "--audit.canaries", "60", "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "N = 1,497" in said
    assert "60 of the private records are made up, from public facts alone" in said


@pytest.mark.slow
def test_a_report_tells_of_them(run, capsys, tmp_path, monkeypatch):
    few_points(monkeypatch)
    assert report.main([str(run), "--output", str(tmp_path)]) == 0
    assert "60 in N" in capsys.readouterr().out


@pytest.mark.slow
def test_batch_units_with_batch_norm(tmp_path, capsys):
    """Such a record has no loss of its own: its score is taken, with the public statistics."""
    folder = str(tmp_path / "run")
    options = ["--plan.steps", "4", "--audit.canaries", "60", "--output", folder]
    options += ["--clipping.kind", "batch", "--clipping.units", "4", "--model.norm", "batch"]
    split = ["--data.private", "train[:80%]", "--data.public", "train[80%:]"]
    assert train.main([*options, *split, "--model.widths", "4"]) == 0
    assert command.main([folder]) == 0
    assert "of 60 canaries took part" in capsys.readouterr().out


@pytest.mark.slow
def test_the_planner_counts_them(tmp_path, capsys):
    config = tmp_path / "config.py"
    config.write_text(
        "from jaxdp.trainer import AuditConfig, Config\n"
        "config = Config(audit=AuditConfig(canaries=60))\n"
    )
    assert plan.main([str(config), "--batch-sizes", "64"]) == 0
    assert "1,497" in capsys.readouterr().out


def test_a_number_that_makes_no_sense(capsys):
    assert train.main(["--audit.canaries", "1"]) == 2
    assert (
        "audit.canaries is 1: give 20 or more (1,000 say something), or 0"
        in capsys.readouterr().err
    )
