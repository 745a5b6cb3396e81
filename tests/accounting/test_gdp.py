"""Gaussian differential privacy against published values, mpmath and its own inverses."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxdp.accounting import gdp

mpmath.mp.dps = 60


def exact_delta(mu, epsilon):
    mu, epsilon = mpmath.mpf(mu), mpmath.mpf(epsilon)
    first = mpmath.ncdf(mu / 2 - epsilon / mu)
    return first - mpmath.exp(epsilon) * mpmath.ncdf(-mu / 2 - epsilon / mu)


@pytest.mark.parametrize(
    ("mu", "epsilon"),
    [
        (1.0, 4.37718),
        (1.0, 0.0),
        (0.01, 0.03),
        (1e-6, 3e-5),
        (5.0, 1.0),
        (30.0, 500.0),
        (2000.0, 2.001e6),
    ],
)
def test_delta_equals_sixty_digits(mu, epsilon):
    expected = exact_delta(mu, epsilon)
    assert float(mpmath.log(expected)) == pytest.approx(gdp.log_delta(mu, epsilon), rel=1e-9)


@pytest.mark.parametrize(
    ("z", "delta", "expected"),
    [(1.0, 1e-5, 4.37718), (0.5, 1e-5, 9.99726), (2.0, 1e-5, 1.99309), (0.01875, 1e-5, 1648.72)],
)
def test_analytic_gaussian(z, delta, expected):
    assert gdp.epsilon_from_mu(1 / z, delta) == pytest.approx(expected, rel=1e-5)


def test_large_epsilons_of_the_paper():
    for mu, expected in [(377.1236, 72718.5), (2969.474, 4421552), (14.142136, 159.4415)]:
        assert gdp.epsilon_from_mu(mu, 1e-5) == pytest.approx(expected, rel=2e-6)


@settings(max_examples=200, deadline=None)
@given(st.floats(-4, math.log10(5e6)), st.floats(-30, -0.5))
def test_mu_and_epsilon_invert_each_other_and_round_to_the_safe_side(log_epsilon, log_delta):
    epsilon, delta = 10**log_epsilon, 10**log_delta
    mu = gdp.mu_from_epsilon(epsilon, delta)
    assert gdp.log_delta(mu, epsilon) <= math.log(delta)
    back = gdp.epsilon_from_mu(mu, delta)
    assert back <= epsilon * (1 + 1e-9)
    assert back == pytest.approx(epsilon, rel=1e-6, abs=1e-9)
    assert gdp.log_delta(mu, back) <= math.log(delta)


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(0, 1e4), st.floats(1.001, 3))
def test_delta_falls_with_epsilon_and_rises_with_mu(mu, epsilon, factor):
    here = gdp.log_delta(mu, epsilon)
    assert gdp.log_delta(mu, epsilon * factor) <= here
    assert gdp.log_delta(mu * factor, epsilon) >= here


def test_ends():
    assert gdp.epsilon_from_mu(0.0, 1e-5) == 0
    assert gdp.epsilon_from_mu(math.inf, 1e-5) == math.inf
    assert gdp.delta_from_mu(math.inf, 3.0) == 1
    assert gdp.delta_from_mu(0.0, 0.0) == 0
    assert gdp.epsilon_from_mu(0.1, 0.5) == 0


def test_tradeoff_is_the_best_test_of_two_gaussians():
    alphas = np.linspace(0, 1, 21)
    cut = stats.norm.isf(alphas)  # reject N(0, 1) for N(mu, 1) above the cut
    np.testing.assert_allclose(gdp.gaussian_tradeoff(1.3, alphas), stats.norm.cdf(cut - 1.3))
    np.testing.assert_allclose(gdp.gaussian_tradeoff(0.0, alphas), 1 - alphas, atol=1e-12)
    np.testing.assert_allclose(gdp.gaussian_tradeoff(math.inf, alphas), 0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: gdp.epsilon_from_mu(1.0, 0.0),
        lambda: gdp.epsilon_from_mu(1.0, 1.0),
        lambda: gdp.epsilon_from_mu(-1.0, 0.1),
        lambda: gdp.log_delta(1.0, -0.1),
        lambda: gdp.log_delta(math.nan, 0.1),
        lambda: gdp.mu_from_epsilon(-1.0, 0.1),
        lambda: gdp.mu_from_epsilon(math.inf, 0.1),
        lambda: gdp.gaussian_tradeoff(1.0, [1.5]),
    ],
)
def test_refuses_numbers_without_meaning(call):
    with pytest.raises(ValueError, match=r"must|give"):
        call()
