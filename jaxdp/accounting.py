"""What a DP-SGD run guarantees: a `Mechanism` in, epsilon, delta or the noise it needs out.

dp-accounting (https://github.com/google/differential-privacy) does the composing and converting;
`dp_event` says what a mechanism is in its terms, so that anybody can check.
"""

import functools
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from dp_accounting.rdp import rdp_privacy_accountant as dp_rdp

from . import gdp, pld
from .mechanism import Accountant as Accountant
from .mechanism import Adjacency as Adjacency
from .mechanism import Mechanism as Mechanism
from .mechanism import Sampling as Sampling
from .mechanism import Schedule as Schedule
from .mechanism import Unit as Unit
from .mechanism import accountants as accountants
from .mechanism import batches_per_epoch as batches_per_epoch
from .mechanism import dp_event as dp_event
from .mechanism import event_factor
from .mechanism import paper_noise_multiplier as paper_noise_multiplier

LARGEST_NOISE_MULTIPLIER = 1e6
NO_PRIVACY = 20.0  # an epsilon above it lets an attacker be all but certain


def epsilon(mechanism: Mechanism, delta: float, accountant: Accountant = "pld") -> float:
    """An upper bound on epsilon at `delta`: infinite without noise, 0 without steps or sampling.

    Args:
      mechanism: the run.
      delta: between 0 and 1. If the mechanism says what N is, 1/N or more gives a warning.
      accountant: "pld" is tight (for Gaussians without amplification it is their closed form),
        "rdp" is looser, and the only one for batches of fixed size.
    """
    check_delta(delta, mechanism.num_examples)
    return min(curve.epsilon(delta) for curve in curves(mechanism, accountant))


def delta(mechanism: Mechanism, epsilon: float, accountant: Accountant = "pld") -> float:
    """An upper bound on delta at `epsilon`."""
    if not epsilon >= 0:
        raise ValueError(f"epsilon is {epsilon}: it must be at least 0")
    return min(curve.delta(epsilon) for curve in curves(mechanism, accountant))


def gaussian_mu(mechanism: Mechanism) -> float:
    """mu of the run's Gaussian-DP guarantee without amplification by sampling.

    For full batches and shuffled epochs this is the whole truth; otherwise it is an upper bound.
    """
    if any(z == 0 for z, _ in mechanism.exposures):
        return math.inf
    return math.hypot(*(math.sqrt(count) / z for z, count in mechanism.exposures))


def solve_noise_multiplier(
    *,
    target_epsilon: float,
    delta: float,
    steps: int,
    sampling_probability: float,
    sampling: Sampling = "poisson",
    adjacency: Adjacency = "add_remove",
    unit: Unit = "example",
    num_examples: int | None = None,
    accountant: Accountant = "pld",
) -> float:
    """The least constant noise multiplier that meets a target: six digits, rounded up.

    Returns:
      z for which `epsilon` was computed and found to be at most `target_epsilon`; it is within
      one part in 10,000 of the least, or in 1,000 where epsilon is in the hundreds. 0 if nothing is
      released.

    Raises:
      ValueError: if no z up to a million meets the target, or if delta is so large that it would
        be met without noise.
    """
    if not 0 < target_epsilon < math.inf:
        raise ValueError(f"target_epsilon is {target_epsilon}: give a finite number above 0")
    check_delta(delta, num_examples)
    run = Mechanism(
        1.0, steps, sampling_probability, sampling, adjacency, unit, num_examples=num_examples
    )
    if not run.exposures:
        return 0.0
    if sampling == "poisson" and steps * math.log1p(-min(sampling_probability, 1 - 1e-9)) >= (
        math.log1p(-delta)
    ):
        raise ValueError(
            f"delta is {delta}: a record takes part at all with no more probability in {steps} "
            f"steps at sampling probability {sampling_probability:.3g}, so that even without noise "
            "this holds. Take a smaller delta, as N^-1.1"
        )

    def excess(z: float) -> float:
        """log(delta / its target) at the target epsilon: falls with z, at most 0 is enough."""
        curves_at_z = curves(replace(run, noise_multiplier=z), accountant)
        least = min(curve.delta(target_epsilon) for curve in curves_at_z)
        return math.log(max(least, 5e-324)) - math.log(delta)

    z = _least_noise(excess, _likely_noise(run, gdp.mu_from_epsilon(target_epsilon, delta)))
    while z <= LARGEST_NOISE_MULTIPLIER:
        final = curves(replace(run, noise_multiplier=z), accountant)
        if min(curve.epsilon(delta) for curve in final) <= target_epsilon:
            return z
        z = _round_up(z * (1 + 1e-6))
    raise ValueError(
        f"no noise multiplier up to {LARGEST_NOISE_MULTIPLIER:,.0f} gives epsilon "
        f"{target_epsilon} at delta {delta} for {steps} steps at sampling probability "
        f"{sampling_probability:.3g}: take fewer steps, a smaller batch size, a larger epsilon or "
        "a larger delta"
    )


def check_delta(delta: float, num_examples: int | None) -> None:
    """Refuses a delta outside (0, 1), and warns of one that promises nothing."""
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}: it must lie between 0 and 1, both excluded")
    if num_examples is not None and delta >= 1 / num_examples:
        warnings.warn(
            f"delta is {delta}, not below 1/N = {1 / num_examples:.3g}: to publish one random "
            f"record whole would satisfy it. N^-1.1 = {num_examples**-1.1:.3g} is usual",
            stacklevel=3,
        )


@dataclass(frozen=True)
class Curve:
    """One sound bound: the epsilon that holds at a delta, and the other way round."""

    epsilon: Callable[[float], float]
    delta: Callable[[float], float]
    many_deltas: Callable[[list[float]], np.ndarray] | None = None  # faster, for rising epsilons

    def deltas(self, epsilons: list[float]) -> np.ndarray:
        if self.many_deltas is not None:
            return self.many_deltas(epsilons)
        return np.array([self.delta(epsilon) for epsilon in epsilons])


_NO_BOUND = Curve(lambda delta: math.inf, lambda epsilon: 1.0)
_NOTHING_RELEASED = Curve(lambda delta: 0.0, lambda epsilon: 0.0)


@functools.lru_cache(maxsize=4)
def curves(mechanism: Mechanism, accountant: Accountant) -> tuple[Curve, ...]:
    """Bounds that all hold for the mechanism: its guarantee is the least of them."""
    allowed = accountants(mechanism.sampling, mechanism.adjacency)
    if accountant not in ("pld", "rdp"):
        raise ValueError(f"accountant is {accountant!r}: give 'pld' or 'rdp'")
    if accountant not in allowed:
        raise ValueError(
            f"accountant is {accountant!r}: it has no sound bound for "
            f"sampling={mechanism.sampling!r} with adjacency={mechanism.adjacency!r}. "
            f"Use accountant={allowed[0]!r}"
        )
    mu = gaussian_mu(mechanism)
    if mu == 0:
        return (_NOTHING_RELEASED,)
    if mu == math.inf:
        return (_NO_BOUND,)
    unamplified = Curve(
        lambda delta: gdp.epsilon_from_mu(mu, delta), lambda epsilon: gdp.delta_from_mu(mu, epsilon)
    )
    if accountant == "rdp":
        # The bound for sampling without replacement is loose: it may exceed the plain Gaussian's.
        more = (unamplified,) if mechanism.sampling == "fixed_size" else ()
        return (_rdp_curve(mechanism), *more)
    if mechanism.sampling != "poisson" or mechanism.sampling_probability == 1:
        return (unamplified,)  # Gaussians compose to a Gaussian, whose PLD has a closed form
    return (unamplified, _pld_curve(mechanism))


def _pld_curve(mechanism: Mechanism) -> Curve:
    composed = pld.composed_pld(
        [(z * event_factor(mechanism), count) for z, count in mechanism.exposures],
        (1 - mechanism.sampling_probability, mechanism.sampling_probability),
        replace=mechanism.adjacency == "replace_one",
    )
    slack = pld.roundoff(mechanism.steps)
    has_rdp = "rdp" in accountants(mechanism.sampling, mechanism.adjacency)

    # Where the grid ends, and where delta is near its rounding, RDP may be the better bound.
    @functools.cache
    def fallback() -> Curve:
        return _rdp_curve(mechanism) if has_rdp else _NO_BOUND

    def epsilon(delta: float) -> float:
        bound = math.inf
        if composed is not None and delta > slack:
            bound = float(composed.get_epsilon_for_delta(delta - slack))
        if delta > 100 * slack and bound < math.inf:
            return bound
        return min(bound, fallback().epsilon(delta))

    def delta(epsilon: float) -> float:
        bound = 1.0
        if composed is not None:
            bound = max(0.0, float(composed.get_delta_for_epsilon(epsilon))) + slack
        return bound if 100 * slack < bound < 1 else min(bound, fallback().delta(epsilon))

    def deltas(epsilons: list[float]) -> np.ndarray:
        if composed is None:
            return np.array([delta(epsilon) for epsilon in epsilons])
        return np.clip(composed.get_delta_for_epsilon(epsilons), 0.0, 1.0 - slack) + slack

    return Curve(epsilon, delta, deltas)


def _rdp_curve(mechanism: Mechanism) -> Curve:
    event, relation = dp_event(mechanism)
    accountant = dp_rdp.RdpAccountant(neighboring_relation=relation)
    with quiet():
        accountant.compose(event)
    orders = accountant.orders
    # Rounding can leave a small divergence too low, even negative, which would count as none.
    rdp = np.maximum(accountant.rdp, 0.0) + 1e-15 * mechanism.steps / (orders - 1)
    return Curve(
        lambda delta: float(dp_rdp.compute_epsilon(orders, rdp, delta)[0]),
        lambda epsilon: float(dp_rdp.compute_delta(orders, rdp, epsilon)[0]),
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Without dp-accounting's log lines on orders that it leaves out, which is sound."""
    logger = logging.getLogger("absl")

    def wanted(record: logging.LogRecord) -> bool:
        return "Excluding this order" not in str(record.msg)

    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


def _likely_noise(run: Mechanism, mu: float) -> float:
    """About the z for which a run is mu-GDP, by the central limit theorem of Dong, Roth and Su.

    A sampled step's loss has variance q²(exp(1/z²) - 1), or 4q² sinh(1/s²) for replace-one.
    """
    plain = gaussian_mu(run) / mu
    if run.sampling == "shuffled" or run.sampling_probability == 1:
        return plain
    variance = mu**2 / (run.steps * run.sampling_probability**2)
    if run.adjacency == "replace_one":
        factor = 1.0 if run.sampling == "fixed_size" else event_factor(run)
        return min(plain, 1 / (factor * math.sqrt(math.asinh(variance / 4))))
    return min(plain, 1 / math.sqrt(math.log1p(variance)))


def _least_noise(excess: Callable[[float], float], start: float, tolerance: float = 5e-4) -> float:
    """A z of six digits with -tolerance <= excess(z) <= 0, or the least with excess(z) <= 0.

    Secants in log z, kept inside a bracket; before there is one, steps are small at first, because
    a PLD takes longest where z is far too small. Infinite where LARGEST_NOISE_MULTIPLIER is not
    enough.
    """
    low, high = 0.0, math.inf  # excess is above 0 at low, and not at high
    z = _round_up(min(start, LARGEST_NOISE_MULTIPLIER))
    value, slope, farthest = excess(z), -20.0, 0.1
    for attempt in range(200):
        low, high = (z, high) if value > 0 else (low, z)
        if -tolerance <= value <= 0:
            break
        if low >= LARGEST_NOISE_MULTIPLIER:
            return math.inf
        if low == 0 and farthest > 3:  # almost any noise will do: one record is hardly ever used
            break
        step = min(max(-(value + tolerance / 2) / slope, -5.0), 5.0)
        if low == 0 or high == math.inf:
            # At least 1e-5, so that six digits change.
            step = math.copysign(min(max(abs(step), 1e-5), farthest), value)
            farthest *= 2
        guess = _round_up(min(z * math.exp(step), LARGEST_NOISE_MULTIPLIER))
        if not low < guess < high or (attempt > 8 and high < math.inf and low > 0):
            if attempt > 8 and high <= low * 1.001:  # a jump, where a PLD's grid ends
                break
            guess = _round_up(math.sqrt(low * high))
            if not low < guess < high:
                break
        guess_value = excess(guess)
        slope = min((guess_value - value) / math.log(guess / z), -1e-3)
        z, value = guess, guess_value
    return high


def _round_up(z: float) -> float:
    """z rounded up to six significant digits."""
    digits = 5 - math.floor(math.log10(z))
    rounded = round(z, digits)
    return rounded if rounded >= z else round(z + 10.0**-digits, digits)
