"""Data files that are damaged anywhere: one line, or rows of the declared form."""

import numpy as np
import pytest
from helpers.damage import damages, examples, one_line
from helpers.tables import COLUMNS, ROWS, SCHEMA, write_table
from hypothesis import given

from jaxdp.datasets import loading
from jaxdp.datasets.config import DataConfig

SECRET = "xylocanary"  # in a private cell, and in no message
# Warnings of NumPy and pyarrow about what is in a file are their affair.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def check(config, form):
    loaded = one_line(loading.load, config, secret=SECRET)
    if loaded is None:
        return
    data, found = loaded
    assert data.private.form == form.private.form or found.inputs == "tokens"
    rows = data.private.fields
    assert all(np.isfinite(leaf).all() for leaf in rows if leaf.dtype.kind == "f")


def every_damage(path, config, examples):
    form, _ = loading.load(config)

    @examples
    @given(damages(path.read_bytes()))
    def damaged(data):
        path.write_bytes(data)
        check(config, form)

    damaged()


@examples
@pytest.mark.parametrize("ending", ["csv", "tsv", "npz", "parquet"])
def test_a_damaged_table(tmp_path, ending, examples):
    path, schema = tmp_path / f"rows.{ending}", tmp_path / "schema.toml"
    schema.write_text(SCHEMA)
    write_table(path, [*ROWS, (20.0, 7.0, SECRET, 5, "no")] * 3, COLUMNS)
    for skip_bad in (False, True):
        config = DataConfig(
            file=str(path), schema=str(schema), label="sick", test=None, skip_bad=skip_bad
        )
        whole = path.read_bytes()
        every_damage(path, config, examples)
        path.write_bytes(whole)


@examples
def test_a_damaged_schema(tmp_path, examples):
    path, schema = tmp_path / "rows.csv", tmp_path / "schema.toml"
    schema.write_text(SCHEMA)
    write_table(path, ROWS, COLUMNS)
    config = DataConfig(file=str(path), schema=str(schema), label="sick", test=None, skip_bad=True)

    @examples
    @given(damages(schema.read_bytes()))
    def damaged(data):
        schema.write_bytes(data)
        one_line(loading.load, config, secret=SECRET)

    damaged()


@examples
def test_a_damaged_text(tmp_path, examples):
    path = tmp_path / "a.txt"
    path.write_text("to be or not to be, that is the question. " * 9)
    every_damage(path, DataConfig(file=str(path), window=7, test=None), examples)
