"""Trade-off curves and groups of records."""

import math

import numpy as np
import pytest
from scipy import stats

from jaxdp.accounting import Mechanism, delta, epsilon, gdp, group_epsilon, tradeoff

ALPHAS = np.linspace(0, 1, 41)


def test_without_amplification_it_is_the_gaussian_curve():
    run = Mechanism(2.0, 300, 0.01, "shuffled", "replace_one", num_examples=1000)
    mu = math.sqrt(3) / 2
    np.testing.assert_allclose(tradeoff(run, ALPHAS), gdp.gaussian_tradeoff(mu, ALPHAS))


def test_one_sampled_step_equals_the_best_test():
    """Neyman-Pearson for N(0, s²) against the mixture, the worse of both directions."""
    s, q = 0.5, 0.3
    run = Mechanism(s, 1, q)
    x = np.linspace(-8, 9, 200_001)
    type_1 = stats.norm.sf(x / s)
    type_2 = (1 - q) * stats.norm.cdf(x / s) + q * stats.norm.cdf((x - 1) / s)
    alphas = np.array([0.001, 0.01, 0.05])
    forward = np.interp(alphas, type_1[::-1], type_2[::-1])
    found = tradeoff(run, alphas)
    assert np.all(found <= forward + 1e-9)
    np.testing.assert_allclose(found, forward, rtol=1e-3)
    # Which of the two data sets is called the null does not matter.
    np.testing.assert_allclose(tradeoff(run, found), alphas, rtol=0.01)


def test_long_runs_approach_a_gaussian_curve():
    run = Mechanism(2.0, 5000, 0.01)
    mu = 0.01 * math.sqrt(5000 * math.expm1(0.25))
    np.testing.assert_allclose(tradeoff(run, ALPHAS), gdp.gaussian_tradeoff(mu, ALPHAS), atol=6e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "run",
    [
        Mechanism(1.0, 500, 0.02),
        Mechanism(1.0, 500, 0.02, adjacency="replace_one"),
        Mechanism(1.0, 50, 0.02, "fixed_size", "replace_one", num_examples=100),
        Mechanism(0.0, 5, 0.1),
        Mechanism(1.0, 0, 0.1),
    ],
)
def test_curves_fall_convexly_below_perfect_privacy_and_keep_every_epsilon_delta(run):
    curve = tradeoff(run, ALPHAS)
    assert np.all(curve <= 1 - ALPHAS + 1e-12)
    assert np.all(np.diff(curve) <= 1e-12)
    assert np.all(np.diff(curve, 2) >= -1e-9)
    accountant = "rdp" if run.sampling == "fixed_size" else "pld"
    for eps in (0.1, 0.7, 2.0):
        line = 1 - delta(run, eps, accountant) - math.exp(eps) * ALPHAS
        assert np.all(curve >= line - 2e-3)
    if run.noise_multiplier == 0:
        np.testing.assert_array_equal(curve, 0)
    if run.steps == 0:
        np.testing.assert_allclose(curve, 1 - ALPHAS)


def test_type_1_errors_outside_0_to_1_are_refused():
    with pytest.raises(ValueError, match="type I errors"):
        tradeoff(Mechanism(1.0, 1, 0.1), [0.5, 1.2])


# Groups.


def test_a_group_of_one_is_one_record():
    for run in (
        Mechanism(1.5, 200, 0.02),
        Mechanism(1.5, 200, 0.02, adjacency="replace_one"),
        Mechanism(1.5, 200, 0.1, "shuffled", "replace_one", "batch", 1000),
    ):
        assert group_epsilon(run, 1e-5, 1) == pytest.approx(epsilon(run, 1e-5), rel=1e-3)


@pytest.mark.parametrize(
    ("unit", "units", "size", "mu_per_root_epoch"),
    [
        ("example", None, 4, 4.0),
        ("batch", 1, 4, 2.0),  # four batches with one unit changed in each
        ("batch", 2, 4, math.sqrt(8)),  # two batches with two units changed in each
        ("batch", 2, 5, 3.0),
        ("batch", 8, 4, 4.0),
        ("batch", None, 4, 4.0),
    ],
)
def test_groups_in_shuffled_epochs(unit, units, size, mu_per_root_epoch):
    run = Mechanism(2.5, 1000, 0.01, "shuffled", "replace_one", unit, 1000)  # ten epochs
    mu = mu_per_root_epoch * math.sqrt(10) / 2.5
    found = group_epsilon(run, 1e-5, size, units_per_batch=units)
    assert found == pytest.approx(gdp.epsilon_from_mu(mu, 1e-5), rel=1e-9)


def test_a_group_in_a_full_batch_moves_it_all_at_once():
    run = Mechanism(3.0, 5, 1.0, "full_batch", "add_remove", "batch")
    many = group_epsilon(run, 1e-5, 7)
    assert many == pytest.approx(gdp.epsilon_from_mu(7 * math.sqrt(5) / 3, 1e-5), rel=1e-9)
    capped = group_epsilon(run, 1e-5, 7, units_per_batch=2)
    assert capped == pytest.approx(gdp.epsilon_from_mu(2 * math.sqrt(5) / 3, 1e-5), rel=1e-9)


def test_groups_under_poisson_sampling_equal_brute_force():
    """One step, three records: N(0, s²) against the binomial mixture of N(k, s²)."""
    s, q, size, d = 0.8, 0.1, 3, 1e-3
    x, dx = np.linspace(-12, 15, 300_001, retstep=True)
    p = sum(stats.binom.pmf(k, size, q) * stats.norm.pdf(x, k, s) for k in range(size + 1))
    r = stats.norm.pdf(x, 0, s)
    found = group_epsilon(Mechanism(s, 1, q), d, size)
    worse = max(np.sum(np.maximum(a - math.exp(found) * b, 0)) * dx for a, b in [(p, r), (r, p)])
    assert worse == pytest.approx(d, rel=2e-3)


def test_groups_cost_more_than_one_and_less_than_the_textbook():
    run = Mechanism(4.0, 1000, 0.01)
    one, two, four = (group_epsilon(run, 1e-6, size) for size in (1, 2, 4))
    assert one < two < four
    assert four < 8 * one
    capped = group_epsilon(Mechanism(4.0, 1000, 0.01, unit="batch"), 1e-6, 4, units_per_batch=1)
    assert one < capped < four


def test_groups_of_other_kinds_follow_the_textbook():
    run = Mechanism(4.0, 100, 0.01, adjacency="replace_one")
    found = group_epsilon(run, 1e-6, 3)
    share = found / 3
    bound = delta(run, share) * math.expm1(found) / math.expm1(share)
    assert bound <= 1e-6 * (1 + 1e-9)
    assert bound == pytest.approx(1e-6, rel=1e-4)


def test_groups_without_noise_or_release():
    assert group_epsilon(Mechanism(0.0, 3, 0.1), 1e-6, 2) == math.inf
    assert group_epsilon(Mechanism(1.0, 0, 0.1), 1e-6, 2) == 0


def test_groups_without_meaning_are_refused():
    with pytest.raises(ValueError, match="give at least 1"):
        group_epsilon(Mechanism(1.0, 3, 0.1), 1e-6, 0)
    with pytest.raises(ValueError, match="leave it out"):
        group_epsilon(Mechanism(1.0, 3, 0.1), 1e-6, 2, units_per_batch=2)
