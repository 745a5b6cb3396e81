"""Waiting for records is measured for every way of reading, width and step."""

import itertools
import os

import numpy as np
import pytest

from benchmarks.runs import reading

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="Linux alone")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(reading, "BATCH", 8)
    monkeypatch.setattr(reading, "STEPS", 4)
    monkeypatch.setattr(reading, "STEP", 0.005)
    monkeypatch.setattr(reading, "BLOCK", 2**20)


def test_every_case_is_measured(small, tmp_path, capsys):
    reading.main(["--gigabytes", "0.005", "0.01", "--folder", str(tmp_path)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[1:]]
    expected = itertools.product(["0.005", "0.01"], reading.KINDS, ["3.1", "12.3"], ["s", "k"])
    assert [(*row[:3], row[3][0]) for row in cells] == list(expected)
    for row in cells:
        assert 0 < float(row[4]) <= float(row[5]) < 100
        assert float(row[6]) > 0
    assert list(tmp_path.iterdir()) == []


def test_both_ways_read_the_same_records(tmp_path):
    path = tmp_path / "x.npy"
    reading.write(path, 20_000)  # several blocks
    written = np.load(path)
    assert written.shape == (20_000, min(reading.WIDTHS))
    assert len(np.unique(written[:, :16], axis=0)) == 20_000
    rows = np.array([0, 4999, 17])
    for kind, width in itertools.product(reading.KINDS, reading.WIDTHS):
        found = reading.records_of(kind, path, width).take(rows)
        np.testing.assert_array_equal(found, written.reshape(-1, width)[rows])


def test_waiting_is_told(small, tmp_path, monkeypatch):
    path = tmp_path / "x.npy"
    reading.write(path, 4000)
    step = reading.sleeping()
    fast = reading.turn("source", path, 3072, step)
    read = reading.RowByRow.__getitems__

    def slow(self, rows):
        reading.time.sleep(0.1)
        return read(self, rows)

    monkeypatch.setattr(reading.RowByRow, "__getitems__", slow)
    late = reading.turn("source", path, 3072, step)
    assert max(0.5, fast.share) < late.share < 1
    assert late.first > 0.1
