"""Trade-off curves (f-DP): how well an attacker can do; and epsilon for groups of records."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from ..types import Accountant
from . import gdp, pld
from .guarantee import charge_of, check_delta, curves, gaussian_mu
from .mechanism import Mechanism, accountants, batches_per_epoch

# Type I errors at which a curve is drawn: most of them near 0, where it bends most.
LEVELS = np.concatenate([[0.0], np.geomspace(1e-6, 0.05, 60), np.linspace(0.06, 1.0, 95)])


def tradeoff(
    mechanism: Mechanism, alphas: ArrayLike, accountant: Accountant | None = None
) -> NDArray[np.float64]:
    """beta(alpha): the smallest type II error of an attacker whose type I error is alpha.

    The attacker tests whether one record is there. Perfect privacy is beta = 1 - alpha. The curve
    is a lower bound, and tight: the upper envelope of the lines that the accountant's
    (epsilon, delta) pairs give (arXiv 1905.02383), or the closed form of the Gaussian without
    amplification by sampling.

    Args:
      mechanism: the run.
      alphas: type I errors in [0, 1], of any shape.
      accountant: None takes the tightest sound one.

    Returns:
      Type II errors, of the shape of `alphas`.

    Raises:
      ValueError: if an alpha is not in [0, 1], or the accountant has no sound bound for the run.

    Example:
      >>> run = Mechanism(noise_multiplier=1.0, steps=1, sampling_probability=1.0)
      >>> tradeoff(run, [0.0, 0.05, 1.0]).round(2).tolist()
      [1.0, 0.74, 0.0]
    """
    levels = gdp.check_alphas(alphas)
    accountant = accountant or accountants(mechanism.sampling, mechanism.adjacency)[0]
    exact = lambda levels: _exact_tradeoff(mechanism, levels, accountant)
    return charge_of([mechanism]).tradeoff_of(levels, exact)


def _exact_tradeoff(
    mechanism: Mechanism, levels: NDArray[np.float64], accountant: Accountant
) -> NDArray[np.float64]:
    """The curve with noise that is exactly Gaussian."""
    bound = gdp.gaussian_tradeoff(gaussian_mu(mechanism), levels)
    for curve in curves(mechanism, accountant):
        most = curve.epsilon(1e-9)
        if most == math.inf:
            continue
        # Every choice of epsilons is sound; the curve bends most near 0.
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
    """epsilon at `delta` for a group of records, for example all records of one person.

    Neighbouring data sets differ in `group_size` records, each as the mechanism's adjacency says.
    The smallest of the bounds that hold is returned:

    - the Gaussian's, without amplification by sampling;
    - for Poisson sampling with add_remove or zero_out, the PLD of a Gaussian whose sensitivity is
      the number of the group's records in the batch (arXiv 2310.15526);
    - the textbook's: (a, d)-DP for one record is (g·a, d·(e^(g·a) - 1) / (e^a - 1))-DP for g.

    Args:
      mechanism: the run; its noise multiplier is for one record.
      delta: between 0 and 1.
      group_size: g, at least 1.
      units_per_batch: m, only for batch clipping: at most m units change in one step. None takes
        the worst case.

    Raises:
      ValueError: for numbers that make no sense, or `units_per_batch` without batch clipping.
    """
    check_delta(delta, mechanism.num_examples)
    if group_size < 1 or (units_per_batch is not None and units_per_batch < 1):
        raise ValueError(
            f"group_size is {group_size} and units_per_batch {units_per_batch}: give at least 1"
        )
    if units_per_batch is not None and mechanism.unit != "batch":
        raise ValueError("units_per_batch is for unit='batch': leave it out for unit='example'")
    exact = lambda delta: _exact_group_epsilon(mechanism, delta, group_size, units_per_batch)
    return charge_of([mechanism]).epsilon_at(delta, exact)


def _exact_group_epsilon(
    mechanism: Mechanism, delta: float, group_size: int, units_per_batch: int | None
) -> float:
    """The same with noise that is exactly Gaussian."""
    accountant = accountants(mechanism.sampling, mechanism.adjacency)[0]
    bounds = [_converted(curve.delta, delta, group_size) for curve in curves(mechanism, accountant)]
    if accountant == "pld" or mechanism.sampling == "fixed_size":
        at_once = min(group_size, units_per_batch or group_size)  # clipped gradients that change
        squares = float(at_once**2)
        if mechanism.sampling == "shuffled":
            # The worst case fills one batch after the other; an epoch has only so many batches.
            full, rest = divmod(group_size, at_once)
            squares = float(full * at_once**2 + rest**2)
            most = batches_per_epoch(mechanism.num_examples or 1, mechanism.batch_size or 1)
            squares = min(squares, float(most * at_once**2))
        bounds.append(gdp.epsilon_from_mu(gaussian_mu(mechanism) * math.sqrt(squares), delta))
        if mechanism.sampling == "poisson" and mechanism.adjacency != "replace_one":
            bounds.append(_mixture_epsilon(mechanism, delta, group_size, at_once))
    return min(bounds)


def _converted(one: Callable[[float], float], delta: float, size: int) -> float:
    """The smallest g·a for which one(a) · (e^(g·a) - 1) / (e^a - 1) is at most `delta`."""
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
    """Epsilon if the sensitivity is the number of the group's sampled records, up to `at_once`."""
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
