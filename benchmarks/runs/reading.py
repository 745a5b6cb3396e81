"""Measures how long a step waits for records that lie in files.

python -m benchmarks.runs.reading [--gigabytes 2 20] [--folder DIR]

A file of random bytes is written for each size, a .npy, and read as `jaxdp.fit` reads one that is
mapped into memory: batches of about 256 records, Poisson-sampled, for steps of 50 ms. A step either
sleeps, as where another device computes it, or keeps one core busy without Python's lock, as where
the processor does. Before every turn the system is asked to forget the file (POSIX_FADV_DONTNEED),
and how much of it was forgotten is checked; "cached" rows are read once more without that. The
share is the time waited in STEPS steps after the first batch, by their time. Medians of three turns
are printed, and the largest one.
"""

import argparse
import functools
import hashlib
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxdp.datasets import feeding
from jaxdp.datasets.records import Records
from jaxdp.dpsgd import sampling

from ..hardware import hardware

BATCH = 256
WIDTHS = (3072, 12288)  # bytes of a record: 32x32 pixels in colours, and 64x64
GIGABYTES = (2.0,)
STEP = 0.05  # seconds
STEPS = 100
TURNS = 3
KEY = np.array([1, 2], np.uint64)
BLOCK = 2**24  # bytes that are written at a time


class Turn(NamedTuple):
    waited: float  # the share of the steps' time
    first: float  # seconds until the first batch is there
    cached: float  # the share of the file that was in memory before


def write(path: Path, count: int, width: int) -> None:
    """A .npy of random bytes, whose blocks are all different."""
    block = np.random.default_rng(0).integers(0, 2**32, BLOCK // 4, np.uint32)
    with open(path, "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, width)}
        np.lib.format.write_array_header_1_0(file, header)
        left = count * width
        for number in itertools.count():
            if left <= 0:
                break
            file.write((block + np.uint32(number)).view(np.uint8)[:left].data)
            left -= BLOCK
        file.flush()
        os.fsync(file.fileno())  # what is not on the disk can't be forgotten


def forget(path: Path) -> None:
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
