"""Discrete Laplace noise: its exact law, and where its bits come from."""

import math
import random
import secrets
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from jaxdp.dpsgd.discrete_laplace import discrete_laplace, discrete_laplace_std

FALSE_ALARM = 1e-6  # of each statistical test; the bits are seeded, so a pass stays a pass
DRAWS = 40_000
EPSILONS = [Fraction(1, 2), Fraction("3.7"), Fraction(2), Fraction(2, 7)]


def draws(epsilon, seed=0):
    source = random.Random(seed)
    return np.array([discrete_laplace(epsilon, source.randrange) for _ in range(DRAWS)])


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_the_law_is_that_of_the_discrete_laplace(epsilon):
    found = draws(epsilon)
    ratio = math.exp(-epsilon)
    share = lambda n: (1 - ratio) / (1 + ratio) * ratio ** abs(n)
    # Cells of their own as long as 10 draws are expected; the two tails are cells, too.
    most = max(n for n in range(200) if DRAWS * share(n) >= 10)
    inner = np.arange(-most, most + 1)
    counts = [*(np.sum(found == n) for n in inner), np.sum(found > most), np.sum(found < -most)]
    tail = ratio ** (most + 1) / (1 + ratio)
    expected = DRAWS * np.array([*map(share, inner), tail, tail])
    assert stats.chisquare(counts, expected).pvalue > FALSE_ALARM


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_the_standard_deviation(epsilon):
    n = np.arange(-400, 401)
    weights = np.exp(-float(epsilon) * abs(n))
    exact = math.sqrt(np.sum(weights * n**2) / np.sum(weights))
    assert discrete_laplace_std(epsilon) == pytest.approx(exact, rel=1e-9)


def test_the_bits_are_the_operating_systems(monkeypatch):
    assert discrete_laplace.__defaults__ == (secrets.randbelow,)
    assert len({discrete_laplace(Fraction(1, 10**6)) for _ in range(20)}) == 20


@pytest.mark.parametrize("epsilon", [Fraction(0), Fraction(-1, 2)])
def test_an_epsilon_of_zero_or_less_is_refused(epsilon):
    with pytest.raises(ValueError, match="give a number above 0"):
        discrete_laplace(epsilon)
