"""What is kept between runs is whole, or made again."""

import os

import numpy as np
import pytest

from jaxdp import data
from jaxdp.datasets import cache


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "jaxdp"


class Maker:
    calls = 0

    def __call__(self):
        self.calls += 1
        return {"a": np.arange(1000), "b": np.ones(3)}


def test_arrays_are_made_once():
    make = Maker()
    first, second = cache.cached("x", make), cache.cached("x", make)
    assert make.calls == 1
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])


@pytest.mark.parametrize("harm", ["flip", "cut", "empty"])
def test_a_damaged_file_is_made_again(folder, harm):
    make = Maker()
    cache.cached("x", make)
    data = bytearray((folder / "x.npz").read_bytes())
    data[500] ^= 1
    damaged = {"flip": data, "cut": data[:700], "empty": b""}[harm]
    (folder / "x.npz").write_bytes(damaged)
    np.testing.assert_array_equal(cache.cached("x", make)["a"], np.arange(1000))
    assert make.calls == 2
    cache.cached("x", make)
    assert make.calls == 2


def test_files_appear_whole_and_are_the_owners_alone(folder, monkeypatch):
    def fails(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", fails)
        assert len(cache.cached("x", Maker())["a"]) == 1000  # no reason to fail
    assert list(folder.iterdir()) == []
    cache.cached("x", Maker())
    assert [file.name for file in folder.iterdir()] == ["x.npz"]
    assert os.stat(folder / "x.npz").st_mode & 0o077 == 0


def test_the_command_forgets_what_is_kept(folder, capsys):
    assert data.main(["forget"]) == 0
    assert f"0 files deleted from {folder}" in capsys.readouterr().out
    cache.cached("images", lambda: {"x": np.arange(3)})
    (folder / "torn.partial").touch()
    assert data.main(["forget"]) == 0
    assert "2 files deleted" in capsys.readouterr().out
    assert list(folder.iterdir()) == []
