"""Small tables in all formats."""

import csv

import numpy as np
import pytest

from jaxdp.datasets.config import DataConfig
from jaxdp.datasets.tables import open_table

SCHEMA = """
origin = "the code book"
[columns.age]
kind = "number"
low = 10
high = 90
[columns.income]
kind = "number"
low = 0
high = 1000
missing = 250
[columns.work]
kind = "category"
values = ["private", "state"]
missing = true
other = true
[columns.id]
kind = "ignored"
[columns.sick]
kind = "category"
values = ["no", "yes"]
"""
SPLIT = SCHEMA + '[columns.use]\nkind = "category"\nvalues = ["fit", "test"]\n'
COLUMNS = ("age", "income", "work", "id", "sick")
ROWS = [  # None: missing
    (50.0, 100.0, "private", 1, "no"),
    (10.0, None, "state", 2, "yes"),
    (99.0, 5000.0, None, 3, "no"),
    (30.0, 0.0, "at sea", 4, "yes"),
]
FEATURES = [  # age, income, income missing, private, state, work missing
    [0, -0.8, 0, 1, 0, 0],
    [-1, -0.5, 1, 0, 1, 0],
    [1, 1, 0, 0, 0, 1],
    [-0.5, -1, 0, 0, 0, 0],
]
LABELS = [0, 1, 0, 1]


def write_table(path, rows=ROWS, columns=COLUMNS, header=True):
    """Writes rows in the format of the ending."""
    if path.suffix == ".npz":
        arrays = {}
        for name, column in zip(columns, zip(*rows, strict=True), strict=True):
            gap = "" if any(isinstance(cell, str) for cell in column) else np.nan
            arrays[name] = np.array([gap if cell is None else cell for cell in column])
        np.savez(path, **arrays)
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        data = dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))
        parquet.write_table(pyarrow.table(data), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerows([columns] if header else [])
            writer.writerows(rows)
    return path


def table_config(path, text=SCHEMA, **options):
    """The configuration for a table, with its schema beside it."""
    beside = path.parent / "schema.toml"
    if text is not None:
        beside.write_text(text)
        options.setdefault("schema", str(beside))
    options.setdefault("label", "sick")
    return DataConfig(file=str(path), **options)


def opened(path, text=SCHEMA, **options):
    """The table, read by its schema."""
    return open_table(table_config(path, text, **options), lambda line: None)
