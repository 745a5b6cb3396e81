"""What a DP-SGD run guarantees: a `Mechanism` goes in, epsilon or delta comes out.

dp-accounting (https://github.com/google/differential-privacy) composes the steps and converts the
result; `mechanism.dp_event` describes a run in its terms, so that anybody can check our numbers.
"""

import functools
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from dp_accounting.rdp import rdp_privacy_accountant as dp_rdp
from scipy import special

from ..types import Accountant
from . import gdp, pld
from .mechanism import Mechanism, accountants, dp_event, event_factor
from .noise_charge import NoiseCharge, noise_charge

NO_PRIVACY = 20.0  # with an epsilon above it, an attacker can be almost certain


def epsilon(mechanism: Mechanism, delta: float, accountant: Accountant = "pld") -> float:
    """An upper bound on epsilon at `delta`: infinite without noise, 0 if nothing is released.

    Args:
      mechanism: the run.
      delta: between 0 and 1. If the mechanism knows N, a delta of 1/N or more gives a warning.
      accountant: "pld" is tight (without amplification by sampling it is the closed form of the
        Gaussian), and RDP's bound where that is smaller, for a delta close to the rounding errors;
        "rdp" is looser elsewhere, and the only one for batches of fixed size.

    Raises:
      ValueError: for a delta outside 0 to 1, or an accountant without a sound bound for the run.

    Example:
      >>> run = Mechanism(noise_multiplier=1.1, steps=14_063, sampling_probability=256 / 60_000)
      >>> f"{epsilon(run, 1e-5):.2f}"
      '2.38'
    """
    check_delta(delta, mechanism.num_examples)
    bounds = curves(mechanism, accountant)
    exact = lambda delta: min(curve.epsilon(delta) for curve in bounds)
    return charge_of([mechanism]).epsilon_at(delta, exact)


def delta(mechanism: Mechanism, epsilon: float, accountant: Accountant = "pld") -> float:
    """An upper bound on delta at `epsilon`: 1 without noise, 0 if nothing is released.

    Args:
      mechanism: the run.
      epsilon: at least 0.
      accountant: as in `epsilon`.

    Raises:
      ValueError: for a negative epsilon, or an accountant without a sound bound for the run.
    """
    if not epsilon >= 0:
        raise ValueError(f"epsilon is {epsilon}: it must be at least 0")
    bounds = curves(mechanism, accountant)
    exact = lambda epsilon: min(curve.delta(epsilon) for curve in bounds)
    return charge_of([mechanism]).delta_at(epsilon, exact)


def charge_of(mechanisms: Sequence[Mechanism]) -> NoiseCharge:
    """What the randomness of all the mechanisms together costs because it is not exact.

    A mechanism that releases nothing draws none.
    """
    drawn = [m for m in mechanisms if m.exposures and m.noise_draws_per_step]
    return noise_charge(
        sum(m.noise_draws_per_step * m.steps for m in drawn),
        sum(m.steps for m in drawn if m.sampling == "poisson"),
    )


def gaussian_mu(mechanism: Mechanism) -> float:
    """mu of the run's Gaussian DP guarantee (arXiv 1905.02383), without amplification by sampling.

    It is exact for full batches and shuffled epochs, and an upper bound for other samplings.
    """
    if any(z == 0 for z, _ in mechanism.exposures):
        return math.inf
    return math.hypot(*(math.sqrt(count) / z for z, count in mechanism.exposures))


def check_delta(delta: float, num_examples: int | None) -> None:
    """Refuses a delta outside 0 to 1, and warns of one that promises nothing.

    Args:
      delta: the delta.
      num_examples: N, or None if it is not known; then there is no warning.
    """
    gdp.check_delta_range(delta)
    if num_examples is not None and delta >= 1 / num_examples:
        warnings.warn(
            f"delta is {delta}, not below 1/N = {1 / num_examples:.3g}: a program that "
            "publishes one random record would satisfy it. "
            f"N^-1.1 = {num_examples**-1.1:.3g} is usual",
            stacklevel=3,
        )


@dataclass(frozen=True)
class Curve:
    """One sound bound.

    Attributes:
      epsilon: the epsilon that holds at a delta.
      delta: the delta that holds at an epsilon.
      many_deltas: the same for many epsilons in rising order at once, if there is a faster way.
    """

    epsilon: Callable[[float], float]
    delta: Callable[[float], float]
    many_deltas: Callable[[list[float]], np.ndarray] | None = None

    def deltas(self, epsilons: list[float]) -> np.ndarray:
        """The deltas that hold at `epsilons`, which must be in rising order."""
        if self.many_deltas is not None:
            return self.many_deltas(epsilons)
        return np.array([self.delta(epsilon) for epsilon in epsilons])


_NO_BOUND = Curve(lambda delta: math.inf, lambda epsilon: 1.0)

_NOTHING_RELEASED = Curve(lambda delta: 0.0, lambda epsilon: 0.0)


@functools.lru_cache(maxsize=4)
def curves(mechanism: Mechanism, accountant: Accountant) -> tuple[Curve, ...]:
    """Bounds that all hold for the mechanism if its noise is exactly Gaussian."""
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
        # The bound for sampling without replacement is loose, and may exceed the unamplified one.
        more = (unamplified,) if mechanism.sampling == "fixed_size" else ()
        return (rdp_curve([mechanism]), *more)
    if mechanism.sampling != "poisson" or mechanism.sampling_probability == 1:
        return (unamplified,)  # Gaussians compose to a Gaussian, and its PLD has a closed form
    return (unamplified, _participation_curve(mechanism), _pld_curve(mechanism))


def _participation_curve(mechanism: Mechanism) -> Curve:
    """A record that is in no batch changes nothing: δ is at most the chance that it is in any.

    With runs coupled so that all but the record is the same, they differ with that chance only.
    """
    steps, q = mechanism.steps, mechanism.sampling_probability
    chance = -math.expm1(steps * math.log1p(-q)) * (1 + 1e-12)  # above what was rounded down
    return Curve(lambda delta: 0.0 if delta >= chance else math.inf, lambda epsilon: chance)


def _pld_curve(mechanism: Mechanism) -> Curve:
    composed = pld.composed_pld(
        [(z * event_factor(mechanism), count) for z, count in mechanism.exposures],
        (1 - mechanism.sampling_probability, mechanism.sampling_probability),
        replace=mechanism.adjacency == "replace_one",
    )
    slack = pld.roundoff(mechanism.steps)
    has_rdp = "rdp" in accountants(mechanism.sampling, mechanism.adjacency)

    # RDP is better where the grid is too small, or delta is close to the rounding errors.
    @functools.cache
    def rdp() -> Curve:
        return rdp_curve([mechanism]) if has_rdp else _NO_BOUND

    def epsilon(delta: float) -> float:
        bound = math.inf
        if composed is not None and delta > slack:
            bound = float(composed.get_epsilon_for_delta(delta - slack))
        return min(bound, rdp().epsilon(delta))

    def delta(epsilon: float) -> float:
        bound = 1.0
        if composed is not None:
            bound = max(0.0, float(composed.get_delta_for_epsilon(epsilon))) + slack
        return min(bound, rdp().delta(epsilon))

    def deltas(epsilons: list[float]) -> np.ndarray:
        if composed is None:
            return np.array([delta(epsilon) for epsilon in epsilons])
        return np.clip(composed.get_delta_for_epsilon(epsilons), 0.0, 1.0 - slack) + slack

    return Curve(epsilon, delta, deltas)


_ORDERS = tuple(map(float, dp_rdp.DEFAULT_RDP_ORDERS))

# For small epsilons at small deltas. They take as long to compute as they are high.
_HIGHER_ORDERS = tuple(2.0**k for k in range(11, 17))


def rdp_curve(mechanisms: Sequence[Mechanism]) -> Curve:
    """The bound by RDP for all the mechanisms together."""
    events, relations = zip(*map(dp_event, mechanisms), strict=True)
    steps = sum(mechanism.steps for mechanism in mechanisms)

    @functools.cache
    def divergences(orders: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
        accountant = dp_rdp.RdpAccountant(orders, neighboring_relation=relations[0])
        with quiet():
            for event in events:
                accountant.compose(event)
        kept = accountant.orders
        # Rounding can make a small divergence too low, even negative, and that would count as zero.
        # A step's is a logarithm over order - 1, whose terms are as exact as lgamma(order + 1).
        off = np.maximum(1e-15, 2.0**-50 * special.gammaln(kept + 1))
        return kept, np.maximum(accountant.rdp, 0.0) + off * steps / (kept - 1)

    def best(convert: Callable[..., tuple[float, float]], at: float) -> float:
        bound, order = convert(*divergences(_ORDERS), at)
        if order == _ORDERS[-1]:  # the best order may be above all of them
            bound = min(bound, convert(*divergences(_HIGHER_ORDERS), at)[0])
        return float(bound)

    return Curve(
        functools.partial(best, dp_rdp.compute_epsilon),
        functools.partial(best, dp_rdp.compute_delta),
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Hides the log lines of dp-accounting about orders that it leaves out, which is sound."""
    logger = logging.getLogger("absl")

    def wanted(record: logging.LogRecord) -> bool:
        return "Excluding this order" not in str(record.msg)

    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)
