"""Files that are damaged, in use or can't be written: one line, and nothing is lost."""

import errno
import json
import os
import re
import resource

import jax
import pytest

for module in ("tyro", "sklearn", "safetensors"):
    pytest.importorskip(module)
from helpers.trainer import assert_same_run, go_on, ledger_of, prepare_resume  # noqa: E402

from jaxdp import report  # noqa: E402
from jaxdp.trainer.run.files import locked  # noqa: E402
from jaxdp.trainer.run.ledger import Ledger  # noqa: E402

# Orbax's threads may still call back when a file was missing or the disk full: that is its affair.
orbax_fails = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def test_a_checkpoint_ahead_of_its_ledger_is_refused(secret, capsys):
    path = secret / "private" / "ledger.txt"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))
    assert go_on(secret) == 2
    said = capsys.readouterr().err
    assert "the checkpoint of step 4 is ahead of its ledger" in said
    assert "has 3 lines" in said
    assert path.read_bytes() == b"".join(lines[:3])


def test_a_ledger_cut_to_its_budget_is_no_new_run(secret, capsys):
    path = secret / "private" / "ledger.txt"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    assert go_on(secret) == 2
    assert "the checkpoints are ahead of the ledger" in capsys.readouterr().err
    assert report.main([str(secret)]) == 2
    assert "stopped before its first step" in capsys.readouterr().err


def test_a_ledger_begun_anew_is_refused(secret, capsys):
    path = secret / "private" / "ledger.txt"
    old = Ledger.read(path)
    path.unlink()
    new = Ledger.create(path, old.budget)
    new.open_segment(old.segments[0])
    for step in range(9):
        new.charge(step, step)
    new.close()
    assert go_on(secret) == 2
    assert "is ahead of its ledger" in capsys.readouterr().err


def test_a_damaged_ledger_is_refused_by_line(secret, capsys):
    path = secret / "private" / "ledger.txt"
    path.write_text(path.read_text().replace('"first": 0', '"first": 1'))
    assert go_on(secret) == 2
    assert "ledger.txt, line 3 is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["edited", "swapped", "gone"])
def test_other_secrets_than_the_ledger_s_are_refused(secret, capsys, damage):
    """Else charged steps would be repeated with other noise, for free."""
    path = secret / "private" / "segment-1.json"
    before = path.read_text()
    fact = json.loads(before)
    if damage == "gone":
        changed = [{name: value for name, value in fact.items() if name != "secrets"}]
    elif damage == "swapped":
        changed = [{**fact, "secrets": {name: [1, 2, 3, 4] for name in fact["secrets"]}}]
    else:  # one bit of one key
        changed = [json.loads(before) for _ in fact["secrets"]]
        for name, one in zip(fact["secrets"], changed, strict=True):
            one["secrets"][name][3] ^= 1
    for one in changed:
        path.write_text(json.dumps(one))
        assert go_on(secret) == 2
        said = capsys.readouterr().err
        assert "segment-1.json does not hold the secrets with which the ledger began" in said
        assert f"python -m jaxdp.seal {secret}" in said
    path.write_text(before)
    assert prepare_resume(secret)[0].repeats


@orbax_fails
def test_a_full_disk_stops_the_run_and_nothing_is_lost(reference, seeded, capsys):
    """No file may grow beyond the ledger's size now, which is what a full disk does to it."""
    path = seeded / "private" / "ledger.txt"
    text = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The tests' own cache of compiled programs must not meet the limit.
    least_seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(text), hard))
    try:
        assert go_on(seeded) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least_seconds)
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    assert f"--resume {seeded}" in said
    assert not (seeded / "release").exists()
    assert go_on(seeded) == 0
    assert_same_run(reference, seeded)


def read_only(patch, folder):
    """Root may write where permissions forbid it, so the file system is what refuses here."""
    really_open = os.open

    def refuse(path, flags, *args, **kwargs):
        if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(str(folder)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return really_open(path, flags, *args, **kwargs)

    patch.setattr(os, "open", refuse)


def test_a_read_only_folder_is_refused_in_one_line(secret, capsys, monkeypatch):
    read_only(monkeypatch, secret)
    assert go_on(secret) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "can't be locked (Read-only file system:" in said
    assert "in a place that you may write to" in said


def test_a_read_only_ledger_is_refused_in_one_line(secret, capsys, monkeypatch):
    read_only(monkeypatch, secret / "private" / "ledger.txt")
    assert go_on(secret) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "ledger.txt can't be written to (Read-only file system): make the folder" in said


def test_a_folder_that_becomes_read_only_stops_the_run_in_one_line(secret, capsys, monkeypatch):
    charged, write = ledger_of(secret).steps, os.write
    path = secret / "private" / "ledger.txt"

    def refuse(descriptor, data):
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", refuse)
    assert go_on(secret) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "Read-only file system: stopped, what was spent stays charged. Make the folder" in said
    assert ledger_of(secret).steps == charged
    assert not (secret / "release").exists()


def test_a_folder_in_use_is_refused(secret, capsys):
    with locked(secret):
        assert go_on(secret) == 2
    said = capsys.readouterr().err
    assert f"is being trained in by process {os.getpid()}" in said


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_what_is_no_run_cannot_be_resumed(tmp_path, capsys, name):
    assert go_on(tmp_path / name) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"error: \S+ can't be resumed, \S+: no such file or directory. Name the folder that "
        r"`python -m jaxdp.train` made\n",
        said,
    )
