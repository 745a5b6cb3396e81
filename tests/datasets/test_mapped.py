"""Mapped arrays: the system is asked for the rows that are needed, and for no others."""

import mmap

import numpy as np
import pytest

from jaxdp.datasets import _mapped
from jaxdp.datasets.rows import ArrayRows

PAGE = mmap.PAGESIZE
pytestmark = pytest.mark.skipif(
    not hasattr(mmap, "MADV_WILLNEED"), reason="the system takes no advice"
)


class Recorder:
    """Takes the place of a mapping, and notes which parts of the file were asked for."""

    def __init__(self, mapping, monkeypatch):
        self.asked, self.mapping = [], mapping
        monkeypatch.setattr(_mapped, "_mapping_of", lambda array: self)
        monkeypatch.setattr(_mapped, "_address", lambda mapping: address(self.mapping))

    def madvise(self, option, start, size):
        assert option == mmap.MADV_WILLNEED
        self.mapping.madvise(option, start, size)  # the system takes no wrong one
        self.asked.append((start, start + size))


address = _mapped._address


@pytest.fixture
def large(tmp_path):
    """5 GB, of which the disk holds a few pages alone."""
    path = tmp_path / "x.npy"
    x = np.lib.format.open_memmap(path, "w+", np.uint8, (1_600_000, 3072))
    x[[0, 7, 1_599_999]] = np.array([1, 2, 3], np.uint8)[:, None]
    x.flush()
    return np.load(path, mmap_mode="r")


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("skipped", [0, 5])
def test_the_pages_of_rows_are_asked_for(large, monkeypatch, dtype, skipped):
    offset = 128  # of the first row in the file
    recorder = Recorder(_mapped._mapping_of(large), monkeypatch)
    rows = np.array([7, 1_599_999, 800_000, 7], dtype)
    taken = ArrayRows(large[skipped:]).take(rows - skipped)
    np.testing.assert_array_equal(taken[:, 0], [2, 3, 0, 2])
    for row, (start, end) in zip(rows.tolist(), recorder.asked, strict=True):
        place = offset + row * 3072
        assert (start, end) == (place // PAGE * PAGE, place + 3072)


def test_ranges_small_arrays_and_rows_that_lie_apart_are_read_as_they_come(large, monkeypatch):
    recorder = Recorder(_mapped._mapping_of(large), monkeypatch)
    rows = np.array([0, 7])
    for array in (large[:100], large[:, ::2], large[:20_000].T):
        ArrayRows(array).take(rows)
    ArrayRows(large).take(range(5))
    assert recorder.asked == []
    ArrayRows(large).take(rows)
    assert len(recorder.asked) == 2
