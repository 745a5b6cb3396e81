"""The command `python -m jaxdp.seal`, as a person uses it after a run."""

import errno
import os
import shutil
import subprocess
import sys

import pytest

for module in ("tyro", "sklearn", "safetensors", "matplotlib"):
    pytest.importorskip(module)
from helpers.reports import few_points  # noqa: E402

import jaxdp  # noqa: E402
from jaxdp import report, seal, train  # noqa: E402
from jaxdp.trainer.run.files import locked  # noqa: E402

SHORT = ["--plan.steps", "3", "--plan.expected-batch-size", "64", "--model.name", "linear"]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seal") / "run"
    assert train.main([*SHORT, "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def run(original, tmp_path):
    return shutil.copytree(original, tmp_path / "run")


def test_it_says_what_it_did_and_what_it_cannot_do(run, capsys, monkeypatch):
    assert seal.main([str(run)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"{run} is sealed: its keys are destroyed. Changed: {run}/private/ledger.txt " in said
    assert f"{run}/private/segment-1.json {run}/release" in said
    for limit in ("backups", "snapshots", "Btrfs, ZFS", "SSD", "data journals", "swap", "copies"):
        assert limit in said
    assert jaxdp.load_release(run).statement.secrets == "destroyed"

    assert seal.main([str(run)]) == 0
    assert capsys.readouterr().out == f"{run} is sealed already: there is nothing to do.\n"
    few_points(monkeypatch)
    assert report.main([str(run)]) == 0  # it needs no secret


@pytest.mark.slow
def test_it_runs_as_a_program(run):
    command = [sys.executable, "-m", "jaxdp.seal", str(run)]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert said.stderr == ""
    assert "is sealed: its keys are destroyed" in said.stdout
    assert "secrets" not in (run / "private" / "segment-1.json").read_text()


@pytest.mark.parametrize("args", [["--help"], ["-h"]])
def test_usage(args, capsys):
    assert seal.main(args) == 0
    assert "usage: python -m jaxdp.seal RUN" in capsys.readouterr().out


def test_refusals_are_one_line(run, tmp_path, capsys):
    assert seal.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} holds no run")
    with locked(run):
        assert seal.main([str(run)]) == 2
    said = capsys.readouterr().err
    assert f"is being trained in by process {os.getpid()}" in said
    assert len(said.splitlines()) == 1


def test_a_full_disk_is_told_and_sealing_again_finishes(run, capsys, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", refuse)
    assert seal.main([str(run)]) == 1
    said = capsys.readouterr().err
    assert "No space left on device: the run is not sealed completely, make the folder" in said
    assert len(said.splitlines()) == 1
    monkeypatch.undo()
    assert seal.main([str(run)]) == 0
    assert jaxdp.load_release(run).statement.secrets == "destroyed"
