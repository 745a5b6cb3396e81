"""Binomial numbers whose distance from the exact law is proved: how many records a step samples.

NumPy's binomial cuts its tails, and a float64 distribution function is off by 1e-16: an attacker
who sees many steps could tell either from the law that is accounted for.
"""

import itertools
from bisect import bisect_left, bisect_right

UNIFORM_BITS = 128

# Fixed point of the weights: the most probable number has the weight ONE.
ONE = 1 << 256

# Each tail outside the window has less than this weight, so a probability below 2^-102.
TAIL = ONE >> 102

TOTAL_VARIATION = 2.0**-99
"""Distance in total variation between a drawn number and Binomial(n, p), for up to 2^28 entries."""


class Binomial:
    """The law Binomial(trials, probability), tabulated once and then inverted.

    The probability is the float64 number itself, a fraction with a power of two below. All numbers
    are Python integers. The distance from the exact law is at most `TOTAL_VARIATION`:

    - The window around the mode leaves out two tails, each below 2^-102: beyond the last k, the
      probabilities fall at least as fast as a geometric series. That is 2^-101 at most.
    - Weights follow from their neighbours, rounded down. Since they fall, a weight k places from
      the mode is low by at most k, and K weights by K²/2 in all: less than 2^-200 of ONE.
    - Each of the K thresholds is rounded down to a multiple of 2^-128, which moves at most
      K·2^-129: 2^-101, for K ≤ 2^28 entries. K is about 24 standard deviations (1,540 for a
      batch of 4,096; 2^28 would be a batch of 1e14).

    Attributes:
      first: the least number of the window.
      thresholds: `thresholds[i]` / 2^128 is the probability of at most `first + i`.
    """

    def __init__(self, trials: int, probability: float) -> None:
        success, whole = probability.as_integer_ratio()
        failure = whole - success
        if success == 0 or failure == 0:
            self.first, self.thresholds = (trials if success else 0), []
            return
        mode = (trials + 1) * success // whole
        above = _weights(trials - mode, mode, success, failure)
        below = _weights(mode, trials - mode, failure, success)
        self.first = mode - len(below)
        sums = list(itertools.accumulate([*reversed(below), ONE, *above]))
        total = sums.pop()
        self.thresholds = [(weight << UNIFORM_BITS) // total for weight in sums]

    def invert(self, uniform: int) -> int:
        """Returns the number at a uniform integer in [0, 2^128)."""
        return self.first + bisect_right(self.thresholds, uniform)

    def upper(self, tail: float) -> int:
        """Returns the least number that is exceeded with probability `tail` at most.

        SciPy's `binom.isf` answers `trials` for tails below 1e-16.

        Args:
          tail: at least 2^-100; below that, the last number of the window is returned. `invert`
            never exceeds it, and the exact law does with probability 2^-102 at most.
        """
        all_but_tail = (1 << UNIFORM_BITS) - int(tail * 2.0**UNIFORM_BITS)
        return self.first + bisect_left(self.thresholds, all_but_tail)


def _weights(left: int, done: int, success: int, failure: int) -> list[int]:
    """The weights of the numbers beyond the mode in one direction, the nearest first.

    Args:
      left: how many trials can still succeed at the mode.
      done: how many have succeeded there.
      success, failure: the probabilities of a trial, up to a common factor.
    """
    weights: list[int] = []
    weight = ONE
    while True:
        rise, fall = left * success, (done + 1) * failure  # the next weight is rise / fall of this
        # All that follow together: at most weight · rise / (fall - rise), a geometric series.
        if (weight + len(weights)) * rise < TAIL * (fall - rise):
            return weights
        weight = weight * rise // fall
        weights.append(weight)
        left, done = left - 1, done + 1
