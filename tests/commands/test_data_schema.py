"""`python -m jaxdp.data schema` takes constants from public rows only."""

import csv
import tomllib

import numpy as np
import pytest

from jaxdp import data
from jaxdp.datasets.config import DataConfig
from jaxdp.datasets.schema import read_schema
from jaxdp.datasets.tables import open_table

LONG = "a long story, told at length and with many words, about case {}"
COLUMNS = ("age", "gain", "wor k", "notes", "name", "constant", "empty", "sick")
ROWS = [
    (
        17 + i % 50,
        "" if i == 3 else 1.234 * i - 30,
        ["state", "private", "?"][i % 3],
        LONG.format(i),
        f"person {i}",
        5,
        "NA",
        i % 2,
    )
    for i in range(200)
]
PRIVATE = [(999, 1e9, "SECRETWORD", "SECRETWORD", "SECRETWORD", 6, "SECRETWORD", 2)] * 10


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "table.csv", [COLUMNS, *ROWS, *PRIVATE])
    return tmp_path


def write(path, rows, delimiter=","):
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


def found(folder, *args, file="table.csv"):
    assert data.main(["schema", file, *args]) == 0
    return tomllib.loads((folder / "schema.toml").read_text())


def refused(capsys, *args):
    assert data.main(["schema", *args]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert len(message.splitlines()) == 1
    return message


def test_a_schema_of_public_rows(folder, capsys):
    schema = found(folder, "--public", "train[:200]", "--label", "sick")
    assert "200 public rows of table.csv. Check each column" in capsys.readouterr().out
    assert schema["origin"] == "public rows train[:200] of the table"
    assert schema["columns"] == {
        "age": {"kind": "number", "low": 17, "high": 66},
        "gain": {"kind": "number", "low": -30, "high": 220, "missing": 95},
        "wor k": {"kind": "category", "values": ["private", "state"], "missing": True},
        "notes": {"kind": "text"},
        "name": {"kind": "ignored"},
        "constant": {"kind": "ignored"},
        "empty": {"kind": "ignored"},
        "sick": {"kind": "category", "values": ["0", "1"]},
    }
    assert schema["public"]["rule"] == "train[:200]"
    text = (folder / "schema.toml").read_text()
    assert "SECRETWORD" not in text
    assert "check each column before you use it" in text
    assert "# the label" in text
    assert "# every cell is missing" in text


def test_nothing_is_taken_from_the_other_rows(folder):
    schema = found(folder, "--public", "train[:200]")
    write(folder / "table.csv", [COLUMNS, *ROWS, *([("x",) * len(COLUMNS)] * 10)])
    (folder / "schema.toml").unlink()
    other = found(folder, "--public", "train[:200]")
    assert schema["public"].pop("file_digest") != other["public"].pop("file_digest")
    assert schema == other


def test_the_schema_reads_its_table_and_refuses_its_rows_as_private(folder):
    write(folder / "table.csv", [COLUMNS, *ROWS])
    found(folder, "--public", "train[:100]", "--label", "sick")
    options = {"file": "table.csv", "schema": "schema.toml", "label": "sick", "skip_bad": True}
    source = open_table(DataConfig(**options, private="train[100:]"), print)
    assert source.read("train").fields[0].keys() == {"features", "tokens"}
    with pytest.raises(ValueError, match="1 of these rows are public by the schema"):
        open_table(DataConfig(**options, private="train[99:]"), print)


def test_rows_are_not_public_by_themselves(folder, capsys):
    message = refused(capsys, "table.csv")
    assert "leaks their ranges and values" in message
    assert "--public 'train[:1000]'" in message
    assert "code book" in message
    assert not (folder / "schema.toml").exists()


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["missing.csv", "--public"], "missing.csv can't be read (no such file"),
        (["table.txt", "--public"], "table.txt is no table: give NAME.csv"),
        (["table.csv", "--public", "test"], "the split 'test' needs 'test'"),
        (["table.csv", "--public", "train[500:]"], "there is no row 500"),
        (["table.csv", "--public", "--label", "sic"], "no column 'sic': did you mean 'sick'?"),
        (["table.csv", "--public", "--columns", "a", "b"], "data.columns has 2 names"),
        (
            ["table.csv", "--public", "--output", "no/schema.toml"],
            "no/schema.toml can't be written",
        ),
        (["ragged.csv", "--public"], "ragged.csv, row 1: it has 1 cells where 2 are expected"),
        (["ragged.csv", "--public", "train[:1]"], "ragged.csv, row 1: it has 1 cells"),
        (["empty.csv", "--public"], "empty.csv is empty"),
        (["lists.npz", "--public"], "has no column of numbers or text"),
        (["--public"], "the following arguments are required: FILE"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(folder, capsys, args, part):
    (folder / "ragged.csv").write_text("a,b\n1,2\n1\n")
    (folder / "empty.csv").touch()
    np.savez(folder / "lists.npz", a=np.ones(3, complex))
    assert part in refused(capsys, *args)


def test_a_first_line_that_may_be_a_row_is_no_line_of_names(folder, capsys):
    write(folder / "rows.csv", [("SECRETWORD", 4.25, "no"), *[("x", 1, "no"), ("y", 2, "yes")] * 9])
    message = refused(capsys, "rows.csv", "--public", "train[2:]")
    assert "its first line has a number in column 1 (from 0), so it may be a row" in message
    assert "SECRETWORD" not in message
    assert "4.25" not in message
    assert found(folder, "--public", "--columns", "a", "b", "c", file="rows.csv")["columns"]


def test_an_existing_schema_is_kept(folder, capsys):
    (folder / "schema.toml").write_text("mine")
    assert "schema.toml exists: give another --output" in refused(capsys, "table.csv", "--public")
    assert (folder / "schema.toml").read_text() == "mine"
    assert data.main(["schema", "table.csv", "--public", "--output", "other.toml"]) == 0
    assert (folder / "other.toml").exists()


def test_names_and_values_may_hold_anything(folder):
    names = ("ünï", 'a "b"\n\x7f', "x.y")
    write(folder / "table.csv", [names, ("é", '\\"\x7f', 1), ("#", "\t\\u", 2)], delimiter=";")
    schema = found(folder, "--public", "--label", "x.y")
    assert schema["delimiter"] == ";"
    assert list(schema["columns"]) == list(names)
    assert schema["columns"][names[1]]["values"] == ['\\"\x7f', "\\u"]
    assert read_schema("schema.toml").columns.keys() == set(names)


def test_a_file_without_names(folder):
    write(folder / "table.csv", [(1, "a"), (2, "b")])
    schema = found(folder, "--public", "--columns", "number", "letter")
    assert schema["columns"] == {
        "number": {"kind": "number", "low": 1, "high": 2},
        "letter": {"kind": "category", "values": ["a", "b"]},
    }


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0123, 0.0987, (0.012, 0.099)),
        (-123.4, 123456.0, (-130, 130000)),
        (0, 1e-300, (0, 1e-300)),
        (1484705, 12285000.0, (1400000, 13000000)),
        (-0.001, 99, (-0.001, 99)),
        (100, 101, (100, 110)),
    ],
)
def test_ranges_are_rounded_outwards(folder, low, high, expected):
    write(folder / "table.csv", [("a", "b"), (low, 1), (high, 2)])
    column = found(folder, "--public")["columns"]["a"]
    assert (column["low"], column["high"]) == expected


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_other_formats_have_types(folder, ending):
    columns = {
        "age": np.array([17.5, np.nan, 40.25]),
        "count": np.array([1, 2, 3]),
        "sick": np.array([False, True, True]),
        "work": np.array(["b", "a", "b"]),
    }
    expected = {
        "age": {"kind": "number", "low": 17, "high": 41, "missing": 29},
        "count": {"kind": "category", "values": ["1", "2", "3"]},
        "sick": {"kind": "category", "values": ["false", "true"]},
        "work": {"kind": "category", "values": ["a", "b"]},
    }
    if ending == "npz":
        columns["waves"] = np.array([[1.0, np.nan], [2.0, 3.0], [4.0, -5.0]])
        columns["date"] = np.array(["2020-01-01"] * 3, "M8[D]")
        expected["waves"] = {"kind": "number", "low": -5, "high": 4, "missing": -0.5}
        expected["date"] = {"kind": "ignored"}
        np.savez(folder / "table.npz", **columns)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        columns["age"] = [17.5, None, 40.25]
        columns["lists"] = [[1], [2], [3]]
        expected["lists"] = {"kind": "ignored"}
        parquet.write_table(pyarrow.table(columns), folder / "table.parquet")
    schema = found(folder, "--public", "--label", "count", file=f"table.{ending}")
    assert schema["columns"] == expected


def test_the_command_empties_the_cache(folder, capsys):
    write(folder / "table.csv", [COLUMNS, *ROWS])
    found(folder, "--public", "train[:100]", "--label", "sick")
    config = DataConfig(
        file="table.csv", schema="schema.toml", label="sick", private="train[100:]", skip_bad=True
    )
    open_table(config, print)
    capsys.readouterr()
    assert data.main(["clear"]) == 0
    assert capsys.readouterr().out == f"1 entry deleted from {folder / 'cache' / 'jaxdp'}\n"
