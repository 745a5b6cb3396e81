"""Writes reach the disk, where an operating system has what that takes."""

import os

import pytest

from jaxdp.trainer import disk


@pytest.fixture
def synced(monkeypatch):
    """The files and folders that were synced."""
    found = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: (found.append(os.fstat(descriptor)), fsync(descriptor))
    )
    return found


def test_files_and_folders_are_synced(tmp_path, synced):
    file = tmp_path / "file"
    file.write_text("text")
    for path in (file, tmp_path):
        disk.sync(path)
        assert os.path.samestat(synced[-1], path.stat())


def test_a_folder_that_cannot_be_opened_is_left_alone(tmp_path, synced, monkeypatch):
    file = tmp_path / "file"
    file.write_text("text")
    monkeypatch.setattr(disk, "FOLDERS_CAN_BE_SYNCED", False)
    disk.sync(tmp_path)
    assert synced == []
    disk.sync(file)
    assert len(synced) == 1
