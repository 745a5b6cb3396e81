"""The folder of a run and its private files: never shared, never half written."""

import datetime
import os

import pytest

for module in ("tyro", "sklearn", "safetensors"):
    pytest.importorskip(module)
from helpers.trainer import STEPS  # noqa: E402

from jaxdp.trainer.run.files import (  # noqa: E402
    load_record,
    locked,
    make_run_folder,
    write_private,
)

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5)


def test_run_folders_are_named_by_time_and_never_shared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = [make_run_folder("digits", None, NOW).as_posix() for _ in range(3)]
    stem = "runs/digits-20260102-030405"
    assert made == [stem, f"{stem}-2", f"{stem}-3"]


def test_only_the_owner_may_look_into_private(tmp_path):
    folder = make_run_folder("digits", str(tmp_path / "run"), NOW)
    assert (folder / "private").stat().st_mode & 0o077 == 0


def test_an_existing_output_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} exists already.*name another one"):
        make_run_folder("digits", str(tmp_path), NOW)


def test_an_unwritable_output_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"can't be made .*--output FOLDER"):
        make_run_folder("digits", str(tmp_path / "file" / "run"), NOW)


def test_a_private_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "secret.json"
    write_private(path, "before")

    def fails(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="No space left"):
        write_private(path, "after")
    monkeypatch.undo()
    assert path.read_text() == "before"
    write_private(path, "after")  # what the failed one left is no hindrance
    assert path.read_text() == "after"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_one_process_at_a_time_is_in_a_run(tmp_path):
    folder = make_run_folder("digits", str(tmp_path / "run"), NOW)
    for _ in range(2):  # the lock is let go
        with (
            locked(folder),
            pytest.raises(ValueError, match=f"is being trained in by process {os.getpid()} on"),
            locked(folder),
        ):
            pass


def test_what_is_no_run_has_no_lock(tmp_path):
    with (
        pytest.raises(ValueError, match=f"{tmp_path} can't be resumed .No such file"),
        locked(tmp_path),
    ):
        pass


def test_the_record_of_a_run_is_what_its_files_say(reference):
    found = load_record(reference)
    assert (found.name, found.folder) == (reference.name, reference)
    assert (found.config.seed, found.config.plan.steps) == (1, STEPS)
    assert [mechanism.steps for mechanism in found.spent] == [STEPS]
    assert found.starts == [0]
    assert [one["step"] for one in found.metrics] == list(range(1, STEPS + 1))
    assert found.scores[-1]["accuracy"] == found.results["test_accuracy"]
    assert found.budget.epsilon == 3.0


def test_a_crash_leaves_a_record_too(secret):
    with (secret / "private" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    found = load_record(secret)
    assert [one["step"] for one in found.metrics] == [1, 2, 3, 4]
    assert found.results == {}


def test_what_is_no_record_is_refused(tmp_path, secret):
    with pytest.raises(ValueError, match="holds no run"):
        load_record(tmp_path)
    (secret / "private" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged .*undamaged copy"):
        load_record(secret)
    (secret / "private" / "config.json").unlink()
    with pytest.raises(ValueError, match="stopped before its first step"):
        load_record(secret)
