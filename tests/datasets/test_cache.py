"""The cache is its owner's alone, no larger and no older than it may be, and never wrong."""

import os
import shutil
import time

import numpy as np
import pytest

from jaxdp.datasets import cache


@pytest.fixture
def folder():
    return cache.cache_folder()


def arrays(rows=1000):
    return [np.arange(rows, dtype=np.int32), np.ones((rows, 3), np.uint8)]


def keep(key, rows=1000, **facts):
    with cache.writing() as writer:
        writer.add(arrays(rows))
        return writer.finish(key, facts)


def used(key, days_ago):
    then = time.time() - days_ago * 86400
    os.utime(cache.cache_folder() / key / cache.FACTS, (then, then))


def test_what_is_kept_comes_back_mapped(folder):
    assert cache.find("a") is None
    with cache.writing() as writer:
        writer.add([array[:300] for array in arrays()])
        writer.add([array[300:] for array in arrays()])
        made = writer.finish("a", {"bad": {"3": "a reason"}})
    found = cache.find("a")
    for kept in (made, found):
        for array, expected in zip(kept.arrays, arrays(), strict=True):
            assert isinstance(array, np.memmap)
            assert not array.flags.writeable
            assert array.dtype == expected.dtype
            np.testing.assert_array_equal(array, expected)
        assert kept.facts == {"bad": {"3": "a reason"}}
    assert made.digest == found.digest == keep("b").digest
    assert keep("c", rows=999).digest != made.digest


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_owner_may_read_it(umask, folder):
    before = os.umask(umask)
    try:
        keep("a")
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}
    assert len(modes) == 5
    for path, mode in modes.items():
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_a_folder_that_others_may_read_is_closed(folder):
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    keep("a")
    assert folder.stat().st_mode & 0o777 == 0o700


def test_an_entry_is_whole_or_not_there(folder):
    def interrupted():
        with cache.writing() as writer:
            writer.add(arrays())
            assert [path.name[:8] for path in folder.iterdir()] == ["partial-"]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(folder.iterdir()) == []


def flip(entry):
    with (entry / "1.bin").open("r+b") as file:
        file.seek(2999)
        file.write(b"\0")


def cut(entry):
    os.truncate(entry / "0.bin", 3999)


def lengthen(entry):
    with (entry / "0.bin").open("ab") as file:
        file.write(b"\0")


HARMS = {
    "flip": flip,
    "cut": cut,
    "lengthen": lengthen,
    "empty": lambda entry: (entry / "1.bin").write_bytes(b""),
    "missing": lambda entry: (entry / "1.bin").unlink(),
    "no facts": lambda entry: (entry / cache.FACTS).unlink(),
    "cut facts": lambda entry: os.truncate(entry / cache.FACTS, 50),
    "other facts": lambda entry: (entry / cache.FACTS).write_text('{"leaves": 3}'),
    "a file": lambda entry: [shutil.rmtree(entry), entry.write_text("x")],
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_entry_is_none(harm, folder):
    keep("a")
    HARMS[harm](folder / "a")
    assert cache.find("a") is None
    np.testing.assert_array_equal(keep("a").arrays[0], arrays()[0])  # it can be made again
    np.testing.assert_array_equal(cache.find("a").arrays[0], arrays()[0])
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_what_was_not_used_longest_makes_room(monkeypatch, folder):
    for days, key in enumerate("abcd"):  # 7 kB each
        keep(key)
        used(key, days_ago=days)
    cache.find("d")  # the oldest is used again
    monkeypatch.setenv(cache.LIMIT, "22e-6")
    keep("e")
    assert sorted(path.name for path in folder.iterdir()) == ["a", "d", "e"]


def test_an_entry_may_be_as_large_as_the_cache(monkeypatch, folder):
    keep("a")
    monkeypatch.setenv(cache.LIMIT, "7.1e-6")
    keep("b")
    assert [path.name for path in folder.iterdir()] == ["b"]
    np.testing.assert_array_equal(cache.find("b").arrays[0], arrays()[0])


def test_what_is_larger_than_the_cache_is_not_kept(monkeypatch, folder):
    keep("a")
    monkeypatch.setenv(cache.LIMIT, "8e-6")
    with pytest.raises(OSError, match=r"the cache may have 8e-06 GB \(JAXDP_CACHE_GB\)"):
        keep("b", rows=2000)
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_what_was_not_used_for_long_is_deleted(monkeypatch, folder):
    for key, days in (("a", 29), ("b", 31), ("c", 3)):
        keep(key)
        used(key, days_ago=days)
    torn = folder / "partial-torn"
    torn.mkdir()
    os.utime(torn, (0, 0))
    assert cache.find("none") is None
    assert sorted(path.name for path in folder.iterdir()) == ["a", "c"]
    assert cache.find("a") is not None  # which is a use
    monkeypatch.setenv(cache.DAYS, "2")
    assert cache.find("c") is None
    assert [path.name for path in folder.iterdir()] == ["a"]


@pytest.mark.parametrize("name", [cache.LIMIT, cache.DAYS])
@pytest.mark.parametrize("text", ["much", "-1", "0", "nan", "inf"])
def test_wrong_limits_are_one_line(name, text, monkeypatch):
    monkeypatch.setenv(name, text)
    with pytest.raises(ValueError, match=f"{name} is '{text}': give a number above 0, as"):
        {cache.LIMIT: keep, cache.DAYS: cache.find}[name]("a")


def test_everything_can_be_deleted(folder):
    assert cache.clear() == 0
    keep("a")
    keep("b")
    (folder / "partial-torn").mkdir()
    assert cache.clear() == 3
    assert list(folder.iterdir()) == []
