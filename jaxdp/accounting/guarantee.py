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
from dataclasses import dataclass

import numpy as np
from dp_accounting.rdp import rdp_privacy_accountant as dp_rdp

from ..types import Accountant
from . import gdp, pld
from .mechanism import Mechanism, accountants, dp_event, event_factor

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
