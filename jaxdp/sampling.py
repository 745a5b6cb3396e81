"""Who takes part in a step: Poisson sampling at 64-bit resolution, padded to one fixed shape."""

import numpy as np
from scipy.stats import binom

OVERFLOW_PROBABILITY = 1e-9


def poisson_sample(key: np.ndarray, step: int, num_examples: int, probability: float) -> np.ndarray:
    """Returns the indices `[n] int32` of the records in a Poisson sample, in increasing order.

    Each record is in with the given probability, independently of all others; whether it is
    depends on (key, step, record index) only. Inclusion compares 64 random bits with the
    probability, whose resolution of 2^-64 float32 does not have (`u < q` in float32 is off by
    7% at q = 1e-6).

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


def poisson_capacity(num_examples: int, probability: float, steps: int) -> int:
    """Returns a batch size that a run's Poisson samples stay within, but for chance 1e-9."""
    if probability >= 1.0:
        return num_examples
    tail = OVERFLOW_PROBABILITY / max(steps, 1)
    return int(np.clip(binom.isf(tail, num_examples, probability), 1, num_examples))


def pad(indices: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Pads indices `[n]` to a multiple of `capacity`: `(indices int32 [c], mask bool [c])`.

    A sample larger than the capacity is never cut: it gets a larger (and so recompiled) shape.
    """
    padded = capacity * max(1, -(-len(indices) // capacity))
    mask = np.arange(padded) < len(indices)
    return np.pad(indices, (0, padded - len(indices))), mask


def assign_units(key: np.ndarray, step: int, num_examples: int, num_units: int) -> np.ndarray:
    """Returns every record's unit at a step, `[N] int32`, uniform and independent.

    It depends on (key, step, record index) only: never on the record's content, on who else is
    sampled, or on its place in a batch.
    """
    bits = np.random.Philox(key=key, counter=[0, 0, 0, step]).random_raw(num_examples)
    return (bits % np.uint64(num_units)).astype(np.int32)


def pad_units(
    indices: np.ndarray, unit_of: np.ndarray, num_units: int, capacity: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sorts sampled records into units: `(indices int32 [m, c], mask bool [m, c])`.

    c is a multiple of `capacity` that holds the fullest unit.
    """
    order = np.argsort(unit_of, kind="stable")
    counts = np.bincount(unit_of, minlength=num_units)
    padded = capacity * max(1, -(-counts.max() // capacity))
    mask = np.arange(padded) < counts[:, None]
    units = np.zeros((num_units, padded), np.int32)
    units[mask] = indices[order]
    return units, mask
