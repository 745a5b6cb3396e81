"""Tables become records by their schema, and by nothing else."""

import functools
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from helpers.tables import COLUMNS, FEATURES, LABELS, ROWS, SCHEMA, SPLIT, opened, write_table

from jaxdp.datasets import _cells, _layout
from jaxdp.datasets.digests import files_digest
from jaxdp.datasets.tables import open_rows
from jaxdp.datasets.tokens import Tokens

ROOT = Path(__file__).parents[2]
ADULT = ROOT.parent / "shared" / "data" / "tables" / "adult"
ADULT_COLUMNS = (
    *("age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation"),
    *("relationship", "race", "sex", "capital-gain", "capital-loss", "hours-per-week"),
    *("native-country", "income"),
)
ENDINGS = (".csv", ".tsv", ".parquet", ".npz")


@pytest.fixture(params=ENDINGS)
def table(request, tmp_path):
    return write_table(tmp_path / f"table{request.param}")


@pytest.fixture
def letters(monkeypatch):
    """Tokens are the places of letters, for checks by hand."""

    def make(kind: str, vocabulary: int, length: int) -> Tokens:
        def encode(documents: Sequence[str]) -> np.ndarray:
            return np.array([[ord(c) for c in d.ljust(length)[:length]] for d in documents], "i4")

        return Tokens(128, "letters", "letters are numbered", encode)

    monkeypatch.setattr(_layout, "make_tokens", make)


def test_features_are_those_of_the_schema_in_every_format(table, short_chunks):
    source = opened(table)
    assert source.sizes == {"train": 4}
    split = source.read("train")
    features, labels = split.fields
    assert (features.dtype, labels.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(features, np.float32(FEATURES))
    np.testing.assert_array_equal(labels, LABELS)
    assert split.bad == {}
    assert split.cached


def test_the_format_says_what_the_columns_are_and_where_constants_come_from(table):
    found = opened(table).format
    assert (found.inputs, found.target, found.outputs) == ("features", "class", 2)
    assert (found.center, found.scale, found.vocabulary) == (0.0, 1.0, None)
    assert "the code book" in found.scaling
    assert found.fields == {
        "age": "number of 10 to 90",
        "income": "number of 0 to 1000, 250 if missing",
        "work": "category of 2 values, or missing, or others",
        "id": "ignored",
        "sick": "category of 2 values, the label",
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("high = 90", "high = 50"),
        ("missing = 250", "missing = 500"),
        ('"private", "state"', '"state", "private"'),
        ('origin = "the code book"', 'origin = "x"\nmissing_values = ["", "at sea"]'),
    ],
)
def test_what_was_read_by_another_schema_is_read_anew(tmp_path, old, new):
    path = write_table(tmp_path / "table.csv")
    before = np.array(opened(path).read("train").fields[0])
    after = opened(path, SCHEMA.replace(old, new)).read("train").fields[0]
    assert (before != after).any()


def test_what_was_read_by_other_names_is_read_anew(tmp_path):
    path = write_table(tmp_path / "table.csv", header=False)
    schema = SCHEMA.replace("high = 90", "high = 90\nmissing = 20")
    for first, age in ((("age", "income"), 0), (("income", "age"), 1)):  # 50, and 100, of 10 to 90
        split = opened(path, schema, columns=(*first, *COLUMNS[2:])).read("train")
        assert split.fields[0][0, 0] == age


def test_a_number_as_label_is_clipped_to_its_range(table):
    source = opened(table, label="age")
    np.testing.assert_array_equal(source.read("train").fields[1], np.float32([50, 10, 90, 30]))
    found = source.format
    assert (found.target, found.outputs) == ("number", 1)
    assert (found.target_center, found.target_scale) == (50, 40)


@pytest.mark.parametrize(("place", "value"), [(0, 5e9), (1, -5e9), (2, "elsewhere")])
def test_other_rows_do_not_depend_on_a_value(tmp_path, place, value):
    changed = [tuple(value if i == place else cell for i, cell in enumerate(ROWS[0])), *ROWS[1:]]
    before, after = (
        opened(write_table(tmp_path / f"{name}.csv", rows)).read("train").fields
        for name, rows in (("before", ROWS), ("after", changed))
    )
    assert (before[0][0] != after[0][0]).any()
    np.testing.assert_array_equal(before[0][1:], after[0][1:])


def test_a_file_without_names_needs_them(tmp_path):
    path = write_table(tmp_path / "table.csv", header=False)
    features, _ = opened(path, columns=COLUMNS).read("train").fields
    np.testing.assert_array_equal(features, np.float32(FEATURES))


def test_comments_blank_lines_delimiters_and_quotes(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(
        b'\xef\xbb\xbf# a remark with a quote: "\n\nage;income;work;id;sick\r\n'
        b'50; 100 ;private;"a;\n# no remark";no\r\n'
        b'# remark; with; five; "; cells\n10;;"state";2;yes!\n\n'
        b'99;5e3;;3;no\n30;0;"at "" sea";4;yes'
    )
    schema = 'comment = "#"\ndelimiter = ";"' + SCHEMA + 'strip = "!"\n'
    features, labels = opened(path, schema).read("train").fields
    np.testing.assert_array_equal(features, np.float32(FEATURES))
    np.testing.assert_array_equal(labels, LABELS)


def test_documents_are_longer_than_csv_allows(tmp_path, letters):
    path = write_table(tmp_path / "table.csv", [("b" * 200_000, "no")], ("notes", "sick"))
    schema = 'origin = "x"\ncolumns.notes.kind = "text"\n[columns.sick]\nkind = "category"\n'
    source = opened(path, schema + 'values = ["no", "yes"]', length=3)
    np.testing.assert_array_equal(source.read("train").fields[0], [[98, 98, 98]])
    assert (source.format.inputs, source.format.vocabulary) == ("tokens", 128)
    assert source.format.center is None


TEXTS = """
origin = "x"
[columns.title]
kind = "text"
[columns.body]
kind = "text"
missing = true
[columns.age]
kind = "number"
low = 0
high = 2
[columns.sick]
kind = "category"
values = [0, 1]
"""


@pytest.mark.parametrize("ending", ENDINGS)
def test_columns_of_text_are_one_document(tmp_path, letters, ending):
    rows = [("ab", "c", 1, 0), ("é", None, 2, 1)]
    path = write_table(tmp_path / f"table{ending}", rows, ("title", "body", "age", "sick"))
    source = opened(path, TEXTS, length=5)
    inputs, labels = source.read("train").fields
    assert inputs["tokens"].tolist() == [[97, 98, 10, 99, 32], [233, 10, 32, 32, 32]]
    np.testing.assert_array_equal(inputs["features"], np.float32([[0], [1]]))
    assert labels.tolist() == [0, 1]
    assert (source.format.inputs, source.format.vocabulary) == ("mixed", 128)
    assert "title, body" in source.format.scaling
    assert "letters are numbered" in source.format.scaling


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_with_more_axes_are_more_features(tmp_path, save, order, short_chunks):
    schema = """
origin = "x"
[columns.waves]
kind = "number"
low = -4
high = 4
missing = 1
[columns.sick]
kind = "category"
values = ["false", "true"]
"""
    waves = np.arange(-4, 4, dtype=np.float16).reshape(4, 2, 1)
    waves[3, 1] = np.nan
    path = tmp_path / "table.npz"
    save(path, waves=np.asarray(waves, order=order), sick=np.array([True, False, True, False]))
    features, labels = opened(path, schema).read("train").fields
    expected = [[-4, -3, 0, 0], [-2, -1, 0, 0], [0, 1, 0, 0], [2, 1, 0, 4]]
    np.testing.assert_array_equal(features, np.float32(expected) / 4)
    assert labels.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("ending", [".csv", ".npz", ".parquet"])
def test_wide_rows_and_documents_are_read_a_few_at_a_time(tmp_path, monkeypatch, ending):
    """All rows of 3,000 features took 1.3 GB, at 10,000 rows a time."""
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    names = [*"abcd"]
    path = write_table(tmp_path / f"wide{ending}", [("1", "2", "3", "4")] * 7, names)
    table = open_rows(str(path), ",", "", (), ())
    read = lambda kind: [rows.size for rows in table.read(dict.fromkeys(names, kind))]
    assert read("category") == [7]
    monkeypatch.setattr(_cells, "CHUNK_DOCUMENTS", 4)
    assert (read("category"), read("text")) == ([7], [4, 3])
    monkeypatch.setattr(_cells, "CHUNK_CELLS", 11)
    assert read("category") == [2, 2, 2, 1]
    monkeypatch.setattr(_cells, "CHUNK_CELLS", 1)
    assert read("category") == [1] * 7
    if ending == ".npz":
        np.savez(path, a=np.zeros((7, 2, 4)))
        monkeypatch.setattr(_cells, "CHUNK_CELLS", 25)
        wide = open_rows(str(path), ",", "", (), ())
        assert [rows.size for rows in wide.read({"a": "number"})] == [3, 3, 1]


def test_types_of_parquet_are_read_as_they_are_meant(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {
        "age": pyarrow.array([Decimal("50.0"), Decimal("10.0")]),
        "income": pyarrow.array([100, None], pyarrow.int64()),
        "work": pyarrow.array(["private", None]).dictionary_encode(),
        "id": pyarrow.array([[1], [2]]),
        "sick": pyarrow.array([1.0, 0.0], pyarrow.float32()),
    }
    path = tmp_path / "table.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    schema = SCHEMA.replace('"no", "yes"', "0, 1")
    features, labels = opened(path, schema).read("train").fields
    np.testing.assert_array_equal(
        features, np.float32([[0, -0.8, 0, 1, 0, 0], [-1, -0.5, 1, 0, 0, 1]])
    )
    assert labels.tolist() == [1, 0]


def made_of(path, rule, **changes):
    public = f'[public]\nfile_digest = "{files_digest(path)}"\nrule = "{rule}"\nrows = 4\n'
    return functools.partial(opened, path, SCHEMA + public, **changes)


def test_rows_that_the_schema_was_made_of_are_not_private(tmp_path):
    path = write_table(tmp_path / "table.csv")
    assert made_of(path, "train[:2]", private="train[2:]")().sizes == {"train": 4}
    with pytest.raises(ValueError, match="'train': 2 of these rows are public by the schema"):
        made_of(path, "train[:2]")()
    with pytest.raises(ValueError, match="1 of these rows"):
        made_of(path, "train[:2]", private="train[3:]+train[:1]")()
    with pytest.raises(ValueError, match="4 of these rows"):
        made_of(path, "train")()
    other = write_table(tmp_path / "other.csv", ROWS[:3])
    schema = made_of(path, "train").args[1]
    assert opened(other, schema).sizes == {"train": 3}
    with pytest.raises(ValueError, match="4 of these rows"):
        opened(other, schema, test_from=str(path), private="test")
    assert opened(other, schema, test_from=str(path)).sizes == {"train": 3, "test": 4}


def test_rows_are_counted_as_when_the_schema_was_made(tmp_path):
    """Else its public rows would be other ones: here the comment takes one away."""
    path = write_table(tmp_path / "table.csv", [("#1", *ROWS[0][1:]), *ROWS[1:]])
    public = made_of(path, "train[2:3]").args[1].removeprefix(SCHEMA)
    with pytest.raises(ValueError, match=r"when it had 4 rows, and now 3 are counted: its comment"):
        opened(path, 'comment = "#"\n' + SCHEMA + public, private="train[:2]")


def test_rows_of_a_split_that_the_schema_was_made_of_are_not_private(tmp_path):
    uses = ["test", "test", "fit", "fit"]
    rows = [(*row, use) for row, use in zip(ROWS, uses, strict=True)]
    path = write_table(tmp_path / "table.csv", rows, (*COLUMNS, "use"))
    more = SPLIT.removeprefix(SCHEMA)
    public = made_of(path, "train[:3]").args[1].removeprefix(SCHEMA)
    for private, shared in (("fit", 1), ("fit[1:]", 0)):
        use = functools.partial(opened, path, SCHEMA + more + public, split_by="use")
        if shared:
            with pytest.raises(ValueError, match="1 of these rows"):
                use(private=private)
        else:
            assert use(private=private).sizes == {"fit": 2, "test": 2}


@pytest.mark.skipif(not ADULT.is_dir(), reason=f"there is no UCI Adult in {ADULT}")
def test_both_files_of_adult_are_read_by_one_schema(tmp_path):
    path = tmp_path / "adult.csv"
    path.symlink_to(ADULT / "adult.data")
    source = opened(
        path,
        None,
        schema=str(ROOT / "configs" / "adult_schema.toml"),
        test_from=str(ADULT / "adult.test"),
        label="income",
        columns=ADULT_COLUMNS,
    )
    # The counts are published in adult.names.
    assert source.sizes == {"train": 32_561, "test": 16_281}
    assert sum(source.sizes.values()) == 48_842
    train, test = source.read("train").fields, source.read("test").fields
    assert train[0].shape[1] == test[0].shape[1] == 5 + (9 + 16 + 7 + 15 + 6 + 5 + 2 + 42)
    rich = (train[1].sum() + test[1].sum()) / 48_842
    assert round(100 * rich, 2) == 23.93
    # 39, State-gov, 77516, Bachelors, 13, ...: the first row, which many books print.
    first = np.asarray(train[0][0])
    assert first[0] == np.float32(2 * (39 - 17) / (90 - 17) - 1)
    assert first[1:10].tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0]
    assert first[10:26].tolist() == [1] + [0] * 15
    assert first[26] == np.float32(2 * (13 - 1) / 15 - 1)
    # Rows with a missing value, by adult.names: 48,842 less 45,222.
    missing = sum(int(part[:, [9, 48, 106]].any(axis=1).sum()) for part in (train[0], test[0]))
    assert missing == 48_842 - 45_222
