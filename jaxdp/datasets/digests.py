"""Checksums of arrays and files, which tell whether records are still the same."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

BLOCK = 2**24  # bytes that are hashed at a time, so that a mapped array takes no memory


def arrays_digest(arrays: Sequence[np.ndarray], about: str = "") -> str:
    """Returns the SHA-256 of arrays with their dtypes and shapes, in hexadecimal digits."""
    total = hashlib.sha256(about.encode())
    for array in arrays:
        total.update(f"{array.dtype} {array.shape}\n".encode())
        rows = array.reshape(1) if array.ndim == 0 else array
        at_a_time = max(1, BLOCK // max(1, rows[:1].nbytes))
        for start in range(0, len(rows), at_a_time):
            part = np.ascontiguousarray(rows[start : start + at_a_time])
            total.update(part.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def files_digest(*paths: str | Path) -> str:
    """Returns the SHA-256 of what some files hold, in order, whatever their names are.

    It is meant for the `digest` of a source (`jaxdp.datasets.Source`).

    Raises:
      OSError: if one can't be read.
    """
    total = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
