"""The bounds from one run: against other derivations, exact mechanisms, and simulated runs."""

import itertools
import math
import re

import numpy as np
import pytest
from scipy import optimize, special, stats

from jaxdp.accounting.gdp import delta_from_mu
from jaxdp.audit import default_guesses, epsilon_bound, mu_bound
from jaxdp.audit.one_run import _rejects, p_value


def normal_scores(shift, half=10_000):
    """Quantiles of a normal distribution, shifted for canaries that took part."""
    z = special.ndtri((np.arange(half) + 0.5) / half)
    return np.concatenate([z + shift, z]), np.arange(2 * half) < half


REFERENCE = [(1, 2.0, 1.821886), (2, 3.0, 4.332143), (4, 4.0, 7.366196)]


@pytest.mark.parametrize(("shift", "threshold", "epsilon"), REFERENCE)
def test_one_threshold_gives_the_reference(shift, threshold, epsilon):
    scores, included = normal_scores(shift)
    number = int(np.sum(scores >= threshold))
    found = epsilon_bound(scores, included, delta=1e-6, guesses=[number])
    assert found.epsilon == pytest.approx(epsilon, abs=1e-6)
    assert found.guesses[0].right == np.sum(scores[included] >= threshold)


@pytest.mark.parametrize(("shift", "epsilon"), [(1, 2.048), (2, 3.996), (4, 6.257)])
def test_twenty_numbers_of_guesses_give_the_reference(shift, epsilon):
    found = epsilon_bound(*normal_scores(shift), delta=1e-6)
    assert len(found.guesses) == 20
    assert found.epsilon == pytest.approx(epsilon, abs=5e-4)
    sharp = epsilon_bound(*normal_scores(shift), delta=1e-6, theorem="sharp")
    assert found.epsilon < sharp.epsilon < found.epsilon + 0.5


def test_every_number_of_guesses_pays_its_part():
    scores, included = normal_scores(1, half=500)
    numbers = [20, 50, 100, 400]
    found = epsilon_bound(scores, included, delta=1e-6, guesses=numbers)
    alone = [
        epsilon_bound(scores, included, delta=1e-6, guesses=[n], significance=0.05 / 4).epsilon
        for n in numbers
    ]
    assert [g.bound for g in found.guesses] == alone
    assert found.epsilon == max(alone) > 0
    found = mu_bound(scores, included, delta=1e-6, guesses=numbers)
    alone = [
        mu_bound(scores, included, delta=1e-6, guesses=[n], significance=0.05 / 4).mu
        for n in numbers
    ]
    assert [g.bound for g in found.guesses] == alone


@pytest.mark.parametrize(
    ("r", "v", "epsilon", "excess"),
    [(10, 9, 0.5, 0.05), (30, 25, 1.0, 0.01), (30, 28, 0.2, 0.2), (5, 5, 2.0, 0.03)],
)
def test_the_sharp_bound_is_the_worst_case_of_its_linear_program(r, v, epsilon, excess):
    """No weights of the numbers of right guesses have more, with that much excess."""
    of_level = np.eye(r + 1)
    flow = np.array(
        [
            k * of_level[k] - math.exp(epsilon) * (r - k + 1) * of_level[k - 1]
            for k in range(1, r + 1)
        ]
    )
    worst = optimize.linprog(
        np.concatenate([-(np.arange(r + 1) >= v).astype(float), np.zeros(r)]),
        np.vstack([np.hstack([flow, -np.eye(r)]), np.concatenate([np.zeros(r + 1), np.ones(r)])]),
        np.append(np.zeros(r), excess),
        np.append(np.ones(r + 1), np.zeros(r))[None],
        [1.0],
    )
    options = dict(epsilon=epsilon, theorem="sharp")
    assert p_value(v, r, r, delta=excess / r, sides="both", **options) == pytest.approx(-worst.fun)
    assert p_value(v, r, 2 * r, delta=excess / r, sides="in", **options) == pytest.approx(
        -worst.fun
    )


def test_the_published_bound_is_never_below_the_sharp_one():
    for r, epsilon, delta in itertools.product((1, 7, 100), (0.0, 0.5, 3.0), (1e-8, 1e-3)):
        for v in range(1, r + 1):
            sharp = p_value(v, r, 2 * r, epsilon, delta, theorem="sharp")
            if sharp <= 0.5:
                assert p_value(v, r, 2 * r, epsilon, delta) >= sharp


@pytest.mark.parametrize("theorem", ["sharp", "published"])
@pytest.mark.parametrize("epsilon", [0.3, 2.0])
@pytest.mark.parametrize("delta", [1e-6, 1e-2])
def test_no_mechanism_guesses_better(theorem, epsilon, delta):
    """Exact laws of two mechanisms that are (ε, δ)-private: the bound is at least each of them."""
    r, p = 40, special.expit(epsilon)
    exact = {
        # Every coin is told with probability δ, else a coin that is right with probability p.
        "each": lambda v: stats.binom.sf(v - 1, r, delta + (1 - delta) * p),
        # All coins are told together with probability δ.
        "all": lambda v: delta + (1 - delta) * stats.binom.sf(v - 1, r, p),
    }
    for v in range(1, r + 1):
        bound = p_value(v, r, r, epsilon, delta, sides="both", theorem=theorem)
        if bound <= 0.5:
            assert bound >= exact["each"](v) * (1 - 1e-9)
            assert bound >= exact["all"](v) * (1 - 1e-9)


def tail_of_sum(v, m, mu):
    """P(W ≥ v) if the sum of m coins gets noise, and all are guessed to be as most seem to be."""
    k = np.arange(m + 1)
    weight, high = stats.binom.pmf(k, m, 0.5), special.ndtr(mu * (k - m / 2))
    return float(np.sum(weight * (high * (k >= v) + (1 - high) * (m - k >= v))))


@pytest.mark.parametrize("mu", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("m", [10, 41])
def test_gaussian_mechanisms_are_not_rejected(mu, m):
    """One noise for every coin, and one for the sum of all, which makes guesses depend."""
    for v in range(m // 2 + 1, m + 1):
        for tail in (stats.binom.sf(v - 1, m, special.ndtr(mu / 2)), tail_of_sum(v, m, mu)):
            assert not _rejects(mu, v, m, m, tail * (1 - 1e-6))
            for epsilon in (0.1, 1.0, 4.0):
                delta = delta_from_mu(mu, epsilon)
                for theorem in ("sharp", "published"):
                    bound = p_value(v, m, m, epsilon, delta, sides="both", theorem=theorem)
                    assert bound > 0.5 or bound >= tail * (1 - 1e-9)


def test_smaller_mu_is_rejected():
    """So that the test above can fail."""
    tail = stats.binom.sf(30, 41, special.ndtr(1.5))
    assert _rejects(0.3, 31, 41, 41, tail / 10)
    assert p_value(31, 41, 41, 0.3, 1e-6, sides="both") < tail / 10


@pytest.mark.parametrize(("sides", "share"), [("in", 0.5), ("both", 1.0)])
def test_what_can_be_guessed_right_is_counted(sides, share):
    """Of guesses that are all "in", only half of the canaries can be right ones."""
    scores, included = normal_scores(3, half=200)
    found = mu_bound(scores, included, delta=1e-3, guesses=[100], sides=sides)
    right = found.guesses[0].right
    assert _rejects(found.mu, right, 100, share * 400, 0.05)
    assert not _rejects(found.mu * 1.001, right, 100, share * 400, 0.05)


def randomized_response(rng, epsilon, m):
    included = rng.random(m) < 0.5
    told = included ^ (rng.random(m) > special.expit(epsilon))
    return told.astype(float), included


def test_the_bound_is_above_the_truth_as_rarely_as_promised():
    """Of 2,000 runs at 5 %, about 100 may be; more than 150 are in one of 1e6 trials.

    Randomised response is the worst mechanism, so that there are nearly as many: some 60.
    """
    rng, above = np.random.default_rng(0), 0
    for _ in range(2000):
        scores, included = randomized_response(rng, 1.0, 200)
        found = epsilon_bound(scores, included, delta=1e-12, guesses=[50], theorem="sharp")
        above += found.epsilon > 1.0
    assert 30 <= above <= 150


@pytest.mark.slow
@pytest.mark.parametrize("sides", ["in", "both"])
def test_simulated_gaussian_mechanisms_stay_below_their_mu(sides):
    """300 runs at 20 %: 60 may be above; more than 95 are in one of 1e6 trials."""
    rng, above = np.random.default_rng(1), 0
    for _ in range(300):
        included = rng.random(200) < 0.5
        scores = rng.normal(size=200) + 1.0 * included
        options = dict(delta=1e-3, significance=0.2, sides=sides)
        found = mu_bound(scores, included, **options)
        sharp = epsilon_bound(scores, included, theorem="sharp", **options)
        above += found.mu > 1.0 or delta_from_mu(1.0, sharp.epsilon) < 1e-3
    assert above <= 95


def test_equal_scores_are_ordered_by_their_number():
    included = np.array([True, False, False, True, True, False])
    found = epsilon_bound(np.zeros(6), included, delta=1e-3, guesses=[1, 2, 4])
    assert [g.right for g in found.guesses] == [1, 1, 2]
    found = epsilon_bound(np.zeros(6), included, delta=1e-3, guesses=[4], sides="both")
    assert found.guesses[0].right == 1 + 1  # of the first two in, and of the last two out


def test_the_default_numbers_of_guesses():
    numbers = default_guesses(20_000)
    assert len(numbers) == 20
    assert (numbers[0], numbers[-1]) == (10, 10_000)
    assert numbers[1] == math.floor(10 * 1000 ** (1 / 19))
    assert default_guesses(22) == (10, 11)
    assert default_guesses(2) == (1,)


def test_a_perfect_attack_gives_what_its_guesses_can_prove():
    included = np.arange(100) < 50
    found = epsilon_bound(included.astype(int), included, delta=1e-9, guesses=[50])
    assert found.epsilon == pytest.approx(special.logit(0.05 ** (1 / 50)), rel=1e-5)
    assert epsilon_bound(-1.0 * included, included, delta=1e-9).epsilon == 0
    assert mu_bound(-1.0 * included, included, delta=1e-9).mu == 0
    # Far in the tail, where probabilities are below what floats can hold.
    included = np.arange(20_000) < 10_000
    found = epsilon_bound(1.0 * included, included, delta=1e-9, theorem="sharp")
    assert found.epsilon > 7


@pytest.mark.parametrize("bound", [epsilon_bound, mu_bound])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(scores=[0.0, math.nan, 1.0, 2.0]), "1 scores are NaN"),
        (dict(scores=[[0.0, 1.0]]), "scores have shape (1, 2)"),
        (dict(scores=["a", "b", "c", "d"]), "give a real number"),
        (dict(included=[True, False]), "included has shape (2,)"),
        (dict(included=[1, 0, 1, 0]), "give True or False"),
        (dict(delta=0.0), "delta is 0.0"),
        (dict(significance=0.6), "significance is 0.6"),
        (dict(guesses=[5]), "guesses has 5"),
        (dict(guesses=[1.5]), "guesses has 1.5"),
        (dict(guesses=3), "guesses is 3: give a list of numbers, as [3]"),
        (dict(guesses=[]), "guesses is empty"),
        (dict(sides="out"), "sides is 'out'"),
    ],
)
def test_wrong_arguments(bound, change, message):
    given = dict(scores=[3.0, 2.0, 1.0, 0.0], included=[True, False, True, False], delta=0.1)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        bound(**{**given, **change})
    assert "\n" not in str(error.value)


def test_a_theorem_that_does_not_exist():
    with pytest.raises(ValueError, match="theorem is 'other'"):
        epsilon_bound([1.0, 0.0], [True, False], delta=0.1, theorem="other")
