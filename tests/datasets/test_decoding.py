"""Files are decoded once; what changes, is damaged or has no room is never used in silence."""

import os
import shutil

import jax
import numpy as np
import pytest

from jaxdp.datasets import cache, decoding
from jaxdp.datasets.decoding import Chunk, Reading, read
from jaxdp.datasets.rows import ArrayRows, ReadFailed

REASON = "the number is too large: write a smaller one"


class Numbers:
    """Files of one number in every line, of which those above 99 are bad rows."""

    def __init__(self, *files, about="numbers", chunk=3, rows_by=""):
        self.files, self.about, self.chunk, self.rows_by = files, about, chunk, rows_by
        self.decoded, self.told = 0, []

    def chunks(self):
        self.decoded += 1
        lines = [int(line) for file in self.files for line in file.read_text().split()]
        for start in range(0, len(lines), self.chunk):
            part = np.array(lines[start : start + self.chunk], np.int32)
            bad = {place: REASON for place, number in enumerate(part) if number > 99}
            fine = np.where(part > 99, 0, part)
            yield Chunk({"inputs": np.stack([fine, fine], 1), "label": fine}, bad)

    def read(self, **settings):
        form = {
            "inputs": jax.ShapeDtypeStruct((2,), np.int32),
            "label": jax.ShapeDtypeStruct((), np.int32),
        }
        reading = Reading(
            "numbers.txt",
            self.files,
            self.about,
            form,
            self.chunks,
            "Decoding (once)",
            rows_by=self.rows_by,
        )
        return read(reading, **{"skip_bad": False, "tell": self.told.append} | settings)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text("\n".join(map(str, range(10))))
    return path


def test_records_are_decoded_once(file):
    numbers = Numbers(file)
    for _ in range(3):
        split = numbers.read()
        assert len(split) == 10
        np.testing.assert_array_equal(split.fields["label"], np.arange(10))
        np.testing.assert_array_equal(split.fields["inputs"], np.arange(10)[:, None].repeat(2, 1))
        assert split.cached
        assert split.bad == {}
    assert numbers.decoded == 1
    assert numbers.told == ["Decoding (once)"]


@pytest.mark.parametrize("times", [1, 2], ids=["decoded", "from the cache"])
def test_a_copy_that_is_written_to_is_seen(file, times):
    for _ in range(times):
        rows = ArrayRows(Numbers(file).read().fields)
    (entry,) = cache.cache_folder().iterdir()
    with (entry / "0.bin").open("r+b") as kept:
        kept.write(b"\xff")
    os.utime(entry / "0.bin", ns=(1, 1))
    with pytest.raises(ReadFailed, match="was written to while its records were used"):
        rows.take(range(1))


def test_moved_files_are_the_same(file, tmp_path):
    numbers = Numbers(file)
    before = numbers.read()
    moved = Numbers(shutil.move(file, tmp_path / "other.txt"))
    os.utime(tmp_path / "other.txt", (0, 0))
    after = moved.read()
    assert moved.decoded == 0
    assert (after.digest, after.content) == (before.digest, before.content)


def test_whatever_decides_the_records_is_decoded_anew(file, monkeypatch):
    first = Numbers(file).read()
    other = Numbers(file, about="others")
    assert other.read().digest == first.digest
    assert other.decoded == 1
    assert Numbers(file, rows_by="another order").read().digest != first.digest
    for text in ("1 0 2 3 4 5 6 7 8 9", "0 1 2 3 4 5 6 7 8", "0 1 2 3 4 5 6 7 8 9 10"):
        file.write_text(text)
        changed = Numbers(file)
        assert changed.read().digest != first.digest
        assert changed.decoded == 1
    monkeypatch.setattr(decoding, "_code_digest", lambda: "newer code")
    newer = Numbers(file)
    newer.read()
    assert newer.decoded == 1


def test_where_files_are_divided_matters(tmp_path):
    digests = set()
    for texts in (("1 2", " 3"), ("1", " 2 3"), (" 3", "1 2")):
        files = [tmp_path / "a", tmp_path / "b"]
        for path, text in zip(files, texts, strict=True):
            path.write_text(text)
        digests.add(Numbers(*files).read().digest)
    assert len(digests) == 3


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "missing"])
def test_a_damaged_copy_is_decoded_anew(harm, file):
    numbers = Numbers(file)
    numbers.read()
    (entry,) = cache.cache_folder().iterdir()
    content = bytearray((entry / "0.bin").read_bytes())
    content[9] ^= 1
    changed = {"flip": content, "cut": content[:-8], "empty": b""}
    (entry / "0.bin").unlink()
    if harm in changed:
        (entry / "0.bin").write_bytes(changed[harm])
    np.testing.assert_array_equal(numbers.read().fields["inputs"][:, 0], np.arange(10))
    numbers.read()
    assert numbers.decoded == 2


@pytest.mark.parametrize("kept", [False, True])
def test_the_first_bad_row_is_an_error(kept, file):
    file.write_text("1 2 3 4 500 6 700 8")
    numbers = Numbers(file)
    if kept:
        numbers.read(skip_bad=True)
    with pytest.raises(ValueError, match=rf"^numbers.txt, row 4: {REASON}\. Or give") as error:
        numbers.read()
    assert "--data.skip-bad" in str(error.value)
    assert "500" not in str(error.value)
    assert "row 6" not in str(error.value)
    assert numbers.decoded == 1


def test_bad_rows_are_listed_and_keep_their_place(file):
    file.write_text("1 2 3 4 500 6 700 8")
    numbers = Numbers(file)
    with pytest.raises(ValueError, match="row 4"):
        numbers.read()
    for _ in range(2):
        split = numbers.read(skip_bad=True)
        assert split.bad == {4: REASON, 6: REASON}
        np.testing.assert_array_equal(split.fields["label"], [1, 2, 3, 4, 0, 6, 0, 8])
    assert numbers.decoded == 2  # the first time ended at the bad row


def unwritable(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    return "not a directory"


def full(monkeypatch, tmp_path):
    monkeypatch.setenv(cache.LIMIT, "100e-9")  # 120 bytes are needed
    return "the cache may have 1e-07 gb"


def no_space(monkeypatch, tmp_path):
    def fails(self, arrays):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.Writer, "add", fails)
    return "no space left on device"


@pytest.mark.parametrize("fail", [unwritable, full, no_space])
def test_without_a_cache_records_are_in_memory(fail, file, tmp_path, monkeypatch):
    expected = Numbers(file).read()
    cache.clear()
    why = fail(monkeypatch, tmp_path)
    numbers = Numbers(file)
    split = numbers.read()
    assert not split.cached
    assert (split.digest, split.content) == (expected.digest, expected.content)
    jax.tree.map(np.testing.assert_array_equal, split.fields, dict(expected.fields))
    assert numbers.told[0] == "Decoding (once)"
    assert "can't be used" in numbers.told[1]
    assert why in numbers.told[1].lower()
    assert numbers.told[1].endswith("decoding into memory.")
    monkeypatch.setattr(decoding, "MEMORY_BYTES", 100)
    with pytest.raises(ValueError, match=r"numbers.txt is too large for memory, and the cache"):
        numbers.read()


def test_bad_rows_are_found_without_a_cache(file, tmp_path, monkeypatch):
    unwritable(monkeypatch, tmp_path)
    file.write_text("1 2 3 4 500")
    assert Numbers(file).read(skip_bad=True).bad == {4: REASON}
    with pytest.raises(ValueError, match="row 4"):
        Numbers(file).read()


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("change", ["append", "replace", "delete"])
def test_a_file_that_changes_meanwhile_is_refused(change, cached, file, tmp_path, monkeypatch):
    if not cached:
        unwritable(monkeypatch, tmp_path)

    class Changing(Numbers):
        def chunks(self):
            yield from super().chunks()
            if change == "append":
                file.write_text(file.read_text() + "\n10")
            elif change == "delete":
                file.unlink()
            else:
                (tmp_path / "new").write_text(file.read_text().replace("3", "7"))
                (tmp_path / "new").replace(file)

    message = "can't be read .no such file" if change == "delete" else "changed while it was read"
    with pytest.raises(ValueError, match=f"numbers.txt.* {message}"):
        Changing(file).read()


def test_what_was_decoded_from_a_changing_file_is_not_kept(file):
    before = file.read_text()
    times = file.stat()

    class Changing(Numbers):
        def chunks(self):
            file.write_text("9 9 9")
            yield from super().chunks()

    with pytest.raises(ValueError, match="changed while it was read"):
        Changing(file).read()
    file.write_text(before)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    np.testing.assert_array_equal(Numbers(file).read().fields["label"], np.arange(10))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.unlink(), "can't be read .no such file"),
        (lambda path: [path.unlink(), path.mkdir()], "can't be read .is a directory"),
        (lambda path: path.write_text(""), "holds no records: give a file that has some"),
    ],
)
def test_files_without_records_are_one_line(make, message, file):
    make(file)
    with pytest.raises(ValueError, match=message) as error:
        Numbers(file).read()
    assert len(str(error.value).splitlines()) == 1


def test_errors_of_the_decoder_are_no_reason_to_blame_the_cache(file):
    class Wrong(Numbers):
        def chunks(self):
            raise ValueError("numbers.txt has no header: write one")

    wrong = Wrong(file)
    with pytest.raises(ValueError, match="has no header"):
        wrong.read()
    assert wrong.told == ["Decoding (once)"]
    assert list(cache.cache_folder().iterdir()) == []
