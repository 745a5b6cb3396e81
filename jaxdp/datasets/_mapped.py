"""Arrays that are mapped from files."""

import contextlib
import mmap
from pathlib import Path
from typing import Any

import numpy as np

from ._files import Stat, stat_of

SMALL = 2**25  # bytes of an array that the system soon has read whole


def file_of(array: Any) -> Path | None:
    """The file that an array is mapped from. None: it is in memory."""
    while array is not None:
        if isinstance(array, np.memmap):
            return None if array.filename is None else Path(array.filename)
        array = getattr(array, "base", None)
    return None


def state_of(file: Path) -> Stat:
    """What changes when somebody writes to the file; zeros if it is gone."""
    try:
        return stat_of(file)
    except OSError:
        return 0, 0, 0, 0


def will_need(array: np.ndarray, rows: np.ndarray) -> None:
    """Asks the system to read these rows, all at once, and does not wait for them.

    Else each would be waited for alone, and megabytes read around it that nobody needs.
    """
    advice, found = getattr(mmap, "MADV_WILLNEED", None), _mapping_of(array)
    if advice is None or found is None or array.nbytes <= SMALL or not array[0].flags.c_contiguous:
        return
    first = array.__array_interface__["data"][0] - _address(found)
    places = first + rows.astype(np.int64) * array.strides[0]
    starts = places - places % mmap.PAGESIZE
    sizes = places + array[0].nbytes - starts
    with contextlib.suppress(OSError):  # it is an advice alone
        for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
            found.madvise(advice, start, size)


def _mapping_of(array: Any) -> mmap.mmap | None:
    while array is not None and not isinstance(array, mmap.mmap):
        array = getattr(array, "base", None)
    return array


def _address(mapping: mmap.mmap) -> int:
    return np.frombuffer(mapping, np.uint8).__array_interface__["data"][0]
