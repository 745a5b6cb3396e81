"""The charge for noise that is not exactly Gaussian: the theorem by brute force, and its uses."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from jaxdp.accounting import (
    Mechanism,
    affordable_steps,
    composed_epsilon,
    delta,
    epsilon,
    gdp,
    group_epsilon,
    plan_noise,
    solve_noise_multiplier,
    tradeoff,
)
from jaxdp.accounting import noise_charge as module
from jaxdp.accounting.guarantee import charge_of
from jaxdp.accounting.noise_charge import (
    ERRORS,
    FREE,
    MISSING,
    SAMPLING,
    NoiseCharge,
    noise_charge,
)
from jaxdp.dpsgd import binomial

DELTA = 1e-6
RUN = Mechanism(1.2, 100, 0.05, num_examples=10_000)
CHARGED = replace(RUN, noise_draws_per_step=10_000_000_000)  # 1e12 draws
DRAWS = (1, 650 * 20, 1e9, 1e11, 1e13)
EXACT = {mu: (lambda e, mu=mu: gdp.delta_from_mu(mu, e)) for mu in (0.2, 1.0, 3.0)}


def inverse(mu):
    return lambda delta: gdp.epsilon_from_mu(mu, delta)


# ---------------------------------------------------------------- the theorem, on made-up laws

# A law on -4 .. 4 and one that is close to it. The window is -2 .. 2. At ±3 q has more, at ±4 none.
P = np.array([0.001, 0.019, 0.1, 0.2, 0.36, 0.2, 0.1, 0.019, 0.001])
INNER, BEYOND, MISSING_AT = slice(2, 7), [1, 7], [0, 8]


def close_law(largest, more, seed, missing=0.0):
    """q: relative errors up to `largest` in the window; `more` at ±3 and `missing` less at ±4."""
    rng = np.random.default_rng(seed)
    q = P.copy()
    q[INNER] *= 1 + rng.uniform(-largest, largest, 5)
    q[BEYOND] += more / 2
    q[MISSING_AT] -= missing / 2
    q[4] += 1 - q.sum()
    return q


def errors(q):
    """(r, e, V, W), as the module's docstring defines them, and q̂, which is p beyond the window."""
    middle = P.copy()
    middle[INNER] = q[INNER]
    x = middle / P - 1
    beyond = float(np.abs(q - P)[[0, 1, 7, 8]].sum())
    missing = float(P[MISSING_AT].sum()) if np.any(q[MISSING_AT] < P[MISSING_AT]) else 0.0
    return math.sqrt(P @ x**2), float(np.abs(x).max()), beyond, missing, middle


def product(law, draws):
    """The probability of every series of draws."""
    out = np.ones(1)
    for _ in range(draws):
        out = np.outer(out, law).ravel()
    return out


def hockey_stick(one, other, epsilon):
    """The least δ with which `one` is within e^ε of `other`."""
    return float(np.maximum(one - math.exp(epsilon) * other, 0).sum())


@pytest.fixture
def coarse(monkeypatch):
    """A δ₁ that few draws from made-up laws can reach, and λ for their large errors."""
    monkeypatch.setattr(module, "_DELTA_1", 1e-3)
    monkeypatch.setattr(module, "_LAMBDAS", np.geomspace(1.0, 1e3, 500))


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("largest", [0.3, 0.05, 0.005])
@pytest.mark.parametrize("draws", [1, 5, 40, 400])
@pytest.mark.parametrize("more", [0.0, 1e-3])
def test_the_likelihood_ratio_leaves_its_bound_as_seldom_as_the_theorem_says(largest, draws, more):
    """The exact law of L = Σ ln(q̂/p) on a fine grid, rounded to the safe side, beside t and δ₁."""
    rms, most, beyond, missing, middle = errors(close_law(largest, more, 3))
    t = module._charge(draws, rms, most, beyond, missing).epsilon / 2
    step = t / 4000 / math.sqrt(draws)
    index = np.round(np.log(middle / P) / step).astype(int)  # off by half a step at most, a draw
    for law, sign in ((P, -1), (middle, 1)):
        one = np.zeros(int(np.abs(index).max()) * 2 + 1)
        np.add.at(one, index + len(one) // 2, law)
        of_all = np.fft.irfft(np.fft.rfft(one, len(one) * draws) ** draws, len(one) * draws)
        losses = (np.arange(len(one) * draws) - draws * (len(one) // 2)) * step * sign
        chance = of_all[losses >= t - draws * step / 2].sum()
        assert chance <= 1e-3 + 1e-9
        if more == 0 and draws == 400 and largest < 0.1:
            assert chance > 1e-6  # the bound is not far from the truth


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("draws", [1, 2, 4])
@pytest.mark.parametrize(
    ("largest", "more", "missing"), [(0.2, 0.0, 0.0), (0.2, 0.04, 0.0), (0.02, 0.01, 0.002)]
)
def test_any_function_of_data_and_draws_keeps_its_guarantee_with_the_charge(
    draws, largest, more, missing
):
    """Maps of all series of draws to outputs, for two data sets: δ at many ε, by enumeration."""
    rng = np.random.default_rng(draws)
    q = close_law(largest, more, draws, missing)
    charge = module._charge(draws, *errors(q)[:4])
    exact, close = product(P, draws), product(q, draws)
    sums = np.array([sum(n) for n in itertools.product(range(9), repeat=draws)])
    maps = [(sums, sums + 1), (sums, sums + draws), (sums % 3, sums % 5 % 3)]
    maps += [tuple(rng.integers(0, 12, (2, exact.size))) for _ in range(5)]
    for pair in maps:
        outputs = lambda law, pair=pair: [np.bincount(f, law, 9 * draws + 20) for f in pair]
        for epsilon_ in np.linspace(charge.epsilon, charge.epsilon + 3, 13):
            for turn in (slice(None), slice(None, None, -1)):
                bound = charge.delta_at(
                    epsilon_, lambda e, turn=turn: hockey_stick(*outputs(exact)[turn], e)
                )
                assert hockey_stick(*outputs(close)[turn], epsilon_) <= bound + 1e-12


@pytest.mark.parametrize(
    ("missing", "one", "other", "ratio"),
    # ±4 shows that a record was there, and is drawn too often; or that none was, and is never.
    [(-0.004, [0, 8], [], 1), (0.002, [2], [0, 8], 50)],
)
def test_both_tails_are_charged_as_they_count(monkeypatch, missing, one, other, ratio):
    monkeypatch.setattr(module, "_DELTA_1", 1e-4)
    monkeypatch.setattr(module, "_LAMBDAS", np.geomspace(1.0, 1e3, 500))
    q = close_law(0.0, 0.0, 0, missing)
    charge = module._charge(1, *errors(q)[:4])
    told = [np.isin(np.arange(9), numbers).astype(int) for numbers in (one, other)]
    delta_with = lambda law, e: hockey_stick(*(np.bincount(f, law, 2) for f in told), e)
    epsilon_ = math.log(ratio) + charge.epsilon
    bound = charge.delta_at(epsilon_, lambda e: delta_with(P, e))
    assert 0.8 * bound < delta_with(q, epsilon_) <= bound


# ---------------------------------------------------------------- values


def test_more_draws_cost_more_and_none_nothing():
    assert noise_charge(0) == noise_charge(0, 100) == FREE == NoiseCharge(0.0, 0.0, 0.0)
    charges = [noise_charge(m) for m in DRAWS]
    for fewer, more in itertools.pairwise(charges):
        assert 0 < fewer.epsilon < more.epsilon
        assert 0 < fewer.delta_once < more.delta_once
        assert 0 < fewer.delta_each < more.delta_each
    assert noise_charge(1e11).epsilon < 2e-4
    assert noise_charge(1e11, 10_000).added_delta(8.0) < 1e-9
    assert noise_charge(1e8, 1000).added_delta(40.0) < 1e-8
    assert noise_charge(650 * 20).epsilon < 4e-6


def test_sampling_is_charged_as_what_is_shared_by_both_data_sets():
    plain, sampled = noise_charge(1e8), noise_charge(1e8, 1000)
    assert SAMPLING == binomial.TOTAL_VARIATION
    assert sampled == replace(plain, delta_each=plain.delta_each + 1000 * SAMPLING)
    shuffled = replace(
        CHARGED, sampling="shuffled", adjacency="zero_out", sampling_probability=0.05
    )
    assert charge_of([CHARGED]).delta_each > charge_of([shuffled]).delta_each


def test_the_charge_is_that_of_the_worse_table():
    for m in DRAWS:
        apart = [module._charge(m, *errors, MISSING) for errors in ERRORS.values()]
        assert noise_charge(m).epsilon == max(c.epsilon for c in apart)
        assert noise_charge(m).delta_once == max(c.delta_once for c in apart)


def test_the_charge_is_about_the_loss_of_so_many_independent_errors():
    """t is v·√(2 ln 1/δ₁) + v²/2 for v = √M·r, but for the largest error's part in it."""
    for m in (1e12, 1e13, 1e15):
        v = max(r for r, *_ in ERRORS.values()) * math.sqrt(m)
        t = v * math.sqrt(2 * math.log(1e32)) + v**2 / 2
        assert t <= noise_charge(m).epsilon / 2 <= 1.1 * t


# ---------------------------------------------------------------- ε, δ and curves with a charge


@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize("mu", EXACT)
@pytest.mark.parametrize("target", [1e-3, 1e-5, 1e-7])
def test_epsilon_and_delta_are_each_others_inverse(draws, mu, target):
    charge = noise_charge(draws)
    found = charge.epsilon_at(target, inverse(mu))
    if found == math.inf:  # the charge alone is more
        assert charge.delta_at(45.0, EXACT[mu]) > target
        return
    assert charge.delta_at(found, EXACT[mu]) <= target * (1 + 1e-9)
    assert charge.delta_at(found * (1 - 1e-4), EXACT[mu]) > target
    assert found >= gdp.epsilon_from_mu(mu, target) + charge.epsilon


@pytest.mark.parametrize("draws", DRAWS)
def test_what_is_left_for_exact_noise_is_enough(draws):
    charge = noise_charge(draws)
    left_epsilon, left_delta = charge.exact_target(2.0, 1e-5)
    assert 0 < left_delta < 1e-5
    mu = gdp.mu_from_epsilon(left_epsilon, left_delta)
    exact = lambda e: gdp.delta_from_mu(mu, e)
    assert charge.delta_at(2.0, exact) == pytest.approx(1e-5, rel=1e-6)
    assert charge.epsilon_at(1e-5, inverse(mu)) == pytest.approx(2.0, rel=1e-6)


def test_below_its_epsilon_and_above_its_delta_nothing_is_promised():
    charge = noise_charge(1e13)
    assert charge.delta_at(charge.epsilon / 2, lambda e: 0.0) == 1.0
    assert charge.epsilon_at(charge.delta_once, lambda d: 0.0) == math.inf
    assert charge.epsilon_at(1e-6, lambda d: math.inf) == math.inf
    assert charge.epsilon_at(1e-6, lambda d: 0.0) == charge.epsilon
    assert charge.delta_at(800.0, lambda e: 0.0) == 1.0


@pytest.mark.parametrize("draws", [1, 1e11, 1e15])
@pytest.mark.parametrize("mu", EXACT)
def test_the_tradeoff_curve_is_below_the_exact_one_and_says_what_the_pairs_say(draws, mu):
    charge = noise_charge(draws)
    exact = lambda alphas: gdp.gaussian_tradeoff(mu, alphas)
    alphas = np.concatenate([[0], np.geomspace(1e-7, 1, 200)])
    betas = charge.tradeoff_of(alphas, exact)
    assert np.all((betas >= 0) & (betas <= exact(alphas)))
    assert np.all(np.diff(betas) <= 1e-15)
    if draws < 1e12:
        np.testing.assert_allclose(betas[1:], exact(alphas[1:]), atol=3e-4)
    # Every pair is a line below the curve. The curve of an (ε, δ) pair: 1 - δ - e^ε·α.
    for e in (0.1, 0.5, 1.0, 2.0, 4.0):
        line = 1 - charge.delta_at(e, EXACT[mu]) - math.exp(e) * alphas
        assert np.all(line <= betas + 1e-12)
    assert np.array_equal(FREE.tradeoff_of(alphas, exact), exact(alphas))


@pytest.mark.usefixtures("coarse")
def test_the_theorems_curve_holds_for_every_test_of_a_made_up_pair():
    q = close_law(0.1, 0.005, 1, 0.001)
    charge = module._charge(2, *errors(q)[:4])

    def best_test(law):
        """Type I and II errors of the likelihood-ratio tests between the sum and the sum + 1."""
        sums = np.array([a + b for a in range(9) for b in range(9)])
        zero, one = (np.bincount(sums + s, product(law, 2), 24) for s in (0, 1))
        order = np.argsort(-one / np.maximum(zero, 1e-300), kind="stable")
        return np.r_[0, np.cumsum(zero[order])], 1 - np.r_[0, np.cumsum(one[order])]

    alphas, betas = best_test(q)
    alphas = np.minimum(alphas, 1.0)
    exact_alphas, exact_betas = best_test(P)
    exact = lambda levels: np.interp(levels, exact_alphas, exact_betas)
    assert np.all(charge.tradeoff_of(alphas, exact) <= betas + 1e-12)


# ---------------------------------------------------------------- in the accounting


def test_exact_noise_is_the_default_and_has_no_charge():
    assert charge_of([RUN]) == FREE
    assert epsilon(RUN, DELTA) < epsilon(CHARGED, DELTA)
    with pytest.raises(ValueError, match="noise_draws_per_step is -1"):
        replace(RUN, noise_draws_per_step=-1)
    with pytest.raises(ValueError, match="noise_draws_per_step is inf"):
        replace(RUN, noise_draws_per_step=math.inf)


def test_every_answer_about_a_mechanism_has_the_charge():
    charge = noise_charge(1e12, 100)
    assert charge_of([CHARGED]) == charge
    for accountant in ("pld", "rdp"):
        exact = lambda d, accountant=accountant: epsilon(RUN, d, accountant)
        assert epsilon(CHARGED, DELTA, accountant) == charge.epsilon_at(DELTA, exact)
        assert composed_epsilon([CHARGED], DELTA, accountant) == epsilon(CHARGED, DELTA, accountant)
    assert delta(CHARGED, 2.0) == charge.delta_at(2.0, lambda e: delta(RUN, e))
    for size in (2, 3):
        exact = lambda d, size=size: group_epsilon(RUN, d, size)
        assert group_epsilon(CHARGED, 1e-5, size) == charge.epsilon_at(1e-5, exact)
    alphas = [0.0, 0.01, 0.1, 0.5, 0.9]
    curve = charge.tradeoff_of(np.array(alphas), lambda levels: tradeoff(RUN, levels))
    assert np.array_equal(tradeoff(CHARGED, alphas), curve)
    assert np.all(tradeoff(CHARGED, alphas) < tradeoff(RUN, alphas) + 1e-15)


def test_nothing_released_draws_no_noise():
    for idle in (replace(CHARGED, steps=0), replace(CHARGED, sampling_probability=0.0)):
        assert charge_of([idle]) == FREE
        assert epsilon(idle, DELTA) == 0


def test_segments_are_charged_for_all_their_draws_together():
    parts = [replace(CHARGED, steps=n) for n in (30, 0, 70)]
    assert charge_of(parts) == noise_charge(1e12, 100)
    assert composed_epsilon(parts, DELTA) == epsilon(CHARGED, DELTA)
    # Other numbers of parameters, or another noise: the same mechanism but for the charge.
    more = replace(CHARGED, steps=50, noise_draws_per_step=3e10)
    less = replace(CHARGED, steps=50)
    expected = noise_charge(1.5e12 + 0.5e12, 100).epsilon_at(DELTA, lambda d: epsilon(RUN, d))
    assert composed_epsilon([more, less], DELTA) == expected
    quieter = replace(more, sampling_probability=0.02)
    exact = lambda d: composed_epsilon(
        [replace(m, noise_draws_per_step=0) for m in (quieter, less)], d
    )
    assert composed_epsilon([quieter, less], DELTA) == noise_charge(2e12, 100).epsilon_at(
        DELTA, exact
    )


@pytest.mark.slow
def test_steps_that_fit_a_budget_pay_for_their_noise():
    target = epsilon(RUN, DELTA)
    half, more = replace(CHARGED, steps=50), replace(CHARGED, steps=100)
    fits = affordable_steps([half], more, target, DELTA)
    assert fits < affordable_steps([replace(RUN, steps=50)], RUN, target, DELTA) == 50
    assert composed_epsilon([half, replace(more, steps=fits)], DELTA) <= target


@pytest.mark.slow
@pytest.mark.parametrize("draws", [650, 1e7, 1e10])
def test_solved_noise_meets_its_target_with_the_charge(draws):
    numbers = dict(target_epsilon=2.0, delta=DELTA, steps=100, sampling_probability=0.05)
    exact = solve_noise_multiplier(**numbers)
    z = solve_noise_multiplier(**numbers, noise_draws_per_step=draws)
    found = epsilon(Mechanism(z, 100, 0.05, noise_draws_per_step=draws), DELTA)
    assert 2.0 * (1 - 3e-4) <= found <= 2.0
    assert exact * (1 - 1e-4) <= z <= exact * (1 + 2e-3)
    if draws > 1e9:
        assert z > exact


@pytest.mark.slow
@pytest.mark.parametrize(("target", "least"), [(20.0, 19.9), (1000.0, 35.0)])
def test_a_large_target_is_met_by_the_largest_epsilon_that_the_charge_leaves(target, least):
    numbers = dict(steps=50, sampling_probability=0.1, noise_draws_per_step=1e6)
    z = solve_noise_multiplier(target_epsilon=target, delta=DELTA, **numbers)
    assert least < epsilon(Mechanism(z, **numbers), DELTA) <= target
    # With much less noise still, nothing is promised: the noise ends at 13 deviations.
    assert epsilon(Mechanism(0.02, **numbers), DELTA) == math.inf


@pytest.mark.parametrize(
    ("target", "small_delta", "short"), [(0.03, 1e-3, "epsilon"), (2.0, 1e-6, "delta")]
)
def test_a_target_below_the_charge_is_refused_with_the_reason(target, small_delta, short):
    numbers = dict(steps=100, sampling_probability=1.0, noise_draws_per_step=1e14)
    with pytest.raises(ValueError, match=f"by itself: {short} is too small"):
        solve_noise_multiplier(target_epsilon=target, delta=small_delta, **numbers)


def test_the_noise_table_charges_for_its_parameters():
    numbers = dict(num_examples=60_000, batch_sizes=[600], epsilon=1.0, steps=100)
    small, large = (plan_noise(num_parameters=d, **numbers) for d in (10, 10**10))
    (row,) = large.rows
    assert large.mechanism(row).noise_draws_per_step == 10**10
    assert row.epsilon_pld == epsilon(large.mechanism(row), large.delta) <= 1.0
    assert row.noise_multiplier > small.rows[0].noise_multiplier
