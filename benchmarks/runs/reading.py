"""Measures how long a step waits for records that lie in files.

python -m benchmarks.runs.reading [--gigabytes 2 20] [--folder DIR]

A file of random bytes is written for each size, a .npy, and read as `jaxdp.fit` does: batches of
about 256 records, Poisson-sampled, for steps of 50 ms. It is mapped into memory ("mapped"), or read
row by row by a source as a user writes it ("source"). A step sleeps, as where another device
computes it, or keeps one core busy without Python's lock. Before every turn the system is asked to
forget the file (POSIX_FADV_DONTNEED). What the disk has given in a turn is told beside what was
needed, as a check of that; a virtual disk may still have it in the memory of its host.

The share is the time waited in STEPS steps after the first batch, by the time of all of them. The
medians of three turns are printed, and the largest share. Linux alone.
"""

import argparse
import contextlib
import functools
import hashlib
import itertools
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxdp.datasets import feeding
from jaxdp.datasets.records import Part, Records
from jaxdp.datasets.rows import SourceRows
from jaxdp.dpsgd import sampling

from ..hardware import hardware

BATCH = 256
WIDTHS = (3072, 12288)  # bytes of a record: 32x32 pixels in colours, and 64x64
KINDS = ("mapped", "source")
STEP = 0.05  # seconds
STEPS = 100
TURNS = 3
KEY = np.array([1, 2], np.uint64)
BLOCK = 2**24  # bytes that are written at a time


class Turn(NamedTuple):
    share: float  # of the steps' time that they waited
    first: float  # seconds until the first batch was there
    disk: float  # bytes that the disk gave, by those that were needed


class RowByRow:
    """A source that reads the file itself."""

    def __init__(self, file: Path, count: int, width: int) -> None:
        self.file, self.count, self.width = file, count, width
        self.offset = file.stat().st_size - count * width

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, rows: Sequence[int]) -> np.ndarray:
        found = np.empty((len(rows), self.width), np.uint8)
        with open(self.file, "rb", buffering=0) as file:
            for i, row in enumerate(rows):
                file.seek(self.offset + row * self.width)
                file.readinto(found[i].data)
        return found

    def digest(self) -> str:
        return "nobody writes to it"


def write(path: Path, count: int) -> None:
    """A .npy of random bytes, in rows of the smallest width."""
    block = np.random.default_rng(0).integers(0, 2**32, BLOCK // 4, np.uint32)
    with open(path, "wb") as file:
        shape = (count, min(WIDTHS))
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": shape}
        )
        left = math.prod(shape)
        for number in itertools.count(1):
            block += np.uint32(1)  # so that no two blocks are the same
            file.write(block.view(np.uint8)[:left].data)
            left -= block.nbytes
            if left <= 0 or number % 64 == 0:  # a GB, so that other programs keep their memory
                file.flush()
                forget(file.fileno())
            if left <= 0:
                return


def forget(file: int) -> None:
    """Takes an open file out of the memory; what was not written yet would stay there."""
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def records_of(kind: str, path: Path, width: int) -> Records:
    """The records of a file, without the pass over all of them that a `Dataset` makes first."""
    mapped = np.load(path, mmap_mode="r").reshape(-1, width)
    if kind == "mapped":
        return Records(mapped)
    source = RowByRow(path, len(mapped), width)
    form = jax.ShapeDtypeStruct((width,), np.uint8)
    return Records.of_parts([Part(SourceRows(source, "", form, True), range(len(source)))])


def samples(count: int) -> Iterator[feeding.Sample]:
    drawn = sampling.Sampler("poisson", KEY, count, BATCH)
    capacity = sampling.capacity("poisson", count, BATCH, 1, STEPS)
    for step in range(1 + STEPS):
        yield sampling.pad(drawn.rows(step), capacity, count)


def sleeping() -> Callable[[], object]:
    return lambda: time.sleep(STEP)


def busy() -> Callable[[], object]:
    """A checksum of so many bytes that it takes a step's time."""
    data = bytes(2**22)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        hashlib.sha256(data)
        times.append(time.perf_counter() - start)
    enough = bytes(int(len(data) * STEP / min(times)))
    return lambda: hashlib.sha256(enough)


STEP_KINDS = {"sleeps": sleeping, "keeps a core busy": busy}


def from_disk() -> int:
    """Bytes that the disk has given to this process."""
    return int(Path("/proc/self/io").read_text().partition("\nread_bytes: ")[2].partition("\n")[0])


def turn(kind: str, path: Path, width: int, step: Callable[[], object]) -> Turn:
    with open(path, "rb") as file:
        forget(file.fileno())
    records = records_of(kind, path, width)
    key = functools.partial(jax.random.fold_in, jax.random.key(0))
    jax.block_until_ready(key(0))  # compiled
    before, start = from_disk(), time.perf_counter()
    drawn = samples(len(records))
    with contextlib.closing(
        feeding.Waiting(feeding.feed(records, drawn, step_key=key, placement="host"))
    ) as batches:
        _, mask = next(batches)
        needed = int(mask.sum())
        begun = time.perf_counter()
        batches.seconds = 0.0
        for batch, mask in batches:
            jax.block_until_ready(batch.records)
            needed += int(mask.sum())
            step()
        seconds = time.perf_counter() - begun
    disk = (from_disk() - before) / (needed * width)
    return Turn(batches.seconds / seconds, begun - start, disk)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="waiting for records in files")
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[2.0])
    parser.add_argument("--folder", help="where the files are written, and deleted again")
    options = parser.parse_args(arguments)
    print(f"{hardware()}, load {os.getloadavg()[0]:.1f}; {STEPS} steps of {STEP * 1e3:.0f} ms")
    print(
        "| set, GB | read | record, kB | step | waiting, % | at most, % | first batch, s | disk |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for size in options.gigabytes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = Path(folder) / "x.npy"
            count = max(1, int(size * 1e9) // max(WIDTHS)) * (max(WIDTHS) // min(WIDTHS))
            write(path, count)
            for kind, width, name in itertools.product(KINDS, WIDTHS, STEP_KINDS):
                turns = [turn(kind, path, width, STEP_KINDS[name]()) for _ in range(TURNS)]
                share, first, disk = map(statistics.median, zip(*turns, strict=True))
                most = max(one.share for one in turns)
                cells = [f"{size:g}", kind, f"{width / 1e3:.1f}", name]
                cells += [f"{share:.2%}"[:-1], f"{most:.2%}"[:-1], f"{first:.3f}", f"{disk:.1f} x"]
                print("| " + " | ".join(cells) + " |", flush=True)
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
