"""Draws the records of every step, for every sampling, and pads them to one shape."""

import numpy as np
from scipy.stats import binom

from ..accounting.mechanism import batches_per_epoch
from ..types import Sampling

OVERFLOW_PROBABILITY = 1e-9


def sample(
    sampling: Sampling, key: np.ndarray, step: int, num_examples: int, expected_batch_size: float
) -> np.ndarray:
    """Returns the indices `[n] int32` of the records that take part in a step.

    They depend on (key, step) only.

    Args:
      sampling: "poisson": every record on its own; "shuffled": every epoch in a new order, with a
        last batch that may be short; "fixed_size": a new batch for every step, without
        replacement; "full_batch": all records.
      key: Philox key `[2] uint64` (`keys.philox_key`).
      step: whole number of the step.
      num_examples: N.
      expected_batch_size: the batch size; a whole number, except for Poisson sampling.
    """
    if sampling == "poisson":
        return poisson_sample(key, step, num_examples, expected_batch_size / num_examples)
    if sampling == "full_batch":
        return np.arange(num_examples, dtype=np.int32)
    size = int(expected_batch_size)
    if sampling == "fixed_size":
        chosen = _generator(key, step).choice(num_examples, size, replace=False, shuffle=False)
        return np.sort(chosen).astype(np.int32)
    epoch, place = divmod(step, batches_per_epoch(num_examples, size))
    order = _generator(key, epoch).permutation(num_examples)
    return order[place * size : (place + 1) * size].astype(np.int32)


def capacity(
    sampling: Sampling, num_examples: int, expected_batch_size: float, num_units: int, steps: int
) -> int:
    """Returns a size that some batch (or unit) of a run exceeds with probability 1e-9 only."""
    if sampling == "poisson":
        trials, probability = num_examples, expected_batch_size / num_examples / num_units
    else:
        trials, probability = int(expected_batch_size), 1 / num_units
    if probability >= 1.0:
        return trials
    tail = OVERFLOW_PROBABILITY / max(steps * num_units, 1)
    return int(np.clip(binom.isf(tail, trials, probability), 1, trials))


def poisson_sample(key: np.ndarray, step: int, num_examples: int, probability: float) -> np.ndarray:
    """Returns the indices `[n] int32` of the records in a Poisson sample, in increasing order.

    Each record is in with the given probability, independently of all others. Whether it is in
    depends on (key, step, record index) only. 64 random bits are compared with the probability:
    float32 is too coarse for this (`u < q` is off by 7% at q = 1e-6).

    Args:
      key: Philox key `[2] uint64` (`keys.philox_key`).
      step: whole number of the step; every step draws anew.
      num_examples: N.
      probability: the sampling probability q in [0, 1].
    """
    bits = np.random.Philox(key=key, counter=[0, 0, 0, step]).random_raw(num_examples)
    threshold = int(probability * 2.0**64)
    if threshold >= 2**64:
        return np.arange(num_examples, dtype=np.int32)
    return np.flatnonzero(bits < np.uint64(threshold)).astype(np.int32)


def _generator(key: np.ndarray, counter: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, counter]))


def pad(indices: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Pads indices `[n]` to a multiple of `rows`: `(indices int32 [c], mask bool [c])`.

    A sample of more than `rows` is never cut: it gets a larger shape, for which the step is
    compiled again.
    """
    padded = rows * max(1, -(-len(indices) // rows))
    mask = np.arange(padded) < len(indices)
    return np.pad(indices, (0, padded - len(indices))), mask


def assign_units(key: np.ndarray, step: int, num_examples: int, num_units: int) -> np.ndarray:
    """Returns every record's unit at a step, `[N] int32`, uniform and independent.

    A record's unit depends on (key, step, record index) only: never on its content, its place in a
    batch, or which other records are sampled.
    """
    bits = np.random.Philox(key=key, counter=[0, 0, 0, step]).random_raw(num_examples)
    return (bits % np.uint64(num_units)).astype(np.int32)


def pad_units(
    indices: np.ndarray, unit_of: np.ndarray, num_units: int, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sorts sampled records into units: `(indices int32 [m, c], mask bool [m, c])`.

    c is a multiple of `rows` that holds the fullest unit.
    """
    order = np.argsort(unit_of, kind="stable")
    counts = np.bincount(unit_of, minlength=num_units)
    padded = rows * max(1, -(-int(np.max(counts)) // rows))
    mask = np.arange(padded) < counts[:, None]
    units = np.zeros((num_units, padded), np.int32)
    units[mask] = indices[order]
    return units, mask
