"""Lower bounds on privacy parameters from how often an attacker was wrong.

An attacker looks at one release and says whether the canary was in it. False alarms are releases
without the canary that were taken for some with it; misses are the opposite. A mechanism that is
μ-GDP has no attacker with P[miss] < Φ(Φ⁻¹(1 − P[false alarm]) − μ), and one that is (ε, δ)-DP none
with 1 − P[miss] > e^ε·P[false alarm] + δ, nor with the two exchanged. So upper confidence limits on
both probabilities give lower ones on μ and ε, if the attacker's rule was fixed before the releases
that are counted were made.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats


class Errors(NamedTuple):
    """How often attackers were wrong, in equally many releases with and without the canary.

    Attributes:
      false_alarms: `[k]`, for each of k rules.
      misses: `[k]`.
      trials: the number of releases with the canary, and of those without it.
    """

    false_alarms: NDArray[np.int64]
    misses: NDArray[np.int64]
    trials: int


def clopper_pearson(
    counts: ArrayLike, trials: int, significance: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Exact confidence limits on a probability: each is wrong with a chance of `significance`.

    Args:
      counts: how often it happened, of any shape.
      trials: in how many independent trials.
      significance: the chance that the true probability is below the lower limit, and also the
        chance that it is above the upper one.

    Returns:
      `(lower, upper)`, of the shape of `counts`.

    References:
      Clopper and Pearson 1934, The Use of Confidence or Fiducial Limits.
    """
    counted = np.asarray(counts, np.float64)
    # Where they are not defined, they are 0 and 1.
    lower = stats.beta.ppf(significance, np.maximum(counted, 1), trials - counted + 1)
    upper = stats.beta.isf(significance, counted + 1, np.maximum(trials - counted, 1))
    return np.where(counted > 0, lower, 0.0), np.where(counted < trials, upper, 1.0)


def mu_bounds(errors: Errors, significance: float) -> NDArray[np.float64]:
    """`[k]` lower bounds on μ; each is above the true μ with a chance of at most `significance`.

    A rule's false alarm and miss have probabilities α and β with α + β ≥ 2Φ(−μ/2). The number of
    all errors in 2n releases is at most e with a chance that is largest where both have the same
    probability (α + β)/2, for every e ≤ n(α + β) − 1 (Hoeffding 1956, theorem 4). So the limit of
    Clopper and Pearson for 2n equal trials holds for it. (For a larger e the limit is at least
    that probability, or at least 1/2, which bounds nothing: equal trials have at most e errors with
    a chance of 1/4 or more, by Greenberg and Mohri 2014. So `significance` is at most 1/4.)
    """
    wrong = errors.false_alarms + errors.misses
    most = clopper_pearson(wrong, 2 * errors.trials, significance)[1]
    return np.maximum(0.0, -2 * special.ndtri(most))


def epsilon_bounds(errors: Errors, delta: float, significance: float) -> NDArray[np.float64]:
    """`[k]` lower bounds on ε at δ; each is above it with a chance of at most `significance`."""
    # One half for either limit: both hold with a chance of at least 1 - significance.
    limit = lambda counts: clopper_pearson(counts, errors.trials, significance / 2)[1]
    false_alarm, miss = limit(errors.false_alarms), limit(errors.misses)
    seen = [(1 - delta - miss) / false_alarm, (1 - delta - false_alarm) / miss]
    return np.log(np.maximum(1.0, np.maximum(*seen)))


def check_share(name: str, share: float, meaning: str) -> None:
    """Raises a ValueError for a number that is not between 0 and 1."""
    if not (isinstance(share, float) and 0 < share < 1 and math.isfinite(share)):
        raise ValueError(f"{name} is {share!r}: give a number between 0 and 1, {meaning}")
