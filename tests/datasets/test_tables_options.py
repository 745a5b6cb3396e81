"""Options, schemas and files that don't fit together are refused in one line."""

import re

import numpy as np
import pytest
from helpers.tables import COLUMNS, ROWS, SCHEMA, opened, write_table


def test_the_second_file_is_checked_like_the_first(tmp_path):
    path = write_table(tmp_path / "table.csv")
    other = tmp_path / "other.csv"
    text = path.read_bytes().decode()
    for changed, part in (
        (text.replace("10.0", "SECRETWORD"), f"{other}, row 1: column 'age'"),
        ("", f"{other} is empty"),
        (text.replace("age", "ages"), f"{other} has the column 'ages'"),
        (text, f"whose bytes are those of {path}"),
    ):
        other.write_bytes(changed.encode())
        with pytest.raises(ValueError, match=re.escape(part)):
            opened(path, test_from=str(other))
    with pytest.raises(ValueError, match=r"other\.txt is no table: give NAME\.csv"):
        opened(path, test_from=str(tmp_path / "other.txt"))


def test_the_second_file_has_the_same_shapes(tmp_path):
    schema = SCHEMA.replace("age", "waves")
    paths = [tmp_path / "table.npz", tmp_path / "test.npz"]
    for path, width in zip(paths, (2, 3), strict=True):
        rest = {name: np.zeros(2) for name in ("income", "id")}
        texts = {"work": np.array(["state"] * 2), "sick": np.array(["no", "yes"])}
        np.savez(path, waves=np.ones((2, width)), **rest, **texts)
    with pytest.raises(
        ValueError, match=r"test\.npz: column 'waves' holds float64 of shape \(3,\)"
    ):
        opened(paths[0], schema, test_from=str(paths[1]))


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"label": None}, "data.label is not set: give --data.label COLUMN, one of age"),
        ({"label": "sik"}, "data.label is 'sik', which is no column of"),
        ({"label": "sik"}, "did you mean 'sick'?"),
        ({"label": "id"}, "declares ignored: give a column of kind number or category"),
        ({"schema": None}, "ranges and categories must not be taken from private rows"),
        ({"schema": None}, "`python -m jaxdp.data schema FILE --public`"),
        ({"columns": COLUMNS}, "has a line of names already: leave --data.columns out"),
        ({"columns": COLUMNS[:4]}, "data.columns has 4 names, and the first line of"),
        ({"columns": ("age",) * 5}, "data.columns has 'age' twice"),
        ({"columns": (*COLUMNS[:4], "ill")}, "has the column 'ill', which the schema"),
        ({"split_by": "uses"}, "data.split-by is 'uses', which is no column"),
        ({"split_by": "age"}, "data.split-by is 'age': give a column of kind category"),
        ({"split_by": "sick"}, "data.split-by is 'sick': give a column of kind category"),
        ({"split_by": "work", "test_from": "x.csv"}, "give one of them"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, part):
    path = write_table(tmp_path / "table.csv")
    with pytest.raises(ValueError, match=re.escape(part)) as error:
        opened(path, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ending", [".parquet", ".npz"])
def test_files_that_have_names_get_no_others(tmp_path, ending):
    path = write_table(tmp_path / f"table{ending}", ROWS)
    with pytest.raises(ValueError, match=r"leave --data\.columns out"):
        opened(path, columns=COLUMNS)


IGNORED = "".join(f'[columns.{name}]\nkind = "ignored"\n' for name in COLUMNS[:4])
ONLY_A_LABEL = 'origin = "x"\n' + IGNORED + SCHEMA[SCHEMA.index("[columns.sick]") :]


@pytest.mark.parametrize(
    ("schema", "part"),
    [
        (SCHEMA.replace('"no", "yes"', '"no"'), "has a single value in the schema"),
        (ONLY_A_LABEL, "leaves no column besides the label 'sick'"),
        (SCHEMA + '[columns.more]\nkind = "text"\n', "lacks the column 'more'"),
    ],
)
def test_schemas_that_do_not_fit_are_refused(tmp_path, schema, part):
    with pytest.raises(ValueError, match=re.escape(part)):
        opened(write_table(tmp_path / "table.csv"), schema)


def test_names_of_splits_are_words(tmp_path):
    schema = SCHEMA.replace('["private", "state"]\nmissing = true\nother = true', '["a b", "c"]')
    with pytest.raises(ValueError, match="'a b' can't be the name of a split"):
        opened(write_table(tmp_path / "table.csv"), schema, split_by="work")
