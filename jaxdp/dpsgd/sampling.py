"""Draws the records of every step, in time of the batch, and pads them to one shape."""

import functools

import numpy as np

from ..accounting.mechanism import batches_per_epoch
from ..types import Sampling
from . import philox
from .binomial import Binomial
from .permutation import Permutation

VERSION = 2
"""Of what (key, step) draws. It changes with every change of a drawn batch."""

OVERFLOW_PROBABILITY = 1e-12
"""The chance that any batch, or unit, of a whole run exceeds `capacity`."""

SPARSE = 32  # more records than this for each sampled one: no array of N marks


class Sampler:
    """Draws the rows of a step, a function of (key, step) only, in time and memory of the batch.

    - "poisson": first the number of rows, Binomial(N, q), then that many rows, uniform among all
      sets of that size. A set of n rows then has the probability C(N, n) q^n (1 - q)^(N - n) /
      C(N, n): that of rows which are in with probability q, independently of each other. Only the
      number is not exact, up to `binomial.TOTAL_VARIATION`, which is charged for
      (`accounting.noise_charge`).
    - "fixed_size": the same with a fixed number of rows: uniform without replacement, exactly.
    - "shuffled": every epoch in a new order, with a last batch that may be short. The order is a
      keyed permutation that is read at the step's places. Its randomness need not be perfect,
      since shuffled epochs are accounted without amplification by sampling.
    - "full_batch": all rows.

    "Exact" takes Philox's words for random.

    Args:
      sampling: as above.
      key: Philox key `[2] uint64` (`keys.philox_key`).
      num_examples: N.
      expected_batch_size: the batch size; a whole number, except for Poisson sampling. There,
        q = expected_batch_size / N, as float64: the very number that is accounted for.
    """

    def __init__(
        self, sampling: Sampling, key: np.ndarray, num_examples: int, expected_batch_size: float
    ) -> None:
        self._sampling = sampling
        self._key = key
        self._num_examples = num_examples
        self._size = int(expected_batch_size)
        self._dtype = np.int32 if num_examples < 2**31 else np.int64
        if sampling == "poisson":
            self._counts = Binomial(num_examples, expected_batch_size / num_examples)
        self._epoch = -1

    def rows(self, step: int) -> np.ndarray:
        """Returns the rows of a step, `[n] int32`, or int64 for N ≥ 2^31.

        In increasing order, except those of shuffled epochs.
        """
        if self._sampling == "full_batch":
            return np.arange(self._num_examples, dtype=self._dtype)
        if self._sampling == "shuffled":
            return self._places(step).astype(self._dtype)
        words = philox.stream(self._key, step)
        count = self._size
        if self._sampling == "poisson":
            high, low = words.random_raw(2)
            count = self._counts.invert(int(high) << 64 | int(low))
        return distinct_rows(words, self._num_examples, count).astype(self._dtype)

    def _places(self, step: int) -> np.ndarray:
        epoch, place = divmod(step, batches_per_epoch(self._num_examples, self._size))
        if epoch != self._epoch:
            self._order = Permutation(self._key, epoch, self._num_examples)
            self._epoch = epoch
        start = place * self._size
        return self._order.at(np.arange(start, min(start + self._size, self._num_examples)))


def distinct_rows(words: np.random.Philox, num_examples: int, count: int) -> np.ndarray:
    """Returns a uniform set of `count` rows out of N: `[count] int64`, in increasing order.

    As many rows as are missing are drawn independently and uniformly, and repeats are dropped,
    until none is missing. This gives the first `count` distinct values of one endless sequence of
    independent uniform rows. Renaming the rows leaves the law of that sequence as it is, so all
    sets of this size have the same probability. Where more than half of the rows are asked for,
    the rows that stay out are drawn.
    """
    if num_examples > SPARSE * count:
        rows = np.empty(0, np.int64)
        while len(rows) < count:
            drawn = philox.integers(words, num_examples, count - len(rows))
            rows = np.union1d(rows, drawn)
        return rows
    fewer = min(count, num_examples - count)
    marks = np.zeros(num_examples, bool)  # faster than sorting, and no larger than a few batches
    while missing := fewer - int(np.count_nonzero(marks)):
        marks[philox.integers(words, num_examples, missing)] = True
    return np.flatnonzero(marks if fewer == count else ~marks)


@functools.lru_cache
def capacity(
    sampling: Sampling, num_examples: int, expected_batch_size: float, num_units: int, steps: int
) -> int:
    """Returns a size that some batch (or unit) of a run exceeds with probability 1e-12 only.

    The least such size: it is not rounded up, since every row of padding costs time.
    """
    if sampling == "poisson":
        trials, probability = num_examples, expected_batch_size / num_examples / num_units
    else:
        trials, probability = int(expected_batch_size), 1 / num_units
    tail = OVERFLOW_PROBABILITY / max(steps * num_units, 1)
    return max(Binomial(trials, probability).upper(tail), 1)


@functools.lru_cache
def most_rows(sampling: Sampling, num_examples: int, expected_batch_size: float) -> int:
    """Returns a number of rows that no step exceeds, for the data and for neighbours of them.

    A neighbour may have a record more. `Sampler` inverts a table, and never draws more Poisson
    records than it has entries for. Under the law that is accounted for, more have a probability
    below 2^-102 a step, which the charge for the sampling (2^-99) covers.
    """
    if sampling == "poisson":
        return Binomial(num_examples, expected_batch_size / num_examples).upper(0) + 1
    return int(expected_batch_size) + 1


def pad(indices: np.ndarray, rows: int, padding: int) -> tuple[np.ndarray, np.ndarray]:
    """Pads indices `[n]` by `padding`, to a multiple of `rows`: `(indices [c], mask bool [c])`.

    A sample of more than `rows` is never cut: it gets a larger shape, for which the step is
    compiled again. With `rows` = `capacity` that happens in one of 1e12 runs.
    """
    padded = rows * max(1, -(-len(indices) // rows))
    mask = np.arange(padded) < len(indices)
    return np.pad(indices, (0, padded - len(indices)), constant_values=padding), mask


def assign_units(key: np.ndarray, step: int, rows: np.ndarray, num_units: int) -> np.ndarray:
    """Returns the unit of each row at a step: `[n] int32` for rows `[n]`.

    A row's unit is a keyed hash of (step, row): it never depends on the record's content, on its
    place in a batch, or on which other records are sampled. Units are independent and uniform up to
    2^-64. (Privacy needs the former only: a record moves the sum by the same in every unit.)
    """
    unit_of, _ = philox.multiply(philox.hashed(key, rows, step), num_units)
    return unit_of.astype(np.int32)


def pad_units(
    indices: np.ndarray, unit_of: np.ndarray, num_units: int, rows: int, padding: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sorts sampled records into units: `(indices [m, c], mask bool [m, c])`.

    Indices are `padding` where the mask is False. c is a multiple of `rows` that holds the fullest
    unit. A unit is never taken in two parts: each would be clipped by itself.
    """
    order = np.argsort(unit_of, kind="stable")
    counts = np.bincount(unit_of, minlength=num_units)
    padded = rows * max(1, -(-int(np.max(counts)) // rows))
    mask = np.arange(padded) < counts[:, None]
    units = np.full((num_units, padded), padding, indices.dtype)
    units[mask] = indices[order]
    return units, mask
