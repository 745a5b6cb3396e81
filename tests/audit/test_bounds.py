"""Lower bounds on μ and ε from errors: their chance to be too high, computed exactly."""

import itertools
import math

import numpy as np
import pytest
from scipy import special, stats

from jaxdp.audit.bounds import Errors, check_share, clopper_pearson, epsilon_bounds, mu_bounds


def test_limits_are_those_that_are_published():
    # 10 of 100, 95 % on both sides together: the textbook's example.
    lower, upper = clopper_pearson(10, 100, 0.025)
    assert (lower, upper) == pytest.approx((0.0490, 0.1762), abs=5e-5)
    lower, upper = clopper_pearson([0, 50], 50, 0.05)
    assert (lower[0], upper[1]) == (0, 1)
    assert upper[0] == pytest.approx(1 - 0.05 ** (1 / 50), rel=1e-12)
    assert lower[1] == pytest.approx(0.05 ** (1 / 50), rel=1e-12)


def too_high(bound, trials, alpha, beta, truth):
    """The exact chance that a bound is above the truth, for errors of these probabilities."""
    counts = np.arange(trials + 1)
    alarms, misses = np.meshgrid(counts, counts, indexing="ij")
    found = bound(Errors(alarms.ravel(), misses.ravel(), trials)).reshape(alarms.shape)
    chance = np.outer(stats.binom.pmf(counts, trials, alpha), stats.binom.pmf(counts, trials, beta))
    return chance[found > truth].sum()


@pytest.mark.parametrize("trials", [1, 2, 7, 40])
def test_mu_is_too_high_as_rarely_as_is_said(trials):
    significance, largest = 0.05, 0.0
    for mu, alpha in itertools.product(
        [0.0, 0.1, 0.5, 1.0, 2.0, 4.0], np.linspace(0.001, 0.999, 41)
    ):
        beta = float(special.ndtr(-special.ndtri(alpha) - mu))  # the best attacker
        bound = lambda errors: mu_bounds(errors, significance)
        chance = too_high(bound, trials, alpha, beta, mu * (1 + 1e-12) + 1e-12)
        assert chance <= significance, (mu, alpha)
        largest = max(largest, chance)
    if trials == 40:
        assert largest > significance / 2  # hardly anything is given away


@pytest.mark.parametrize("trials", [1, 2, 7, 40])
def test_epsilon_is_too_high_as_rarely_as_is_said(trials):
    significance, delta = 0.05, 0.01
    for epsilon, alpha in itertools.product([0.0, 0.3, 1.0, 3.0], np.linspace(0.001, 0.999, 41)):
        e = math.exp(epsilon)
        beta = max(0.0, 1 - delta - e * alpha, (1 - delta - alpha) / e)  # the best attacker
        bound = lambda errors: epsilon_bounds(errors, delta, significance)
        chance = too_high(bound, trials, alpha, beta, epsilon * (1 + 1e-12) + 1e-12)
        assert chance <= significance, (epsilon, alpha)


def test_epsilon_pays_for_both_limits():
    # Where both directions of the attack are as good: one limit that is too low is enough.
    epsilon, delta, trials = 3.0, 0.01, 400
    alpha = (1 - delta) / (1 + math.exp(epsilon))
    bound = lambda errors: epsilon_bounds(errors, delta, 0.05)
    assert 0.025 < too_high(bound, trials, alpha, alpha, epsilon + 1e-12) <= 0.05


def test_many_releases_come_close():
    mu, trials = 0.5, 10**7
    errors = np.full(1, round(trials * special.ndtr(-mu / 2)))
    assert mu_bounds(Errors(errors, errors, trials), 0.05)[0] == pytest.approx(mu, rel=0.01)
    epsilon, delta = 1.0, 1e-3
    alarms = np.full(1, round(trials * 0.1))
    misses = np.full(1, round(trials * (1 - delta - math.e * 0.1)))
    found = epsilon_bounds(Errors(alarms, misses, trials), delta, 0.05)[0]
    assert found == pytest.approx(epsilon, rel=0.01)


def test_an_attacker_that_is_never_wrong_shows_no_more_than_the_number_of_releases():
    none = np.zeros(1, int)
    few, many = (mu_bounds(Errors(none, none, n), 0.05)[0] for n in (100, 10_000))
    assert 0 < few < many < 10


def test_shares_are_checked():
    check_share("confidence", 0.95, "as 0.95")
    for wrong in (0.0, 1.0, math.nan, 95, "0.95"):
        with pytest.raises(ValueError, match=r"confidence is .*: give a number between 0 and 1"):
            check_share("confidence", wrong, "as 0.95")
