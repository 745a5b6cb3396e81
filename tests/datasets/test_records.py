"""Records and data sets: every form of rows is read as the same records, or refused in one line."""

from collections import namedtuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers.trees import assert_same

from jaxdp.datasets.dataset import Dataset
from jaxdp.datasets.digests import arrays_digest
from jaxdp.datasets.records import Records

N = 10
X = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
Y = np.arange(N, dtype=np.int32)
Pair = namedtuple("Pair", "x y")


class Rows:
    """Rows by number, as the data sets of other libraries have them."""

    def __init__(self, get, size=N):
        self.get, self.size = get, size

    def __len__(self):
        return self.size

    def __getitem__(self, row):
        return self.get(row)


@pytest.mark.parametrize(
    ("rows", "fields"),
    [
        (X, X),
        (jnp.asarray(X), X),
        ((X, Y), (X, Y)),
        ((jnp.asarray(X), Y), (X, Y)),
        (Pair(X, Y), Pair(X, Y)),
        ({"image": X, "more": (Y, {"label": Y})}, {"image": X, "more": (Y, {"label": Y})}),
        ({"x": X, "none": None}, {"x": X, "none": None}),
        ([(X[i], Y[i]) for i in range(N)], (X, Y)),
        ([(X[i].tolist(), int(Y[i])) for i in range(N)], (X, Y)),
        ([{"x": X[i], "y": Y[i]} for i in range(N)], {"x": X, "y": Y}),
        (Rows(lambda i: (X[i], Y[i])), (X, Y)),
        (Rows(lambda i: jnp.asarray(X[i])), X),
    ],
    ids=lambda value: type(value).__name__,
)
def test_rows_of_every_form_are_records(rows, fields):
    data = Dataset(private=rows)
    assert len(data.private) == N
    assert_same(data.private.fields, fields)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(data.private.fields))
    assert (data.test, data.public) == (None, None)
    np.testing.assert_array_equal(data.private.numbers(), np.arange(N))
    assert data.private.numbers().dtype == np.int32


@pytest.mark.parametrize(
    "dtype", [np.bool_, np.uint8, np.int64, np.float16, ml_dtypes.bfloat16, np.complex64]
)
def test_numbers_of_every_type_are_records(dtype):
    array = np.ones((N, 2), dtype)
    assert Dataset(private=array).private.fields.dtype == dtype


def test_one_record_has_the_types_that_jax_gives_it():
    records = Records({"x": np.zeros((N, 2, 3), np.float64), "y": np.zeros(N, np.int64)})
    shapes = records.shape_of_one()
    assert {name: (s.shape, str(s.dtype)) for name, s in shapes.items()} == {
        "x": ((2, 3), "float32"),
        "y": ((), "int32"),
    }
    zero = records.zero()
    assert_same(zero, {"x": np.zeros((2, 3), np.float32), "y": np.zeros((), np.int32)})
    assert zero["y"].dtype == np.int32
    assert records.nbytes == N * (6 * 8 + 8)


def test_a_data_set_says_what_it_is_made_of():
    data = Dataset((X[:6], Y[:6]), (X[6:9], Y[6:9]), (X[9:], Y[9:]), name="visits")
    assert (len(data.private), len(data.test), len(data.public)) == (6, 3, 1)
    assert (data.name, data.test_is_public, data.window) == ("visits", False, None)
    assert data.rules == {
        "private": "6 rows that were given",
        "test": "3 rows that were given",
        "public": "1 rows that were given",
    }
    assert sorted(data.digests) == ["private", "public", "test"]
    assert Dataset(X, test_is_public=True).test_is_public
    assert Dataset(X).name == "own data"


def test_records_are_told_apart_by_every_bit():
    same = Records((X, Y))
    changed = X.copy()
    changed[3, 1] = np.nextafter(changed[3, 1], 9)
    others = [
        Records((changed, Y)),
        Records((X, Y.astype(np.int64))),
        Records((X[::-1], Y)),
        Records((X[:-1], Y[:-1])),
        Records((X.reshape(N, 3, 1), Y)),
        Records({"x": X, "y": Y}),
        Records((X, Y), np.arange(N, dtype=np.int32)[::-1]),
    ]
    assert same.digest() == Records((X.copy(), Y)).digest()
    assert same.digest() == Records((X, Y), np.arange(N, dtype=np.int32)).digest()
    assert len({same.digest(), *(other.digest() for other in others)}) == 1 + len(others)
    assert arrays_digest([X]) != arrays_digest([X], "of something")
    assert arrays_digest([X[:, ::-1]]) == arrays_digest([X[:, ::-1].copy()])


def test_rules_take_rows_apart():
    data = Dataset.split(
        (X, Y),
        private="rows[:40%]+rows[7:]",
        test="rows[4:5]",
        public="rows[5:7]",
        name="visits",
        test_is_public=True,
    )
    for use, rows in (("private", [0, 1, 2, 3, 7, 8, 9]), ("test", [4]), ("public", [5, 6])):
        records = getattr(data, use)
        assert_same(records.fields, (X[rows], Y[rows]))
        np.testing.assert_array_equal(records.numbers(), rows)  # they keep their numbers
    assert data.rules == {
        "private": "rows[:40%]+rows[7:]",
        "test": "rows[4:5]",
        "public": "rows[5:7]",
    }
    assert (data.name, data.test_is_public) == ("visits", True)
    assert data.digests == {"rows": Records((X, Y)).digest()}
    only = Dataset.split(X, private="rows")
    assert (only.test, only.public, only.rules) == (None, None, {"private": "rows"})


nan, infinite = X.copy(), X.copy()
nan[4, 2], infinite[7, 0] = np.nan, -np.inf
CURE = r"give a pytree of arrays of numbers with one row for each record"
WRONG = {
    "nothing": (lambda: Dataset(None), "private is None: give the rows to train on"),
    "lengths": (
        lambda: Dataset((X, Y[:-1])),
        r"the private rows: .* different numbers of rows, or none \(\[0\]: 10, \[1\]: 9\): give",
    ),
    "no rows": (lambda: Dataset((X[:0], Y[:0])), r"\[0\]: 0, \[1\]: 0\): .*at least one record"),
    "no array": (lambda: Dataset({}), r"different numbers of rows, or none \(no array\)"),
    "an empty list": (
        lambda: Dataset([]),
        rf"private rows can't be read \(there are none\): {CURE}",
    ),
    "a number": (lambda: Dataset(3.0), "they are a float, without a length and rows by number"),
    "an iterator": (lambda: Dataset(iter([X])), "without a length and rows by number"),
    "pandas": (
        lambda: Dataset(type("DataFrame", (), {"iloc": None, "__len__": lambda self: N})()),
        r"the private rows are a table of pandas: give \(df\[inputs\]\.to_numpy\(\)",
    ),
    "a scalar": (lambda: Dataset((X, np.float32(3))), r"hold \[1\] of shape \(\) and type float32"),
    "text": (lambda: Dataset((X, ["a"] * N)), r"hold \[1\]\[0\] of shape \(\) and type <U1"),
    "names": (lambda: Dataset({"x": X, "who": np.array(["a"] * N)}), r"hold \['who'\] .*type <U1"),
    "objects": (lambda: Dataset(np.array([None] * N)), "the array of shape .* type object"),
    "dates": (lambda: Dataset(np.zeros(N, "datetime64[s]")), "type datetime64"),
    "columns": (lambda: Dataset(np.zeros(N, [("a", "f4")])), r"type \[\('a', '<f4'\)\]"),
    "ragged": (
        lambda: Dataset([(X[0], 1), (X[1, :2], 1)]),
        r"private rows can't be read \(all input arrays must have the same shape\): give",
    ),
    "forms": (
        lambda: Dataset([(X[0], 1), X[1]]),
        r"rows can't be read \(record 1 of the list has another form than the first one\): give",
    ),
    "types": (
        lambda: Dataset([(X[0], 16777217), (X[1], 0.5)]),
        "record 1 of the list has numbers of other types than the first one",
    ),
    "no such row": (
        lambda: Dataset(Rows({"x": X, "y": Y}.__getitem__)),
        r"private rows can't be read \(KeyError at test_records.py, line \d+\): give",
    ),
    "NaN": (
        lambda: Dataset((X, nan)),
        r"row 4 of the private rows holds NaN, infinity .*float32 in \[1\]",
    ),
    "infinity": (lambda: Dataset(infinite), "row 7 of the private rows .* in the array: replace"),
    "test NaN": (lambda: Dataset(X, nan), "row 4 of the test rows holds NaN"),
    "public NaN": (lambda: Dataset(X, None, nan), "row 4 of the public rows holds NaN"),
    "large": (
        lambda: Dataset(np.array([1, 2**40])),
        "row 1 of the private rows holds .* a number too large for int32 in the array: replace",
    ),
    "larger": (lambda: Dataset(np.array([[1.0, 1e300]])), "row 0 .* too large for float32"),
    "short NaN": (lambda: Dataset(nan.astype(ml_dtypes.bfloat16)), "row 4 .*for bfloat16"),
    "test form": (lambda: Dataset((X, Y), X), "a test record is .*, and a private one is .*form"),
    "public shape": (
        lambda: Dataset(X, public=X[:, :2]),
        r"a public record is float32\[2\], and a private one is float32\[3\]",
    ),
    "test type": (lambda: Dataset(X, X.astype(np.int32)), "a test record is .*int32"),
    "name": (lambda: Dataset(X, name=" "), "name is ' ': give a name for the records"),
    "lines": (lambda: Dataset(X, name="a\nb"), r"name is 'a\\nb'"),
    "no name": (lambda: Dataset(X, name=None), "name is None"),
    "split's name": (lambda: Dataset.split(X, private="rows", name=""), "name is ''"),
    "split's private": (lambda: Dataset.split(X, private=None), "private is None: give"),
    "overlap": (
        lambda: Dataset.split(X, private="rows[:60%]", test="rows[5:]"),
        r"private = 'rows\[:60%\]' and test = 'rows\[5:\]': 1 records of 'rows' are in both",
    ),
    "public overlap": (
        lambda: Dataset.split(X, private="rows[:6]", public="rows[:1]"),
        "1 records of 'rows' are in both",
    ),
    "no split": (lambda: Dataset.split(X, private="train"), r"needs 'train'.*has rows \(10\)"),
    "unreadable": (lambda: Dataset.split(X, private="rows[1]"), "can't be read: write it like"),
    "empty rule": (lambda: Dataset.split(X, private="rows[5:5]"), "is empty"),
    "split's rows": (lambda: Dataset.split((X, Y[:3]), private="rows"), "the rows rows: "),
    "ids": (lambda: Records(X, np.arange(3)), r"ids has shape \(3,\): give one for each of 10"),
}


@pytest.mark.parametrize(("make", "says"), WRONG.values(), ids=WRONG)
def test_what_are_no_records_is_refused_in_one_line(make, says):
    with pytest.raises(ValueError, match=says) as error:
        make()
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "uses",
    [
        lambda x, y: dict(public=(x[:3], y[:3])),
        lambda x, y: dict(test=(x, y), test_is_public=True),
        lambda x, y: dict(test=(x[::2], y[::2])),
    ],
    ids=["public", "test", "every second"],
)
def test_rows_with_two_uses_are_refused(uses):
    with pytest.raises(ValueError, match="rows are rows of the private arrays: give each row one"):
        Dataset((X, Y), **uses(X, Y))


def test_parts_of_one_array_are_taken():
    Dataset((X[::2], Y[::2]), test=(X[1::2], Y[1::2]))
    one = np.broadcast_to(np.int32(1), N)  # all labels are the same number in memory
    Dataset((X[:6], one[:6]), test=(X[6:], one[6:]))
