"""f-DP: how well an attacker can tell a record's presence, and what a group of records costs."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from ..types import Accountant
from . import gdp, pld
from .guarantee import check_delta, curves, gaussian_mu
from .mechanism import Mechanism, accountants, batches_per_epoch

# Type I errors to draw a curve by: it bends most near 0.
LEVELS = np.concatenate([[0.0], np.geomspace(1e-6, 0.05, 60), np.linspace(0.06, 1.0, 95)])


def tradeoff(
    mechanism: Mechanism, alphas: ArrayLike, accountant: Accountant | None = None
) -> NDArray[np.float64]:
    """beta(alpha): the least type II error of a test of one record's presence, type I being alpha.

    Perfect privacy is 1 - alpha. The curve is a lower bound, and tight: the upper envelope of the
    lines that the (epsilon, delta) pairs of the accountant allow, or the Gaussian's closed form
    where sampling does not amplify.

    Args:
      mechanism: the run.
      alphas: type I errors in [0, 1].
      accountant: None takes the tightest that there is.
    """
    levels = gdp.check_alphas(alphas)
    accountant = accountant or accountants(mechanism.sampling, mechanism.adjacency)[0]
    bound = gdp.gaussian_tradeoff(gaussian_mu(mechanism), levels)
    for curve in curves(mechanism, accountant):
        most = curve.epsilon(1e-9)
        if most == math.inf:
            continue
        # Any set of epsilons is sound; near 0 the curve bends most.
        epsilons = [float(e) for e in min(most, 700.0) * np.linspace(0, 1, 257) ** 2]
        for epsilon, delta in zip(epsilons, curve.deltas(epsilons), strict=True):
            lines = [
                1 - delta - math.exp(epsilon) * levels,
                math.exp(-epsilon) * (1 - delta - levels),
            ]
            bound = np.max(np.stack([bound, *lines]), axis=0)
    return bound


def group_epsilon(
    mechanism: Mechanism,
    delta: float,
    group_size: int,
    *,
    units_per_batch: int | None = None,
) -> float:
    """epsilon at `delta` for a group of records, as all those of one person.

    Neighbouring data differ in `group_size` records, each in the mechanism's way. Without
    amplification the bound is a Gaussian's; for Poisson sampling under add/remove or zero-out it is
    the PLD of a Gaussian whose sensitivity is the number of the group's records in the sample
    (arXiv 2310.15526); else the textbook's g·epsilon with delta multiplied by
    (e^(g epsilon) - 1) / (e^epsilon - 1).

    Args:
      mechanism: the run, whose noise multiplier is for one record.
      delta: between 0 and 1.
      group_size: g.
      units_per_batch: m for batch clipping: a step changes in m units at most. None is worst case.
    """
    check_delta(delta, mechanism.num_examples)
    if group_size < 1 or (units_per_batch is not None and units_per_batch < 1):
        raise ValueError(
            f"group_size is {group_size} and units_per_batch {units_per_batch}: give at least 1"
        )
    if units_per_batch is not None and mechanism.unit != "batch":
        raise ValueError("units_per_batch is for unit='batch': leave it out for unit='example'")
    accountant = accountants(mechanism.sampling, mechanism.adjacency)[0]
    bounds = [_converted(curve.delta, delta, group_size) for curve in curves(mechanism, accountant)]
    if accountant == "pld" or mechanism.sampling == "fixed_size":
        at_once = min(group_size, units_per_batch or group_size)  # units changed in one step
        squares = float(at_once**2)
        if mechanism.sampling == "shuffled":
            # Worst is to fill batches one by one, and the epoch's batches set a limit.
            full, rest = divmod(group_size, at_once)
            squares = float(full * at_once**2 + rest**2)
            most = batches_per_epoch(mechanism.num_examples or 1, mechanism.batch_size or 1)
            squares = min(squares, float(most * at_once**2))
        bounds.append(gdp.epsilon_from_mu(gaussian_mu(mechanism) * math.sqrt(squares), delta))
        if mechanism.sampling == "poisson" and mechanism.adjacency != "replace_one":
            bounds.append(_mixture_epsilon(mechanism, delta, group_size, at_once))
    return min(bounds)


def _converted(one: Callable[[float], float], delta: float, size: int) -> float:
    """The least g·epsilon whose delta, (e^(g epsilon) - 1)/(e^epsilon - 1) times one's, will do."""
    if one(0.0) * size <= delta:
        return 0.0

    def excess(epsilon: float) -> float:
        log_factor = (
            math.log(size)
            if epsilon == 0
            else (size - 1) * epsilon
            + math.log(-math.expm1(-size * epsilon) / -math.expm1(-epsilon))
        )
        return math.log(max(one(epsilon), 5e-324)) + log_factor - math.log(delta)

    high = 1.0
    while excess(high) > 0:
        high *= 2
        if high > 700 / size:
            return math.inf
    root = optimize.brentq(excess, 0.0, high, xtol=1e-10)
    return size * next(e for e in (root, root + 1e-9, root + 1e-6, high) if excess(e) <= 0)


def _mixture_epsilon(mechanism: Mechanism, delta: float, size: int, at_once: int) -> float:
    """Of the Gaussian whose sensitivity is the number of sampled records, `at_once` at most."""
    q = mechanism.sampling_probability
    slack = pld.roundoff(mechanism.steps)
    if not 0 < gaussian_mu(mechanism) < math.inf or q == 1 or delta <= slack or size > 64:
        return math.inf
    chances = [float(p) for p in stats.binom.pmf(np.arange(size + 1), size, q)]
    if min(chances) == 0:
        return math.inf
    weights = (*chances[:at_once], math.fsum(chances[at_once:]))
    composed = pld.composed_pld(mechanism.exposures, weights)
    return math.inf if composed is None else float(composed.get_epsilon_for_delta(delta - slack))
