"""Measures what sampling costs a step, as the number of records grows.

python -m benchmarks.runs.sampling

Batches of 4,096 of up to 1e9 records, with 64 batch units and without. For comparison: the way that
draws a random word for every record, or shuffles all of them, up to 1e8 records (1e9 would take
9 GB). The median of three measurements is printed, each the mean over some steps; the first step
(which makes the tables) is apart. Memory is the peak of what NumPy and Python take, with tables.
"""

import os
import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxdp.dpsgd import sampling
from jaxdp.types import Sampling

from ..hardware import hardware

SIZE = 4096
UNITS = 64
RECORDS = (10**6, 10**7, 10**8, 10**9)
RECORDS_ONE_BY_ONE = 10**8  # the most for the way that takes time and memory of N
KINDS: tuple[Sampling, ...] = ("poisson", "fixed_size", "shuffled")
KEY = np.array([1, 2], np.uint64)
UNIT_KEY = np.array([3, 4], np.uint64)

Draw = Callable[[int], object]  # step -> rows


class Cost(NamedTuple):
    first: float  # seconds of making a sampler and its first step
    step: float  # seconds of a later step
    peak: float  # MB


def measure(make: Callable[[], Draw], steps: int) -> Cost:
    """Returns the medians of three."""
    firsts, means = [], []
    for _ in range(3):
        start = time.perf_counter()
        draw = make()
        draw(0)
        firsts.append(time.perf_counter() - start)
        start = time.perf_counter()
        for step in range(1, 1 + steps):
            draw(step)
        means.append((time.perf_counter() - start) / steps)
    tracemalloc.start()
    draw = make()
    draw(0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return Cost(statistics.median(firsts), statistics.median(means), peak / 1e6)


def sampler(kind: Sampling, num_examples: int, units: bool) -> Draw:
    """The way of `plan.batches()`."""
    made = sampling.Sampler(kind, KEY, num_examples, SIZE)
    capacity = sampling.capacity(kind, num_examples, SIZE, UNITS if units else 1, 10_000)

    def draw(step: int) -> object:
        rows = made.rows(step)
        if not units:
            return sampling.pad(rows, capacity, num_examples)
        unit_of = sampling.assign_units(UNIT_KEY, step, rows, UNITS)
        return sampling.pad_units(rows, unit_of, UNITS, capacity, num_examples)

    return draw


def one_by_one(kind: Sampling, num_examples: int, units: bool) -> Draw:
    """A word for every record, or a shuffle of all."""
    threshold = np.uint64(SIZE / num_examples * 2.0**64)

    def draw(step: int) -> object:
        words = np.random.Philox(key=KEY, counter=[0, 0, 0, step])
        if kind == "shuffled":
            rows = np.random.Generator(words).permutation(num_examples)[:SIZE]
        elif kind == "poisson":
            rows = np.flatnonzero(words.random_raw(num_examples) < threshold)
        else:
            chosen = np.random.Generator(words).choice(
                num_examples, SIZE, replace=False, shuffle=False
            )
            rows = np.sort(chosen)
        if not units:
            return rows
        unit_words = np.random.Philox(key=UNIT_KEY, counter=[0, 0, 0, step])
        return (unit_words.random_raw(num_examples) % np.uint64(UNITS)).astype(np.int32)[rows]

    return draw


def main() -> None:
    print(f"{hardware()}, load {os.getloadavg()[0]:.1f}; batches of {SIZE:,}")
    print("| sampling | N | first step, ms | step, ms | peak, MB | one by one: step, ms | MB |")
    print("|---|---|---|---|---|---|---|")
    for kind, units in [*((kind, False) for kind in KINDS), ("poisson", True)]:
        for count in RECORDS:
            cost = measure(lambda: sampler(kind, count, units), 100)
            cells = [f"{cost.first * 1e3:.1f}", f"{cost.step * 1e3:.2f}", f"{cost.peak:.1f}"]
            if count > RECORDS_ONE_BY_ONE:
                cells += ["", ""]
            else:
                old = measure(lambda: one_by_one(kind, count, units), 1)
                cells += [f"{old.step * 1e3:.1f}", f"{old.peak:.1f}"]
            name = f"{kind}, {UNITS} units" if units else kind
            print("| " + " | ".join([name, f"{count:,}", *cells]) + " |", flush=True)
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
