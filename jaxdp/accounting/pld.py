"""The privacy loss distribution (PLD) of Poisson-sampled Gaussian steps.

dp-accounting composes and converts distributions. This module makes the distribution of one step,
which dp-accounting does in a Python loop (seconds for large losses) and on a grid with one fixed
interval. Ours is the same "connect the dots" rounding (Doroshenko et al., arXiv 2207.04380),
vectorised, and the interval depends on the size of the losses: 1e-4, or finer. Every rounding is
pessimistic.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from dp_accounting.pld import pld_pmf, privacy_loss_distribution
from numpy.typing import NDArray
from scipy import special

# The dominating pair (P, Q) of one step, for noise standard deviation s and clipping norm 1. Here
# M = sum_k w_k N(k, s²), and w_k is the probability that k of the differing records are in the
# batch: (1-q, q) for one record.
#   remove   P = M                        Q = N(0, s²)
#   add      P = N(0, s²)                 Q = M
#   replace  P = w_0 N(0) + w_1 N(1)      Q = w_0 N(0) + w_1 N(-1)
Direction = Literal["remove", "add", "replace"]

Weights = tuple[float, ...]

Floats = NDArray[np.float64]

COARSEST_INTERVAL = 1e-4

_FINE_POINTS = 2**18  # the interval is made finer only while every grid stays smaller than this

_MOST_STEP_POINTS = 2**20  # a larger grid would take too long

_MOST_COMPOSED_POINTS = 2**21

_TAIL_Z = float(-special.ndtri_exp(-50.0))  # one step's noise is cut off where its tail is e^-50


def composed_pld(
    steps: Sequence[tuple[float, int]], weights: Weights, replace: bool = False
) -> privacy_loss_distribution.PrivacyLossDistribution | None:
    """The PLD of a sequence of sampled Gaussian steps.

    Args:
      steps: (noise standard deviation over clipping norm, number of steps) pairs.
      weights: the probabilities that 0, 1, ... of the differing records are in the batch of a step;
        (1 - q, q) for one record and Poisson sampling with probability q.
      replace: True to replace one record; False to add or remove one, or a group.

    Returns:
      dp-accounting's object, or None if the losses are so large that the grid would be too large:
      epsilon is then about a hundred or more.
    """
    directions: list[Direction] = ["replace"] if replace else ["remove", "add"]
    ranges = [_loss_range(s, weights, direction) for s, _ in steps for direction in directions]
    widest = max(high - low for low, high in ranges)
    if widest / COARSEST_INTERVAL > _MOST_STEP_POINTS:
        return None
    interval = _interval(steps, weights, widest)
    composed = []
    for direction in directions:
        parts = []
        for s, count in steps:
            first, probs, infinity_mass = _one_step(s, weights, direction, interval)
            if _composed_span(count * _variance(probs), len(probs)) > _MOST_COMPOSED_POINTS:
                return None
            step = pld_pmf.DensePLDPmf(interval, first, probs, infinity_mass, True)
            parts.append(step.self_compose(count))
        total = parts[0]
        for part in parts[1:]:
            total = total.compose(part, tail_mass_truncation=1e-15)
        if total.size > _MOST_COMPOSED_POINTS:
            return None
        composed.append(total)
    return privacy_loss_distribution.PrivacyLossDistribution(*composed)


def roundoff(steps: int) -> float:
    """How far a delta from `composed_pld` may be wrong by rounding in its Fourier transform.

    The spectrum of one step, with entries of size at most 1, is raised to the power `steps`.
    """
    return 1e-13 + 4e-16 * steps


def _one_step(
    s: float, weights: Weights, direction: Direction, interval: float
) -> tuple[int, Floats, float]:
    """One step's losses on the grid: index of the first point, masses, mass at infinity.

    The P-mass and the Q-mass of every cell are split between its two ends so that both are kept.
    This keeps the hockey-stick divergence at every grid point, and raises it between the points.
    """
    low, high = _loss_range(s, weights, direction)
    first, last = math.floor(low / interval), math.ceil(high / interval)
    grid = np.arange(first, last + 1, dtype=np.float64) * interval
    p_above, q_above = _tails(s, weights, direction, grid)
    p_cell, q_cell = -np.diff(p_above), -np.diff(q_above)
    upper = (p_cell - np.exp(grid[:-1]) * q_cell) / -math.expm1(-interval)
    upper = np.clip(upper, 0.0, p_cell)  # rounding must not make masses negative
    probs = np.zeros_like(grid)
    probs[:-1] = p_cell - upper
    probs[1:] += upper
    probs[0] += 1 - p_above[0]
    return first, probs, float(p_above[-1])


def _tails(s: float, weights: Weights, direction: Direction, losses: Floats) -> list[Floats]:
    """P(loss > l) and Q(loss > l) for every l of `losses`, accurate where they are small."""
    if direction == "replace":
        rest, q = weights
        odds = math.exp(0.5 / s**2) * rest / q
        x = s**2 * (np.arcsinh(np.sinh(losses / 2) * odds) + losses / 2)
        there, back = special.ndtr((1 - x) / s), special.ndtr(-(1 + x) / s)
        neither = rest * special.ndtr(-x / s)
        pair = [neither + q * there, neither + q * back]
    else:
        sign = 1.0 if direction == "remove" else -1.0
        x = _where_loss(s, weights, sign * losses)
        beyond = [special.ndtr(sign * (k - x) / s) for k in range(len(weights))]
        mixed = sum(w * tail for w, tail in zip(weights, beyond, strict=True))
        pair = [mixed, beyond[0]] if direction == "remove" else [beyond[0], mixed]
    return [np.minimum.accumulate(tail) for tail in pair]  # rounding must not make them rise


def _where_loss(s: float, weights: Weights, losses: Floats) -> Floats:
    """x where log M(x)/N(x; 0, s²) equals each loss; minus infinity where it is always larger."""
    x = np.full_like(losses, -math.inf)
    target = np.expm1(losses)  # sum of w_k (e^(l_k) - 1), l_k the loss of N(k, s²) against N(0, s²)
    inside = target > weights[0] - 1
    if len(weights) == 2:
        x[inside] = s**2 * np.log1p(target[inside] / weights[1]) + 0.5
        return x
    sensitivities = np.arange(1.0, len(weights))[:, None]
    chances = np.asarray(weights[1:])[:, None]
    wanted = np.log(target[inside] + 1 - weights[0])  # log sum w_k e^(l_k), convex in x
    at_zero = np.log(chances) - (sensitivities**2 / 2) / s**2
    # Newton's method from the right, where one term alone is as large as wanted.
    near = np.min((wanted - at_zero) * s**2 / sensitivities, axis=0)
    for _ in range(60):
        terms = chances * np.exp((sensitivities * near - sensitivities**2 / 2) / s**2)
        total = terms.sum(axis=0)
        step = (np.log(total) - wanted) * total / (sensitivities * terms).sum(axis=0) * s**2
        near = near - step
        if np.all(np.abs(step) <= 1e-13 * s):
            break
    x[inside] = near
    return x


def _loss_range(s: float, weights: Weights, direction: Direction) -> tuple[float, float]:
    """The smallest and the largest loss of one step, except for noise of mass e^-50."""

    def remove_loss(x: float) -> float:
        log_ratios = [(k * x - k * k / 2) / s**2 for k in range(len(weights))]
        if max(log_ratios) > 500:
            return float(special.logsumexp(log_ratios, b=weights))
        return math.log1p(sum(w * math.expm1(r) for w, r in zip(weights, log_ratios, strict=True)))

    far, most_in = _TAIL_Z * s, len(weights) - 1
    if direction == "remove":
        return remove_loss(-far), remove_loss(most_in + far)
    if direction == "add":
        return -remove_loss(far), -remove_loss(-far)
    most = remove_loss(1 + far) - remove_loss(-1 - far)
    return -most, most


def _interval(steps: Sequence[tuple[float, int]], weights: Weights, widest: float) -> float:
    """1e-4, halved as often as the size of a step's losses needs.

    Rounding adds up to interval²/4 to the variance of a step's loss, about q²(exp(1/s²) - 1).
    The interval should therefore be a small part of the square root of this variance.
    """
    pairs = [(j * k, v * w) for j, v in enumerate(weights) for k, w in enumerate(weights)]
    total = sum(
        count * w * math.expm1(min(jk / s**2, 100.0)) for s, count in steps for jk, w in pairs
    )
    deviation = math.sqrt(total / sum(count for _, count in steps))
    span = max(widest, _composed_span(total, widest))
    interval = COARSEST_INTERVAL
    while interval > 0.02 * deviation and interval > 1e-10 and span / interval < _FINE_POINTS / 2:
        interval /= 2
    return interval


def _composed_span(variance: float, step_span: float) -> float:
    """About how wide the grid of a composition is, from its variance and the width of one step.

    dp-accounting cuts tails of mass 1e-15 by Chernoff bounds, of orders 1 to 20 over the width.
    """
    orders = np.arange(1, 21) / step_span
    return float(np.min(variance * orders + 2 * math.log(2e15) / orders))


def _variance(probs: Floats) -> float:
    """The variance of a step's loss, in squares of the interval."""
    index = np.arange(len(probs), dtype=np.float64)
    mean = np.sum(probs * index)
    return float(np.sum(probs * (index - mean) ** 2))
