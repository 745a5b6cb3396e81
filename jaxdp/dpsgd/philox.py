"""Random words for sampling on the host: Philox4x64-10 with 128-bit keys, and integers from them.

Philox is that of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). NumPy's
generator gives its words one after the other. `hashed` reads it at many counters at once.
"""

import numpy as np

ROUNDS = 10
MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
LOW = np.uint64(2**32 - 1)
HALF = np.uint64(32)


def stream(key: np.ndarray, number: int) -> np.random.Philox:
    """Returns the words of one step (or epoch): the streams of different numbers never overlap.

    Args:
      key: Philox key `[2] uint64` (`keys.philox_key`).
      number: the counter's highest word. The stream itself counts in the three lower ones.
    """
    return np.random.Philox(key=key, counter=[0, 0, 0, number])


def integers(words: np.random.Philox, limit: int, count: int) -> np.ndarray:
    """Returns independent uniform integers `[count] int64` in [0, limit), limit at most 2^63.

    They have no bias: a 64-bit word above the largest multiple of the limit is drawn again.
    """
    largest = np.uint64(2**64 - 2**64 % limit - 1)
    drawn = np.asarray(words.random_raw(count))
    while np.any(again := drawn > largest):
        drawn[again] = words.random_raw(int(np.count_nonzero(again)))
    return (drawn % np.uint64(limit)).astype(np.int64)


def hashed(key: np.ndarray, numbers: np.ndarray, step: int) -> np.ndarray:
    """Returns a 64-bit word for every number, `[n] uint64`: a keyed hash of (step, number).

    It is the first word of the Philox block at the counter (number, 0, 0, step).

    Args:
      key: Philox key `[2] uint64`.
      numbers: `[n]`, whole and not negative.
      step: whole number of the step.
    """
    first = numbers.astype(np.uint64)
    second, third = np.zeros_like(first), np.zeros_like(first)
    fourth = np.full_like(first, step)
    for i in range(ROUNDS):
        # A Weyl sequence of keys, modulo 2^64.
        k0, k1 = (np.uint64((int(k) + i * weyl) % 2**64) for k, weyl in zip(key, WEYL, strict=True))
        high0, low0 = multiply(first, MULTIPLIERS[0])
        high1, low1 = multiply(third, MULTIPLIERS[1])
        first, second = high1 ^ second ^ k0, low1
        third, fourth = high0 ^ fourth ^ k1, low0
    return first


def multiply(words: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the 128-bit products of words `[n] uint64` with a factor, as `(high, low)` words."""
    low, high = words & LOW, words >> HALF
    factor_low, factor_high = np.uint64(factor % 2**32), np.uint64(factor >> 32)
    cross = low * factor_high
    middle = (low * factor_low >> HALF) + (cross & LOW) + high * factor_low  # fits: below 2^64
    top = high * factor_high + (cross >> HALF) + (middle >> HALF)
    return top, words * np.uint64(factor)
