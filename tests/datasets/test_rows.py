"""Sources: rows of any library are records, each checked once, and read when they are sampled."""

import os

import jax
import numpy as np
import pytest

from jaxdp.datasets import Dataset, Source, files_digest, rows
from jaxdp.datasets.rows import ReadFailed

N = 1200
X = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
Y = np.arange(N, dtype=np.int32) % 7


class Own:
    """A source as a user writes it."""

    def __init__(self, x=X, y=Y, digest="content 1"):
        self.fields = {"x": "three numbers", "y": "class of 7"}
        self.x, self.y, self.digest_told, self.read = x, y, digest, []

    def __len__(self):
        return len(self.x)

    def __getitems__(self, rows):
        self.read += rows
        return self.x[rows], self.y[rows]

    def digest(self):
        return self.digest_told


class ByRow:
    """Rows by number alone."""

    def __init__(self, x=X, y=Y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return self.x[row], self.y[row]


def test_a_source_is_checked_once_and_then_read_when_asked():
    source = Own()
    assert isinstance(source, Source)
    data = Dataset(private=source, test=Own(X[:9], Y[:9]), name="visits")
    assert source.read == [0, *range(N)]  # the first row tells the form
    assert not data.private.in_memory
    assert data.private.repeats
    assert data.fields == {"x": "three numbers", "y": "class of 7"}
    source.read.clear()
    taken = data.private.take(np.array([5, 3, 5]))
    jax.tree.map(np.testing.assert_array_equal, taken, (X[[5, 3, 5]], Y[[5, 3, 5]]))
    assert source.read == [5, 3, 5]
    # Another process finds that it was checked.
    again = Own()
    assert Dataset(private=again).private.digest() == data.private.digest()
    assert again.read == [0]
    other = Own(digest="content 2")
    assert Dataset(private=other).private.digest() != data.private.digest()
    assert len(other.read) == N + 1
    # The same files, read as something else.
    wider = Own(X.astype(np.float16))
    assert Dataset(private=wider).private.digest() != data.private.digest()
    assert len(wider.read) == N + 1


def test_a_source_is_taken_apart_by_rules():
    source = Own()
    data = Dataset.split(source, private="rows[:10]+rows[100:]", test="rows[20:30]")
    kept = [*range(10), *range(100, N)]
    np.testing.assert_array_equal(data.private.numbers(), kept)
    jax.tree.map(np.testing.assert_array_equal, data.private.fields, (X[kept], Y[kept]))
    places = np.array([12, 3, 9, 10])
    jax.tree.map(
        np.testing.assert_array_equal,
        data.private.take(places),
        (X[kept][places], Y[kept][places]),
    )
    np.testing.assert_array_equal(data.test.take(range(2, 5))[0], X[22:25])
    np.testing.assert_array_equal(data.private.take(range(8, 12))[0], X[kept][8:12])
    assert data.private.digest() != Dataset.split(Own(), private="rows").private.digest()


def test_without_a_digest_the_content_is_hashed_every_time(monkeypatch):
    small = Dataset(private=ByRow())
    assert small.private.in_memory
    assert small.private.repeats
    assert small.private.digest() == Dataset(private=(X, Y)).private.digest()
    monkeypatch.setattr(rows, "MEMORY_BYTES", 100)
    large = Dataset(private=ByRow())
    assert not large.private.in_memory
    assert not large.private.repeats  # so that no step is repeated for free
    assert large.private.digest() == Dataset(private=ByRow()).private.digest()
    changed = X.copy()
    changed[-1, -1] += 1
    assert large.private.digest() != Dataset(private=ByRow(changed)).private.digest()
    jax.tree.map(np.testing.assert_array_equal, large.private.fields, (X, Y))


def test_mapped_files_are_records_and_their_changes_are_seen(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, X)
    data = Dataset.split((np.load(path, mmap_mode="r"), Y), private="rows[:1000]")
    assert not data.private.in_memory
    in_memory = Dataset.split((X, Y), private="rows[:1000]")
    assert data.private.digest() == in_memory.private.digest()
    assert data.digests == in_memory.digests
    np.testing.assert_array_equal(data.private.take(np.array([7, 2]))[0], X[[7, 2]])
    # A copy that replaces it is another file: what was mapped stays.
    os.replace(_copy(path, X + 1), path)
    np.testing.assert_array_equal(data.private.take(np.array([7]))[0], X[[7]])
    now = Dataset((np.load(path, mmap_mode="r"), Y))
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\0")
    os.utime(path, ns=(1, 1))
    with pytest.raises(ReadFailed, match=r"x\.npy was written to while its records were used"):
        now.private.take(np.array([0]))


def _copy(path, array):
    np.save(path.with_name("copy.npy"), array)
    return path.with_name("copy.npy")


def test_a_source_that_fails_later_stops_the_run():
    source = Own()
    data = Dataset(private=source)
    source.x = X[:, :2]
    with pytest.raises(
        ReadFailed, match=r"can't be read \(a record is .*\), though they could before the run"
    ):
        data.private.take(np.array([1]))
    source.x = X[:10]
    with pytest.raises(
        ReadFailed, match=r"can't be read \(IndexError at test_rows.py, line \d+\), though"
    ):
        data.private.take(np.array([700]))


def test_the_digest_of_files_is_of_their_content(tmp_path):
    for name, content in (("a", b"one"), ("b", b"two"), ("c", b"one")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (str(tmp_path / name) for name in "abc")
    assert files_digest(a, b) == files_digest(c, b)
    assert len({files_digest(a), files_digest(b), files_digest(a, b), files_digest(b, a)}) == 4
    with pytest.raises(OSError, match="nothing"):
        files_digest(tmp_path / "nothing")


ragged = [(X[i], Y[i]) if i != 700 else (X[i, :2], Y[i]) for i in range(N)]
nan = X.copy()
nan[901, 1] = np.nan
CURE = "give a pytree of arrays of numbers"


class Fails(ByRow):
    def __getitem__(self, row):
        if row == 333:
            raise OSError("SECRET\nvalue")
        return super().__getitem__(row)


class Listed(ByRow):
    def __getitem__(self, row):
        return ragged[row]


class Names(ByRow):
    def __getitem__(self, row):
        return {"x": X[row], "who": f"SECRET{row}"}


class Few(Own):
    def __getitems__(self, rows):
        return self.x[:1], self.y[:1]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (Own, r"private rows can't be read \(they are a type, without a length and rows by number"),
        (Own(nan, Y, "nan"), "^row 901 of the private rows holds NaN"),
        (Own(X[:0], Y[:0]), rf"private rows can't be read \(there are none\): {CURE}"),
        (Own(digest=None), "^the digest of the private source is None: return a text"),
        (Own(digest=""), "^the digest of the private source is ''"),
        (
            Own(X, Y[:50], "short"),
            r"rows can't be read from row 50 on \(IndexError at test_rows.py",
        ),
        (Few(digest="few"), r"500 rows were asked for, and arrays of \[\(1, 3\), \(1,\)\] came"),
        (
            Fails(),
            rf"rows can't be read from row 333 on \(OSError at test_rows.py, line \d+\): {CURE}",
        ),
        (Listed(), r"rows can't be read from row 700 on \(a record is \(float32\[2\], int32"),
        (Names(), r"hold \['who'\] of shape \(1,\) and type <U\d: give"),
    ],
    ids=[
        "class",
        "NaN",
        "empty",
        "no digest",
        "no text",
        "short",
        "few",
        "fails",
        "ragged",
        "words",
    ],
)
def test_rows_that_are_no_records_are_refused_in_one_line(source, says):
    with pytest.raises(ValueError, match=says) as error:
        Dataset(private=source)
    assert len(str(error.value).splitlines()) == 1
    assert "SECRET" not in str(error.value)


def test_one_content_has_one_use(tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = lambda: np.load(tmp_path / "x.npy", mmap_mode="r")
    for one, two in ((Own(), Own()), (mapped(), mapped()), (X, X.copy())):
        with pytest.raises(ValueError, match="some public rows are rows of the private arrays"):
            Dataset(private=one, public=two)


def test_a_source_has_one_use():
    source = Own()
    with pytest.raises(ValueError, match="some test rows are rows of the private arrays"):
        Dataset(private=source, test=source)


def test_rows_of_hugging_face_are_records():
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"x": X.tolist(), "label": Y.tolist()})
    for given in (table, table.with_format("numpy")):
        data = Dataset.split(given, private="rows[:1000]", test="rows[1000:]")
        np.testing.assert_array_equal(data.private.fields["x"].astype(np.float32), X[:1000])
        np.testing.assert_array_equal(data.test.fields["label"], Y[1000:])
    with pytest.raises(ValueError, match=r"hold \['note'\] of shape .* type <U"):
        Dataset(table.add_column("note", ["words"] * N))


def test_sources_of_grain_are_records():
    grain = pytest.importorskip("grain.python")
    source = grain.MapDataset.source(grain.RangeDataSource(0, N, 1)).map(lambda i: (X[i], Y[i]))
    data = Dataset.split(source, private="rows[:1000]", test="rows[1000:]")
    jax.tree.map(np.testing.assert_array_equal, data.private.fields, (X[:1000], Y[:1000]))
