"""The folder of a run and its private files: never shared, never half written."""

import datetime
import os
import signal
import subprocess
import sys

import pytest

for module in ("tyro", "sklearn", "safetensors"):
    pytest.importorskip(module)
from helpers.trainer import SHORT, stopped_run  # noqa: E402

from jaxdp import report, train  # noqa: E402
from jaxdp.trainer.run import files  # noqa: E402
from jaxdp.trainer.run.files import locked, make_run_folder, write_private  # noqa: E402

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5)


def test_run_folders_are_named_by_time_and_never_shared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = [make_run_folder("digits", None, NOW).as_posix() for _ in range(3)]
    stem = "runs/digits-20260102-030405"
    assert made == [stem, f"{stem}-2", f"{stem}-3"]


def test_a_folder_that_is_given_may_get_a_number(tmp_path):
    given = str(tmp_path / "mine")
    made = [make_run_folder("digits", given, NOW, numbered=True).name for _ in range(3)]
    assert made == ["mine", "mine-2", "mine-3"]


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


def test_a_killed_process_leaves_no_lock(tmp_path):
    folder = make_run_folder("digits", str(tmp_path / "run"), NOW)
    code = (
        "import pathlib, time; from jaxdp.trainer.run.files import locked\n"
        f"with locked(pathlib.Path({str(folder)!r})): print('locked', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "locked\n"
        says = f"is being trained in by process {holder.pid} on \\S+: wait until it ends"
        for _ in range(2):  # asking does not change what the lock says
            with pytest.raises(ValueError, match=says), locked(folder):
                pass
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    with locked(folder):
        pass


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    folder = make_run_folder("digits", str(tmp_path / "run"), NOW)

    def refuse(descriptor, blocking):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(files, "lock_descriptor", refuse)
    with (
        pytest.raises(ValueError, match=r"can't be locked \(Function not impl.*has locks"),
        locked(folder),
    ):
        pass


def loose(folder):
    """What others than its owner may use, in a folder and below."""
    found = [folder, *folder.rglob("*")]
    return [path for path in found if path.stat().st_mode & 0o077]


@pytest.fixture
def no_umask():
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.slow
def test_private_files_are_the_owner_s_whatever_the_umask(tmp_path, no_umask):
    folder = tmp_path / "run"
    assert train.main([*SHORT, "--output", str(folder)]) == 0
    assert report.main([str(folder)]) == 0
    names = {path.name for path in (folder / "private").iterdir()}
    expected = "lock ledger.txt segment-1.json config.json checkpoints metrics.jsonl scores.jsonl "
    assert set((expected + "results.json training.png").split()) <= names
    assert loose(folder / "private") == []
    assert loose(folder / "release")  # may be shared: there the umask decides


def test_a_crash_leaves_no_private_file_open_to_others(tmp_path, no_umask):
    private = stopped_run(tmp_path / "run") / "private"
    checkpoints = private / "checkpoints"
    # Orbax may not have finished in there.
    assert [path for path in loose(private) if checkpoints not in path.parents] == []


def test_what_is_no_run_has_no_lock(tmp_path):
    with (
        pytest.raises(ValueError, match=f"there is no run in {tmp_path}"),
        locked(tmp_path),
    ):
        pass
