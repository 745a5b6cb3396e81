"""Rows of a table get their splits; those that can't be used keep their places."""

import numpy as np
import pytest
from helpers.tables import COLUMNS, FEATURES, LABELS, ROWS, SPLIT, opened, write_table


def test_a_second_file_is_the_split_test(tmp_path):
    path = write_table(tmp_path / "table.csv")
    shuffled = write_table(
        tmp_path / "other.npz", [row[::-1] for row in ROWS[2:]], columns=COLUMNS[::-1]
    )
    source = opened(path, test_from=str(shuffled))
    assert source.sizes == {"train": 4, "test": 2}
    np.testing.assert_array_equal(source.read("train").fields[0], np.float32(FEATURES))
    np.testing.assert_array_equal(source.read("test").fields[0], np.float32(FEATURES[2:]))


@pytest.mark.parametrize(
    "uses", [["fit", "test", "fit", "test"], ["fit", "fit", "test", "test"], ["fit"] * 4]
)
def test_a_column_splits_the_rows(tmp_path, uses, short_chunks):
    rows = [(*row, use) for row, use in zip(ROWS, uses, strict=True)]
    path = write_table(tmp_path / "table.csv", rows, (*COLUMNS, "use"))
    source = opened(path, SPLIT, split_by="use", private="fit")
    for name in ("fit", "test"):
        places = [i for i, use in enumerate(uses) if use == name]
        split = source.read(name)
        assert source.sizes[name] == len(split) == len(places)
        np.testing.assert_array_equal(
            split.fields[0], np.float32(FEATURES)[places].reshape(-1, len(FEATURES[0]))
        )
        np.testing.assert_array_equal(split.fields[1], np.array(LABELS)[places])
    assert source.format.fields["use"] == "the name of the split"


def test_skipped_rows_keep_their_places(tmp_path, short_chunks):
    rows = [*ROWS, ("none", 1, "state", 5, "yes"), ROWS[0]]
    path = write_table(tmp_path / "table.csv", rows)
    for _ in range(2):  # decoded, and from the cache
        split = opened(path, skip_bad=True).read("train")
        assert len(split) == 6
        assert list(split.bad) == [4]
        assert "'age'" in split.bad[4]
        np.testing.assert_array_equal(
            split.fields[0], np.float32([*FEATURES, [0] * 6, FEATURES[0]])
        )
        assert split.fields[1].tolist() == [*LABELS, 0, 0]
    with pytest.raises(ValueError, match=r"row 4: column 'age'"):
        opened(path)


def test_skipped_rows_of_a_split_name_the_row_of_the_file(tmp_path):
    uses = ["test", "fit", "test", "fit"]
    rows = [(*row, use) for row, use in zip(ROWS, uses, strict=True)]
    rows[3] = ("none", *rows[3][1:])
    path = write_table(tmp_path / "table.csv", rows, (*COLUMNS, "use"))
    source = opened(path, SPLIT, split_by="use", private="fit", skip_bad=True)
    assert source.read("test").bad == {}
    (bad,) = source.read("fit").bad.items()
    assert bad[0] == 1
    assert bad[1].startswith(f"row 3 of {path}: column 'age'")
    np.testing.assert_array_equal(source.read("fit").fields[0], np.float32([FEATURES[1], [0] * 6]))


@pytest.mark.parametrize("line", ["50,1,state,5,no,SECRETWORD", "50,1,state,5,no", "50,1,st,5,no,"])
def test_a_row_of_no_split_is_never_skipped(tmp_path, line):
    """Whether it counts in N would depend on what is wrong in it."""
    path = tmp_path / "table.csv"
    path.write_text("age,income,work,id,sick,use\n50,1,state,1,no,fit\n" + line)
    with pytest.raises(ValueError, match=r"row 1: .*nobody can tell in which split") as error:
        opened(path, SPLIT, split_by="use", private="fit", skip_bad=True)
    assert "SECRETWORD" not in str(error.value)


def test_a_row_of_a_known_split_is_skipped(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    offsets = pyarrow.py_buffer(np.array([0, 1, 2], np.int32).tobytes())
    columns = {
        "notes": pyarrow.StringArray.from_buffers(2, offsets, pyarrow.py_buffer(b"a\xff")),
        "use": ["fit", "test"],
        "sick": ["yes", "no"],
    }
    path = tmp_path / "table.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    schema = 'origin = "x"\ncolumns.notes.kind = "text"\n' + SPLIT[SPLIT.index("[columns.sick]") :]
    source = opened(path, schema, split_by="use", private="fit", skip_bad=True)
    assert source.sizes == {"fit": 1, "test": 1}
    assert source.read("fit").bad == {}
    assert list(source.read("test").bad) == [0]
    assert not source.read("test").fields[0].any()


@pytest.mark.parametrize(
    "text",
    [
        'age,income,work,id,sick\n1,1,"state,1,no\n1,1,state,1,no\n',
        'age,income,work,id,sick\n1,1,"state,1,no\n1,1,"state",1,no\n',
        'age,income,work,id,sick\n1,1,"state,1,no\n1,"1",state,1,no\n1,1,"state",1,no\n',
        'age,income,work,id,sick\n1,1,"state,1,no\n1,1,state",1,no,1\n',
    ],
)
def test_quotes_that_hide_rows_are_never_skipped(tmp_path, text):
    """How many rows there are would depend on what is wrong in one of them."""
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"row 0: .*quote"):
        opened(path, skip_bad=True)
