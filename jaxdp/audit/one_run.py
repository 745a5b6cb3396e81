"""A lower bound on ε from one run with canaries: the coins that its scores give away.

m canaries take part or not by independent fair coins. A score is made of every canary from what
the run released, without looking at the coins. Then r guesses are made: "took part" for the
highest scores (and "did not" for the lowest). The more of them are right, the less private the run
can be (Steinke, Nasr and Jagielski 2023, arXiv 2305.08846).

**Theorem.** Let S be the coins, Y the release, and let flipping one coin be indistinguishable up to
(ε, δ) for all values of the others. Let r guesses be a function of Y, W the number of right ones, B
binomial of r and p = e^ε/(1 + e^ε), b_k = P(B = k), f(k) = P(B ≥ k), and h = f(v). Then, for v ≥ 1,

    P(W ≥ v) ≤ h + m'·δ·h(1 - h)/(v·b_v),                                          ("sharp")

with m' = m; or m' = m/2 if all guesses are "took part". If h ≤ p, this is at most

    h + 2·m·δ·max_i (f(v - i) - f(v))/i,                                           ("published")

the bound of theorem 5.2 of the paper.

*Proof.* P(y, s) is the joint law. For a coin i that is guessed at y, let e_i(y, s) be the excess
(P(y, s) - e^ε·P(y, s with coin i flipped))₊ if the guess is right at s, else 0. For one s, privacy
bounds its sum over y by δ·P(s). So the sum X of all e_i is at most m·δ; and m·δ/2 if only coins
that are "in" can be guessed right.

Fix y, and let N_k be the weight of all s with k right guesses. Each such s has k neighbours with
one right guess less; and each of those is a neighbour of r - k + 1 such s. (·)₊ is convex, so that
sums inside of it are at most sums of it. So

    X(y) ≥ Σ_k (k·N_k - e^ε·(r - k + 1)·N_(k-1))₊.

(Coins that are not guessed are summed over first, for the same reason.) Let

    u_k = h·(1 - f(k))/(k·b_k) for k ≤ v,    u_k = (1 - h)·f(k)/(k·b_k) for k ≥ v.

It solves k·u_k - e^ε·(r - k)·u_(k+1) = 1{k ≥ v} - h, Stein's equation of the binomial. It is at
least 0, and largest at v, because b is log-concave. Multiply the equation by N_k, and sum:

    Σ_(k ≥ v) N_k - h·Σ_k N_k = Σ_k u_k·(k·N_k - e^ε·(r - k + 1)·N_(k-1)) ≤ u_v·X(y).

The first bound is the sum over y.

For the second, let A be the maximum, and T = (1 - p)·v·b_v, which is E[(B - rp)·1{B ≥ v}] and so at
least (v - rp)·h. From f(v - i) - h ≤ A·i for all i it follows that M = E[(v - B)₊], which is the
sum of 1 - f(v - i) over i ≥ 0, is at least that of (1 - h - A·i)₊, and so at least (1 - h)²/(2A).
But M = (v - rp)(1 - h) + T ≤ T/h. So 2A ≥ h(1 - h)²/T, which is u_v·(1 - h)/(1 - p) ≥ u_v. ∎

A run that is (ε, δ)-private is so for every larger ε, too. So let the bound be the largest ε of
which the theorem says that so many right guesses have at most the probability α. It is above the
true ε only if W is at least the smallest v that rejects some larger ε; and that has at most the
probability α. If several numbers of guesses are fixed before the coins are looked at, each gets
its part of α.

**For Gaussian DP** (after Mahloujifar, Melis and Chaudhuri 2024, arXiv 2410.22235) the question is
whether flipping a coin is μ-GDP. Let g(a) = Φ(Φ⁻¹(a) - μ), which is convex and rises: an event that
has probability a for one value of a coin has at least g(a) for the other.

**Theorem.** Let t_k = P(W ≥ k), and m' as above. For k = 1 to r,

    (r - k + 1)·t_(k-1) ≥ Σ_(j ≥ k) t_j + m'·g((k·t_k + Σ_(j > k) t_j)/m').

*Proof.* For coin i, with the others fixed, take the event that i is guessed as "in", and that at
least k - 1 of the other guesses are right. If the coin is "in", this is the event that guess i is
right and W ≥ k; if not, that guess i is wrong and W ≥ k - 1. So the second has at least g of the
probability of the first. The same holds for "out". Each value of a coin has probability 1/2. So, by
Jensen's inequality over the other coins, i, and "in" and "out" where both are guessed,

    E[(r - W)·1{W ≥ k - 1}] ≥ m'·g(E[W·1{W ≥ k}]/m').

In it, E[W·1{W ≥ k}] = k·t_k + Σ_(j > k) t_j, and the left side is
(r - k + 1)·t_(k-1) - Σ_(j ≥ k) t_j. ∎

The right side rises in every t_j. So from t_v = α down, with zeros above v, the recursion gives
lower bounds on all t_k. If one of them is above 1, then P(W ≥ v) < α, and μ is rejected. Every step
is rounded down by more than its error in floating point. So what is found is at most the exact
recursion, and no μ is rejected by rounding.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from ..accounting.gdp import check_delta_range, epsilon_from_mu

Sides = Literal["in", "both"]
Theorem = Literal["sharp", "published"]

NUMBERS = 20  # of guesses that are tried, if none are given
FEWEST = 10  # guesses among them
MARGIN = 1e-9  # by which probabilities are raised, far above their rounding
STEP_MARGIN = 1e-11  # the same for one step of the recursion
TINY = 1e-280  # below, a quotient of probabilities is not taken from themselves


class Guesses(NamedTuple):
    """What one number of guesses shows.

    Attributes:
      number: of guesses, r.
      right: how many of them are right.
      bound: the lower bound by these alone, on ε or μ, at their part of the significance.
    """

    number: int
    right: int
    bound: float


@dataclass(frozen=True)
class EpsilonBound:
    """A lower bound on ε at δ.

    Attributes:
      epsilon: the run is not (ε', δ)-private for any ε' below it; 0: nothing is shown.
      delta: δ.
      significance: the probability, at most, that a run with a smaller ε gives this bound.
      guesses: for every number of guesses; the largest bound is `epsilon`.
    """

    epsilon: float
    delta: float
    significance: float
    guesses: tuple[Guesses, ...]


@dataclass(frozen=True)
class GaussianBound:
    """A lower bound on the μ of a run that is taken to be Gaussian DP.

    Attributes:
      mu: the run is not μ'-GDP for any μ' below it.
      epsilon: ε of `mu`-GDP at δ. It says nothing of runs that are not nearly Gaussian DP.
      delta: δ.
      significance: as in `EpsilonBound`.
      guesses: as in `EpsilonBound`, with bounds on μ.
    """

    mu: float
    epsilon: float
    delta: float
    significance: float
    guesses: tuple[Guesses, ...]


def epsilon_bound(
    scores: ArrayLike,
    included: ArrayLike,
    *,
    delta: float,
    significance: float = 0.05,
    guesses: Sequence[int] | None = None,
    sides: Sides = "in",
    theorem: Theorem = "published",
) -> EpsilonBound:
    """Returns a lower bound on ε from the scores of canaries in one run.

    It holds with confidence 1 - `significance` if the coins were fair, independent and used for
    nothing but the choice of canaries, and if scores and numbers of guesses were fixed without
    looking at them.

    Args:
      scores: of the canaries, `[m]`; higher means rather included. Among equal ones, the first is
        taken as higher.
      included: which of them took part, `[m] bool`.
      delta: δ at which ε is bounded; between 0 and 1.
      significance: how often a bound may be wrong, above 0 and at most 0.5.
      guesses: the numbers of guesses, each 1 to m. None: 20 from 10 to m/2, in equal ratios. Each
        number pays its part of the significance.
      sides: "in": the highest scores are guessed to be in; "both": half of the guesses are that the
        lowest are out.
      theorem: the bound of the paper, or a sharper one; see the module's docstring.

    Raises:
      ValueError: for scores that are NaN, arguments out of range, or fewer than two canaries.

    References:
      Steinke, Nasr & Jagielski 2023, arXiv 2305.08846, theorem 5.2.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> included = rng.random(1000) < 0.5
      >>> scores = rng.normal(size=1000) + 4.0 * included
      >>> round(epsilon_bound(scores, included, delta=1e-5).epsilon, 1)
      4.0
    """
    checked = _check(scores, included, delta, significance, guesses, sides)
    if theorem not in ("sharp", "published"):
        raise ValueError(f"theorem is {theorem!r}: give 'sharp' or 'published'")
    canaries, level = checked.canaries, significance / len(checked.counts)

    def bound(number: int, right: int) -> float:
        value = lambda epsilon: p_value(
            right, number, canaries, epsilon, delta, sides=sides, theorem=theorem
        )
        return _largest(lambda epsilon: value(epsilon) <= level)

    found = tuple(Guesses(r, v, bound(r, v)) for r, v in checked.counts)
    return EpsilonBound(max(g.bound for g in found), delta, significance, found)


def mu_bound(
    scores: ArrayLike,
    included: ArrayLike,
    *,
    delta: float,
    significance: float = 0.05,
    guesses: Sequence[int] | None = None,
    sides: Sides = "in",
) -> GaussianBound:
    """Returns a lower bound on μ, for a run that is taken to be Gaussian DP.

    It rejects that the run is μ-GDP. DP-SGD with sampling is not exactly so: for it, this compares
    with a Gaussian mechanism, and is no proof against the claimed ε at δ.

    Args:
      scores, included, significance, guesses, sides: as in `epsilon_bound`.
      delta: δ at which ε of μ is told.

    Raises:
      ValueError: as in `epsilon_bound`.

    References:
      Mahloujifar, Melis & Chaudhuri 2024, arXiv 2410.22235.
    """
    checked = _check(scores, included, delta, significance, guesses, sides)
    level = significance / len(checked.counts)
    halves = checked.canaries / 2 if sides == "in" else float(checked.canaries)
    found: list[Guesses] = []
    for r, v in checked.counts:
        found.append(Guesses(r, v, _largest(lambda mu: _rejects(mu, v, r, halves, level))))
    mu = max(g.bound for g in found)
    return GaussianBound(mu, epsilon_from_mu(mu, delta), delta, significance, tuple(found))


def p_value(
    right: int,
    guesses: int,
    canaries: int,
    epsilon: float,
    delta: float,
    *,
    sides: Sides = "in",
    theorem: Theorem = "published",
) -> float:
    """Returns a bound on the probability of so many right guesses under (ε, δ)-privacy.

    It is at most 1. The published one holds where it is at most 1/2.

    Args:
      right: v, the number of right guesses.
      guesses: r.
      canaries: m.
      epsilon: ε, at least 0.
      delta: δ.
      sides, theorem: as in `epsilon_bound`.
    """
    v, r = right, guesses
    if v == 0:
        return 1.0
    wrong = special.expit(-epsilon)  # 1 - p: p itself would be rounded to 1
    at_least = lambda k: special.betaincc(r - k + 1, k, wrong)  # f(k), for k from 1 to r
    h = float(at_least(v))  # not 1 minus it: that would round small ones to 0
    if theorem == "published":
        steepest, start = 0.0, 1
        while start <= v and steepest * start < 1:  # from `start` on it is at most 1/start
            i = np.arange(start, min(v, 4 * start) + 1)
            tails = np.where(i < v, at_least(np.maximum(v - i, 1)), 1.0)
            steepest, start = max(steepest, float(np.max((tails - h) / i))), int(i[-1]) + 1
        extra = 2 * canaries * delta * steepest
    else:
        size = canaries / 2 if sides == "in" else canaries
        log_right = -math.log1p(math.exp(-epsilon))
        log_b = v * log_right + (r - v) * (log_right - epsilon)
        v_b = math.exp(log_b - float(special.betaln(v, r - v + 1)))  # v·P(B = v)
        if v_b > TINY:
            ratio = h / v_b
        else:  # by a geometric series
            next_by_this = (r - v) / (v + 1) * math.exp(epsilon)
            ratio = 1 / (v * (1 - next_by_this)) if next_by_this < 1 else math.inf
        extra = size * delta * ratio * (1 - h)
    return min(1.0, (h + extra) * (1 + MARGIN))


def default_guesses(canaries: int) -> tuple[int, ...]:
    """The numbers of guesses that are tried: 20 from 10 to m/2 in equal ratios, rounded down."""
    most = max(1, canaries // 2)
    spread = np.geomspace(min(FEWEST, most), most, NUMBERS)
    return tuple(int(r) for r in np.unique(np.floor(spread + 1e-9)))


class _Checked(NamedTuple):
    canaries: int
    counts: tuple[tuple[int, int], ...]  # numbers of guesses, and how many of them are right


def _check(
    scores: ArrayLike,
    included: ArrayLike,
    delta: float,
    significance: float,
    guesses: Sequence[int] | None,
    sides: Sides,
) -> _Checked:
    values, coins = np.asarray(scores), np.asarray(included)
    if values.ndim != 1 or values.dtype.kind not in "iuf" or len(values) < 2:
        raise ValueError(
            f"scores have shape {values.shape} and type {values.dtype}: give a real number for "
            "each of two or more canaries, [m]"
        )
    if coins.shape != values.shape or coins.dtype != bool:
        raise ValueError(
            f"included has shape {coins.shape} and type {coins.dtype}: give True or False for each "
            f"of {len(values)} canaries"
        )
    if missing := int(np.sum(np.isnan(values))):
        raise ValueError(
            f"{missing} scores are NaN: score these canaries in a way that does not depend on the "
            "coins, as by a fixed low number"
        )
    check_delta_range(delta)
    if not 0 < significance <= 0.5:
        raise ValueError(f"significance is {significance}: give a number above 0, at most 0.5")
    if sides not in ("in", "both"):
        raise ValueError(f"sides is {sides!r}: give 'in' or 'both'")
    if not (guesses is None or isinstance(guesses, (Sequence, np.ndarray))):
        raise ValueError(f"guesses is {guesses!r}: give a list of numbers, as [{guesses!r}]")
    numbers = default_guesses(len(values)) if guesses is None else tuple(guesses)
    for number in numbers:
        if not (isinstance(number, (int, np.integer)) and 1 <= number <= len(values)):
            raise ValueError(
                f"guesses has {number!r}: give whole numbers from 1 to {len(values)}, the number "
                "of canaries"
            )
    if not numbers:
        raise ValueError("guesses is empty: give at least one number")
    order = np.argsort(-values.astype(np.float64), kind="stable")
    high = np.concatenate([[0], np.cumsum(coins[order])])
    low = np.concatenate([[0], np.cumsum(~coins[order][::-1])])
    counts = []
    for number in sorted({int(number) for number in numbers}):
        out = number // 2 if sides == "both" else 0
        counts.append((number, int(high[number - out] + low[out])))
    return _Checked(len(values), tuple(counts))


def _largest(rejected: Callable[[float], bool]) -> float:
    """The end of the numbers from 0 on that are rejected, not above it by rounding; 0 for none."""
    if not rejected(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while rejected(high):
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low


def _rejects(mu: float, right: int, guesses: int, halves: float, level: float) -> bool:
    """Whether P(W ≥ right) is surely below `level` for μ-GDP, by the recursion."""
    down = 1 - STEP_MARGIN
    t, above = level, 0.0  # t_k, and the sum of t_j for j > k
    for k in range(right, 0, -1):
        share = (k * t + above) * down / halves
        if share >= 1:
            return True
        other = float(special.ndtr(special.ndtri(share) - mu)) * down
        above = (above + t) * down
        t = max(t, (above + halves * other) * down / (guesses - k + 1))
        if t > 1:
            return True
    return False
