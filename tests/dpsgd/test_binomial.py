"""The number of sampled records: its distance from the exact law, computed exactly (rule 11)."""

import itertools
import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from helpers.releases import FALSE_ALARM
from scipy.stats import binom, chi2

from jaxdp.dpsgd import binomial
from jaxdp.dpsgd.binomial import Binomial

SIZE = 1 << binomial.UNIFORM_BITS

# B(2n) of Stirling's series.
BERNOULLI = [
    Fraction(*pair)
    for pair in (
        *((1, 6), (-1, 30), (1, 42), (-1, 30), (5, 66), (-691, 2730), (7, 6), (-3617, 510)),
        *((43867, 798), (-174611, 330), (854513, 138), (-236364091, 2730), (8553103, 6)),
    )
]


def given_probabilities(law):
    """The probability of every number, `{number: Fraction}`: as often as a uniform gives it."""
    edges = [0, *law.thresholds, SIZE]
    pairs = enumerate(itertools.pairwise(edges), law.first)
    return {number: Fraction(high - low, SIZE) for number, (low, high) in pairs}


@pytest.mark.parametrize(
    ("n", "q"),
    [
        (1, 0.5),
        (1, 1e-9),
        (2, 0.1),
        (6, 0.3),
        (6, 0.999),
        (40, 0.5),
        (300, 1e-3),
        (1437, 256 / 1437),
        (1000, 0.97),
        (10, 5e-324),
        (10, 1 - 2**-53),
    ],
)
def test_the_distance_from_the_exact_law(n, q):
    given = given_probabilities(Binomial(n, q))
    success, whole = q.as_integer_ratio()
    distance = 0
    for k in range(n + 1):
        weight = math.comb(n, k) * success**k * (whole - success) ** (n - k)
        # Both in units of 1 / (whole^n 2^128), as integers.
        distance += abs(weight * SIZE - int(given.pop(k, 0) * SIZE) * whole**n)
    assert not given
    assert 2**99 * distance <= 2 * whole**n * SIZE
    assert binomial.TOTAL_VARIATION == 2.0**-99


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "size"), [(10**6, 4096), (10**9, 4096), (10**12, 4096), (10**9, 10**9 - 5000)]
)
def test_the_distance_where_n_is_large(n, size):
    law = Binomial(n, size / n)
    with localcontext(prec=110):
        q = Decimal(size / n)
        distance, mass = Decimal(0), Decimal(0)
        for k, probability in given_probabilities(law).items():
            log = log_factorial(n) - log_factorial(k) - log_factorial(n - k)
            exact = (log + k * q.ln() + (n - k) * (1 - q).ln()).exp()
            distance += abs(exact - Decimal(probability.numerator) / probability.denominator)
            mass += exact
        assert 0 < 1 - mass < Decimal(2) ** -101
        assert (distance + 1 - mass) / 2 < Decimal(2) ** -99


def log_factorial(n):
    """By Stirling's series: for n ≥ 3000 off by less than 1e-80."""
    assert n >= 3000
    pi = Decimal(
        "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534"
    )
    terms = sum(
        Decimal(b.numerator) / b.denominator / (2 * i * (2 * i - 1)) / Decimal(n) ** (2 * i - 1)
        for i, b in enumerate(BERNOULLI, 1)
    )
    return (2 * pi * n).ln() / 2 + n * Decimal(n).ln() - n + terms


def test_a_changed_threshold_is_seen():
    law = Binomial(40, 0.5)
    law.thresholds[20] += 1 << (128 - 97)
    exact = {k: Fraction(math.comb(40, k), 2**40) for k in range(41)}
    given = given_probabilities(law)
    distance = sum(abs(exact[k] - given.get(k, 0)) for k in exact) / 2
    assert distance > binomial.TOTAL_VARIATION


def test_every_number_is_given_as_often_as_its_thresholds_say():
    law = Binomial(6, 0.3)
    for number, (low, high) in enumerate(itertools.pairwise([0, *law.thresholds, SIZE]), law.first):
        assert {law.invert(u) for u in (low, (low + high) // 2, high - 1)} == {number}


def uniforms(count):
    words = np.random.Philox(key=[1, 2]).random_raw(2 * count)
    return [int(high) << 64 | int(low) for high, low in words.reshape(-1, 2)]


@pytest.mark.parametrize(("n", "size"), [(10**9, 4096), (10**12, 3), (50, 40), (10**6, 250_000)])
def test_drawn_numbers_are_binomial(n, size):
    count, q = 100_000, size / n
    drawn = np.array([law.invert(u) for law in [Binomial(n, q)] for u in uniforms(count)])
    edges = np.unique(binom.ppf(np.linspace(0, 1, 41)[1:-1], n, q))
    expected = count * np.diff(binom.cdf([-1, *edges, n], n, q))
    counts = np.bincount(np.searchsorted(edges, drawn), minlength=len(expected))
    few = expected < 5
    expected = np.append(expected[~few], expected[few].sum())
    counts = np.append(counts[~few], counts[few].sum())
    seen = expected > 0
    statistic = np.sum((counts - expected)[seen] ** 2 / expected[seen])
    assert chi2.sf(statistic, seen.sum() - 1) > FALSE_ALARM


def test_the_tails_are_as_often_as_they_should_be():
    n, count, q = 10**9, 200_000, 4096 / 10**9
    law = Binomial(n, q)
    drawn = np.array([law.invert(u) for u in uniforms(count)])
    for tail in (1e-2, 1e-3, 1e-4):
        low, high = binom.ppf(tail, n, q), binom.isf(tail, n, q)
        for seen, chance in [
            (drawn < low, binom.cdf(low - 1, n, q)),
            (drawn > high, binom.sf(high, n, q)),
        ]:
            least, most = binom.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], count, chance)
            assert least <= seen.sum() <= most


def test_the_tails_are_not_cut():
    law = Binomial(10**9, 4096 / 10**9)
    assert law.invert(0) < 4096 - 11 * 64
    assert law.invert(SIZE - 1) > 4096 + 11 * 64
    assert 23 * 64 < len(law.thresholds) < 25 * 64


def test_certain_numbers():
    for uniform in (0, SIZE // 2, SIZE - 1):
        assert Binomial(30, 1.0).invert(uniform) == 30
        assert Binomial(30, 0.0).invert(uniform) == 0
    assert Binomial(30, 1.0).upper(1e-12) == 30


def test_the_upper_end_is_exceeded_as_seldom_as_asked():
    law = Binomial(10, 0.5)
    assert law.upper(2.0**-10) == 9  # 10 has just this probability
    assert law.upper(2.0**-10 * 0.999) == 10
    assert law.upper(0.7) == 4
    assert law.upper(0.0) == 10
    for n, q, tail in [(10**9, 4096 / 10**9, 1e-20), (60_000, 1e-3, 5e-17), (500, 0.9, 1e-15)]:
        end = Binomial(n, q).upper(tail)
        assert binom.sf(end, n, q) <= tail < binom.sf(end - 1, n, q)
