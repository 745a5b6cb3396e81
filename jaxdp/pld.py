"""The privacy loss distribution (PLD) of Poisson-sampled Gaussian steps.

dp-accounting composes and converts distributions; what is here is the discretisation of one step,
which it does in a Python loop (seconds for large losses) and at one fixed interval. Ours is the
same "connect the dots" rounding (Doroshenko et al., arXiv 2207.04380), vectorised, with the
interval chosen by the size of the losses: 1e-4, or finer. Every rounding is pessimistic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from dp_accounting.pld import pld_pmf, privacy_loss_distribution
from numpy.typing import NDArray
from scipy import special

# The dominating pair (P, Q) of one step, for noise standard deviation s and clipping norm 1:
#   remove   P = (1-q) N(0, s²) + q N(1, s²)   Q = N(0, s²)
#   add      P = N(0, s²)                      Q = (1-q) N(0, s²) + q N(1, s²)
#   replace  P = (1-q) N(0, s²) + q N(1, s²)   Q = (1-q) N(0, s²) + q N(-1, s²)
Direction = Literal["remove", "add", "replace"]
Floats = NDArray[np.float64]

COARSEST_INTERVAL = 1e-4
_FINE_POINTS = 2**18  # intervals finer than that only while no grid is larger than this
_MOST_STEP_POINTS = 2**21
_MOST_COMPOSED_POINTS = 2**22
_TAIL_Z = float(-special.ndtri_exp(-50.0))  # what is cut off one step's noise has mass e^-50


def composed_pld(
    steps: Sequence[tuple[float, int]], q: float, replace: bool
) -> privacy_loss_distribution.PrivacyLossDistribution | None:
    """The PLD of a sequence of Poisson-sampled Gaussian steps.

    Args:
      steps: (noise standard deviation over clipping norm, number of steps) pairs.
      q: the sampling probability, between 0 and 1, both excluded.
      replace: replace one record; otherwise add or remove one.

    Returns:
      dp-accounting's object, or None where the losses are so large that the grid would not fit:
      epsilon is then in the hundreds.
    """
    directions: list[Direction] = ["replace"] if replace else ["remove", "add"]
    ranges = [_loss_range(s, q, direction) for s, _ in steps for direction in directions]
    widest = max(high - low for low, high in ranges)
    if widest / COARSEST_INTERVAL > _MOST_STEP_POINTS:
        return None
    interval = _interval(steps, q, widest)
    composed = []
    for direction in directions:
        parts = []
        for s, count in steps:
            first, probs, infinity_mass = _one_step(s, q, direction, interval)
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
    """How far a delta from `composed_pld` may be wrong by rounding in the Fourier transform.

    The spectrum of one step, with entries of size at most 1, is raised to the power `steps`.
    """
    return 1e-13 + 4e-16 * steps


def _one_step(
    s: float, q: float, direction: Direction, interval: float
) -> tuple[int, Floats, float]:
    """One step's losses on the grid: index of the first point, masses, mass at infinity.

    The P-mass and Q-mass of a cell go to its two ends such that both are kept, which leaves the
    hockey-stick divergence at every grid point as it is, and raises it between.
    """
    low, high = _loss_range(s, q, direction)
    first, last = math.floor(low / interval), math.ceil(high / interval)
    grid = np.arange(first, last + 1, dtype=np.float64) * interval
    p_above, q_above = _tails(s, q, direction, grid)
    p_cell, q_cell = -np.diff(p_above), -np.diff(q_above)
    upper = (p_cell - np.exp(grid[:-1]) * q_cell) / -math.expm1(-interval)
    upper = np.clip(upper, 0.0, p_cell)  # rounding must not make masses negative
    probs = np.zeros_like(grid)
    probs[:-1] = p_cell - upper
    probs[1:] += upper
    probs[0] += 1 - p_above[0]
    return first, probs, float(p_above[-1])


def _tails(s: float, q: float, direction: Direction, losses: Floats) -> tuple[Floats, Floats]:
    """P(loss > l) and Q(loss > l) for every l of `losses`, accurate where they are small."""
    if direction == "replace":
        odds = math.exp(0.5 / s**2) * (1 - q) / q
        x = s**2 * (np.arcsinh(np.sinh(losses / 2) * odds) + losses / 2)
        neither = (1 - q) * special.ndtr(-x / s)
        p = neither + q * special.ndtr((1 - x) / s)
        return p, neither + q * special.ndtr(-(1 + x) / s)
    sign = 1.0 if direction == "remove" else -1.0
    ratio = np.expm1(sign * losses) / q  # q·(likelihood ratio of the two Gaussians - 1) = expm1
    x = np.full_like(losses, -math.inf)
    x[ratio > -1] = s**2 * np.log1p(ratio[ratio > -1]) + 0.5
    one, other = special.ndtr(-sign * x / s), special.ndtr(sign * (1 - x) / s)
    mixed = (1 - q) * one + q * other
    return (mixed, one) if direction == "remove" else (one, mixed)


def _loss_range(s: float, q: float, direction: Direction) -> tuple[float, float]:
    """The least and greatest loss of one step, but for noise of mass e^-50."""

    def remove_loss(x: float) -> float:
        log_ratio = (x - 0.5) / s**2
        if log_ratio > 500:
            return log_ratio + math.log(q)
        return math.log1p(q * math.expm1(log_ratio))

    far = _TAIL_Z * s
    if direction == "remove":
        return remove_loss(-far), remove_loss(1 + far)
    if direction == "add":
        return -remove_loss(far), -remove_loss(-far)
    most = remove_loss(1 + far) - remove_loss(-1 - far)
    return -most, most


def _interval(steps: Sequence[tuple[float, int]], q: float, widest: float) -> float:
    """1e-4, or less by powers of two where a step's losses are smaller than that.

    Rounding adds up to interval²/4 to the variance of a step's loss, about q²(exp(1/s²) - 1), so
    the interval should be a small part of its square root.
    """
    total = sum(count * q**2 * math.expm1(min(1 / s**2, 100.0)) for s, count in steps)
    deviation = math.sqrt(total / sum(count for _, count in steps))
    span = max(widest, _composed_span(total, widest))
    interval = COARSEST_INTERVAL
    while interval > 0.02 * deviation and interval > 1e-10 and span / interval < _FINE_POINTS / 2:
        interval /= 2
    return interval


def _composed_span(variance: float, step_span: float) -> float:
    """About how wide a composition's grid is, from its variance and the width of one step's.

    dp-accounting cuts tails of mass 1e-15 by Chernoff bounds, of orders 1 to 20 over the width.
    """
    orders = np.arange(1, 21) / step_span
    return float(np.min(variance * orders + 2 * math.log(2e15) / orders))


def _variance(probs: Floats) -> float:
    """In squares of the interval."""
    index = np.arange(len(probs), dtype=np.float64)
    mean = np.sum(probs * index)
    return float(np.sum(probs * (index - mean) ** 2))
