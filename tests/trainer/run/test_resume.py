"""Runs that were stopped go on as if they never had been: in one process."""

import itertools
import json
import re
import shutil
import time

import jax
import numpy as np
import pytest

import jaxdp

for module in ("tyro", "sklearn", "safetensors"):
    pytest.importorskip(module)
from helpers.trainer import (  # noqa: E402
    STEPS,
    assert_same_run,
    go_on,
    ledger_of,
    prepare_resume,
    steps_on_disk,
)

from jaxdp.trainer.run import resume  # noqa: E402


def test_a_resumed_run_is_the_uninterrupted_one(reference, seeded, capsys):
    assert steps_on_disk(seeded) == [2, 3, 4]
    assert go_on(seeded) == 0
    assert_same_run(reference, seeded)
    assert "Resuming after step 4, in segment 1" in " ".join(capsys.readouterr().out.split())
    assert steps_on_disk(seeded)[-1] == STEPS
    results = json.loads((seeded / "private" / "results.json").read_text())
    assert results["seconds_of_first_step"] > 0  # of this process: it compiled


def test_steps_that_were_logged_and_taken_again_are_logged_once(reference, seeded):
    shutil.rmtree(seeded / "private" / "checkpoints" / "4")
    assert len((seeded / "private" / "metrics.jsonl").read_text().splitlines()) == 4
    assert go_on(seeded) == 0
    assert_same_run(reference, seeded)


def test_without_checkpoints_it_begins_again_for_free(secret):
    shutil.rmtree(secret / "private" / "checkpoints")
    run, history, said = prepare_resume(secret)
    assert (history.step, run.repeats, said) == (0, True, "")


def test_a_secret_run_goes_on_in_its_segment(secret):
    run, history, _ = prepare_resume(secret)
    assert run.repeats
    for name, old in vars(history.last.secrets).items():
        new = getattr(run.saved.secrets, name)
        np.testing.assert_array_equal(*(jax.random.key_data(key) for key in (old, new)))


def test_a_finished_run_is_left_alone(reference, capsys):
    before = ledger_of(reference).position
    assert go_on(reference) == 0
    assert "All steps were taken: the release is in" in " ".join(capsys.readouterr().out.split())
    assert ledger_of(reference).position == before


def test_a_release_of_fewer_steps_is_no_end(reference, tmp_path, capsys):
    """As after a crash between the last step and the release: an earlier release is still there."""
    folder = shutil.copytree(reference, tmp_path / "run")
    statement = folder / "release" / "privacy.json"
    statement.write_text(
        re.sub(r'("steps": )8', r"\g<1>3", statement.read_text())  # of the whole and the mechanism
    )
    assert go_on(folder) == 0
    assert "The release before this one is now in" in " ".join(capsys.readouterr().out.split())
    assert jaxdp.load_release(folder).statement.steps == ledger_of(folder).steps == 8


def test_a_damaged_release_is_told_before_steps_are_taken(secret, capsys):
    release = secret / "release"
    release.mkdir()
    for text in ("", "{", None):
        (release / "privacy.json").unlink(missing_ok=True)
        if text is not None:
            (release / "privacy.json").write_text(text)
        before = ledger_of(secret).position
        assert go_on(secret) == 2
        assert "privacy.json" in capsys.readouterr().err
        assert ledger_of(secret).position == before


def test_a_clock_that_goes_backwards_changes_nothing(reference, seeded, monkeypatch):
    ticks, really = itertools.count(), time.gmtime
    backwards = lambda: 1e9 - 3600 * next(ticks)
    monkeypatch.setattr(time, "time", backwards)
    monkeypatch.setattr(time, "gmtime", lambda *now: really(*(now or (backwards(),))))
    assert go_on(seeded) == 0
    assert_same_run(reference, seeded)
    lines = (seeded / "private" / "ledger.txt").read_text().splitlines()
    times = [fact["time"] for fact in (json.loads(n.rpartition(" ")[0]) for n in lines[2:])]
    assert times[-1] < times[0]


def test_metrics_of_steps_to_come_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": n}) + "\n" for n in (1, 2, 3)) + '{"ste')
    resume.drop_metrics_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
