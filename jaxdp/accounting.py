"""What a DP-SGD run guarantees: plain data in, epsilon and delta out.

A `Mechanism` describes a run; `epsilon`, `delta` and `solve_noise_multiplier` account for it. Only
combinations with a sound proof run, all others raise a ValueError that names the nearest one:

    sampling     adjacency                   accounting
    poisson      add_remove, zero_out        PLD or RDP of the sampled Gaussian
    poisson      replace_one                 PLD of the replace-one pair; no RDP
    shuffled     replace_one, zero_out       one Gaussian per epoch begun, no amplification
    full_batch   all three                   one Gaussian per step
    fixed_size   replace_one                 RDP, and never more than without amplification

dp-accounting (https://github.com/google/differential-privacy) does the composing and converting;
`dp_event` gives what it is given, so that anybody can check.
"""

from __future__ import annotations

import functools
import logging
import math
import operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import dp_accounting
import numpy as np
from dp_accounting import rdp as dp_rdp

from . import gdp, pld

Sampling = Literal["poisson", "shuffled", "fixed_size", "full_batch"]
Adjacency = Literal["add_remove", "replace_one", "zero_out"]
Unit = Literal["example", "batch"]
Accountant = Literal["pld", "rdp"]
Schedule = tuple[tuple[float, int], ...]

LARGEST_NOISE_MULTIPLIER = 1e6

_ACCOUNTANTS: dict[tuple[str, str], tuple[Accountant, ...]] = {
    ("poisson", "add_remove"): ("pld", "rdp"),
    ("poisson", "zero_out"): ("pld", "rdp"),
    ("poisson", "replace_one"): ("pld",),
    ("shuffled", "replace_one"): ("pld", "rdp"),
    ("shuffled", "zero_out"): ("pld", "rdp"),
    ("full_batch", "add_remove"): ("pld", "rdp"),
    ("full_batch", "replace_one"): ("pld", "rdp"),
    ("full_batch", "zero_out"): ("pld", "rdp"),
    ("fixed_size", "replace_one"): ("rdp",),
}
_REFUSED = {
    ("shuffled", "add_remove"): (
        "one record more or less shifts every later batch, so the steps do not compose as the "
        'accounting assumes: use adjacency="replace_one" or "zero_out", or sampling="poisson"'
    ),
    ("fixed_size", "add_remove"): (
        "a batch of fixed size cannot have one record more or less: use "
        'adjacency="replace_one", or sampling="poisson"'
    ),
    ("fixed_size", "zero_out"): (
        'no amplification bound is known for it: use adjacency="replace_one", which covers it, '
        'or sampling="poisson"'
    ),
}


def accountants(sampling: Sampling, adjacency: Adjacency) -> tuple[Accountant, ...]:
    """The accountants that are sound for a combination, the tightest first.

    Raises:
      ValueError: if there is none, with the reason and the nearest sound choice.
    """
    samplings = sorted({s for s, _ in _ACCOUNTANTS})
    adjacencies = sorted({a for _, a in _ACCOUNTANTS})
    if sampling not in samplings:
        raise ValueError(f"sampling is {sampling!r}: give one of {', '.join(samplings)}")
    if adjacency not in adjacencies:
        raise ValueError(f"adjacency is {adjacency!r}: give one of {', '.join(adjacencies)}")
    if (sampling, adjacency) in _REFUSED:
        raise ValueError(
            f"sampling={sampling!r} with adjacency={adjacency!r} has no sound accounting: "
            + _REFUSED[sampling, adjacency]
        )
    return _ACCOUNTANTS[sampling, adjacency]


@dataclass(frozen=True)
class Mechanism:
    """A DP-SGD run as plain data.

    Attributes:
      noise_multiplier: z = noise standard deviation / sensitivity, the sensitivity taken under
        `adjacency` (clipping norm C: individual C, or 2C for replace_one; batch units 2C). For a
        schedule, ((z, count), ...): z for the first `count` steps, then the next. A schedule may
        depend on the step only, never on private numbers.
      steps: updates released, whole.
      sampling_probability: q = expected batch size / N.
      sampling: how a step's batch is chosen.
      adjacency: which data sets count as neighbours.
      unit: what is clipped, an example's gradient or a batch unit's mean gradient.
      num_examples: N; needed for "shuffled" and "fixed_size".
    """

    noise_multiplier: float | Schedule
    steps: int
    sampling_probability: float
    sampling: Sampling = "poisson"
    adjacency: Adjacency = "add_remove"
    unit: Unit = "example"
    num_examples: int | None = None

    def __post_init__(self) -> None:
        steps = _whole("steps", self.steps, 0)
        object.__setattr__(self, "steps", steps)
        q = self.sampling_probability
        if not 0 <= q <= 1:
            raise ValueError(
                f"sampling_probability is {q}: it is expected batch size / number of examples, "
                "between 0 and 1"
            )
        if self.unit not in ("example", "batch"):
            raise ValueError(f"unit is {self.unit!r}: give 'example' or 'batch'")
        accountants(self.sampling, self.adjacency)
        if self.num_examples is not None:
            object.__setattr__(self, "num_examples", _whole("num_examples", self.num_examples, 1))
        if self.sampling == "full_batch" and q != 1:
            raise ValueError(f"sampling_probability is {q} for a full batch: it must be 1")
        if self.sampling in ("shuffled", "fixed_size") and q > 0:
            _batch_size(self)
        for z, _ in self.schedule:
            if not 0 <= z < math.inf:
                raise ValueError(f"noise_multiplier is {z}: give a finite number of at least 0")
        if sum(count for _, count in self.schedule) != steps:
            raise ValueError(
                f"the schedule {self.noise_multiplier} is not for {steps} steps: its counts must "
                "add up to steps"
            )

    @property
    def schedule(self) -> Schedule:
        """((z, count), ...) also where z is constant."""
        if isinstance(self.noise_multiplier, tuple):
            return tuple((float(z), _whole("count", n, 0)) for z, n in self.noise_multiplier)
        return ((float(self.noise_multiplier), self.steps),)


def epsilon(mechanism: Mechanism, delta: float, accountant: Accountant = "pld") -> float:
    """An upper bound on epsilon at `delta`: infinite without noise, 0 without steps or sampling.

    Args:
      mechanism: the run.
      delta: between 0 and 1. A warning is given where it is 1/N or more.
      accountant: "pld" is tight; "rdp" is looser, and the only one for fixed-size batches.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}: it must lie between 0 and 1, both excluded")
    if mechanism.num_examples is not None and delta >= 1 / mechanism.num_examples:
        warnings.warn(
            f"delta is {delta}, at least 1/N = {1 / mechanism.num_examples:.3g}: publishing one "
            "random record whole would satisfy it. Use less, as N^-1.1 = "
            f"{mechanism.num_examples**-1.1:.3g}",
            stacklevel=2,
        )
    return min(curve.epsilon(delta) for curve in _curves(mechanism, accountant))


def delta(mechanism: Mechanism, epsilon: float, accountant: Accountant = "pld") -> float:
    """An upper bound on delta at `epsilon`."""
    if not epsilon >= 0:
        raise ValueError(f"epsilon is {epsilon}: it must be at least 0")
    return min(curve.delta(epsilon) for curve in _curves(mechanism, accountant))


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
    """The least constant noise multiplier (six digits, rounded up) whose epsilon meets the target.

    The result is checked again: `epsilon` of it is at most `target_epsilon`.

    Raises:
      ValueError: if no noise multiplier up to a million meets the target.
    """
    if not 0 < target_epsilon < math.inf:
        raise ValueError(f"target_epsilon is {target_epsilon}: give a finite number above 0")
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}: it must lie between 0 and 1, both excluded")
    run = Mechanism(
        0.0, steps, sampling_probability, sampling, adjacency, unit, num_examples=num_examples
    )

    def epsilon_of(z: float, how: Accountant = accountant) -> float:
        return min(curve.epsilon(delta) for curve in _curves(replace(run, noise_multiplier=z), how))

    if epsilon_of(0.0) <= target_epsilon:
        return 0.0
    # Sampling only helps, so the plain Gaussian's z is enough; RDP brings it near the answer.
    mu = gaussian_mu(replace(run, noise_multiplier=1.0))
    start = min(mu / gdp.mu_from_epsilon(target_epsilon, delta), LARGEST_NOISE_MULTIPLIER)
    if accountant == "pld" and "rdp" in accountants(sampling, adjacency):
        start = _least_noise(lambda z: epsilon_of(z, "rdp"), target_epsilon, start, 1e-2)
    z = _least_noise(epsilon_of, target_epsilon, start, 2e-5)
    if z > LARGEST_NOISE_MULTIPLIER:
        raise ValueError(
            f"no noise multiplier up to {LARGEST_NOISE_MULTIPLIER:.0e} gives epsilon "
            f"{target_epsilon} at delta {delta} for {steps} steps at sampling probability "
            f"{sampling_probability:.3g}: take fewer steps, a smaller batch size, a larger epsilon "
            "or a larger delta"
        )
    return z


def dp_event(
    mechanism: Mechanism,
) -> tuple[dp_accounting.DpEvent, dp_accounting.NeighboringRelation]:
    """The run as dp-accounting sees it, and the neighbouring relation to account it under.

    For replace_one with Poisson sampling the event's noise multiplier is std / C for individual
    clipping (z = std / 2C): dp-accounting's PLD accountant doubles the sensitivity itself. For
    batch units it is std / 2C = z, which is sound and loose. Its RDP accountant does not double.
    """
    relations = dp_accounting.NeighboringRelation
    relation = relations.ADD_OR_REMOVE_ONE
    gaussian = dp_accounting.GaussianDpEvent
    events = []
    if mechanism.sampling == "poisson":
        if mechanism.adjacency == "replace_one":
            relation = relations.REPLACE_ONE
        elif mechanism.adjacency == "zero_out":
            relation = relations.REPLACE_SPECIAL
    elif mechanism.sampling == "fixed_size":
        relation = relations.REPLACE_ONE
    for z, count in _exposures(mechanism):
        event: dp_accounting.DpEvent = gaussian(z * _event_factor(mechanism))
        if z == 0:
            event = dp_accounting.NonPrivateDpEvent()
        elif mechanism.sampling == "poisson":
            event = dp_accounting.PoissonSampledDpEvent(mechanism.sampling_probability, event)
        elif mechanism.sampling == "fixed_size":
            event = dp_accounting.SampledWithoutReplacementDpEvent(
                mechanism.num_examples, _batch_size(mechanism), event
            )
        events.append(dp_accounting.SelfComposedDpEvent(event, count))
    if not events:
        return dp_accounting.NoOpDpEvent(), relation
    return events[0] if len(events) == 1 else dp_accounting.ComposedDpEvent(events), relation


def batches_per_epoch(num_examples: int, batch_size: int) -> int:
    """How many batches an epoch of shuffled data has: the last one may be short."""
    return -(-num_examples // batch_size)


def epochs_begun(mechanism: Mechanism) -> int:
    """How many shuffled epochs the steps have begun: every record may be in each of them once."""
    if mechanism.num_examples is None or mechanism.sampling_probability == 0:
        return 0
    return -(-mechanism.steps // batches_per_epoch(mechanism.num_examples, _batch_size(mechanism)))


def gaussian_mu(mechanism: Mechanism) -> float:
    """mu of the run without amplification by sampling: exact where there is none to gain."""
    exposures = _exposures(mechanism)
    if any(z == 0 for z, _ in exposures):
        return math.inf
    return math.sqrt(math.fsum(count / z**2 for z, count in exposures))


def _exposures(mechanism: Mechanism) -> list[tuple[float, int]]:
    """(z, count) pairs: how often one record may take part in a release, and with which noise."""
    if mechanism.sampling_probability == 0:
        return []
    pairs = [(z, count) for z, count in mechanism.schedule if count]
    if mechanism.sampling != "shuffled" or not pairs:
        return pairs
    epochs = epochs_begun(mechanism)
    if len(pairs) == 1:
        return [(pairs[0][0], epochs)]
    # A record is in some batch of each epoch, at worst in the one with the least noise.
    per_epoch = batches_per_epoch(mechanism.num_examples or 1, _batch_size(mechanism))
    noise = np.full(epochs * per_epoch, math.inf)
    noise[: mechanism.steps] = np.repeat([z for z, _ in pairs], [count for _, count in pairs])
    least, counts = np.unique(noise.reshape(epochs, per_epoch).min(axis=1), return_counts=True)
    return [(float(z), int(count)) for z, count in zip(least, counts, strict=True)]


def _event_factor(mechanism: Mechanism) -> float:
    doubled = mechanism.sampling == "poisson" and mechanism.adjacency == "replace_one"
    return 2.0 if doubled and mechanism.unit == "example" else 1.0


@dataclass(frozen=True)
class _Curve:
    """A sound epsilon for every delta, and the other way round."""

    epsilon: Callable[[float], float]
    delta: Callable[[float], float]


_NO_BOUND = _Curve(lambda delta: math.inf, lambda epsilon: 1.0)


@functools.lru_cache(maxsize=4)
def _curves(mechanism: Mechanism, accountant: Accountant) -> tuple[_Curve, ...]:
    """Privacy curves that all hold; the guarantee is the least of them."""
    allowed = accountants(mechanism.sampling, mechanism.adjacency)
    if accountant not in ("pld", "rdp"):
        raise ValueError(f"accountant is {accountant!r}: give 'pld' or 'rdp'")
    if accountant not in allowed:
        reason = (
            "the RDP accountant has no bound for it (it would count replace-one as add/remove)"
            if accountant == "rdp"
            else "no privacy loss distribution is known for it"
        )
        raise ValueError(
            f"accountant={accountant!r} with sampling={mechanism.sampling!r} and "
            f"adjacency={mechanism.adjacency!r}: {reason}. Use accountant={allowed[0]!r}"
        )
    exposures = _exposures(mechanism)
    if not exposures:
        return (_Curve(lambda delta: 0.0, lambda epsilon: 0.0),)
    if any(z == 0 for z, _ in exposures):
        return (_NO_BOUND,)
    mu = gaussian_mu(mechanism)
    unamplified = _Curve(
        lambda delta: gdp.epsilon_from_mu(mu, delta), lambda epsilon: gdp.delta_from_mu(mu, epsilon)
    )
    amplified = mechanism.sampling_probability < 1 and mechanism.sampling != "shuffled"
    if accountant == "rdp":
        # Sampling without replacement is bounded loosely: it can exceed the plain Gaussian.
        bounds = (unamplified,) if mechanism.sampling == "fixed_size" else ()
        return (_rdp_curve(mechanism), *bounds)
    if not amplified:
        return (unamplified,)  # the composition of Gaussians is a Gaussian, exactly
    return (unamplified, _pld_curve(mechanism, exposures))


def _pld_curve(mechanism: Mechanism, exposures: list[tuple[float, int]]) -> _Curve:
    factor = _event_factor(mechanism)
    composed = pld.composed_pld(
        [(factor * z, count) for z, count in exposures],
        mechanism.sampling_probability,
        replace=mechanism.adjacency == "replace_one",
    )
    slack = pld.roundoff(mechanism.steps)
    # Beyond the grid of the PLD, and where delta is near its rounding, RDP is the better bound.
    has_rdp = "rdp" in accountants(mechanism.sampling, mechanism.adjacency)
    fallback = functools.cache(lambda: _rdp_curve(mechanism)) if has_rdp else lambda: _NO_BOUND

    def epsilon(delta: float) -> float:
        bound = math.inf
        if composed is not None and delta > slack:
            bound = float(composed.get_epsilon_for_delta(delta - slack))
        return (
            bound
            if delta > 100 * slack and bound < math.inf
            else min(bound, fallback().epsilon(delta))
        )

    def delta(epsilon: float) -> float:
        bound = 1.0
        if composed is not None:
            bound = min(1.0, max(0.0, float(composed.get_delta_for_epsilon(epsilon))) + slack)
        return bound if 100 * slack < bound < 1 else min(bound, fallback().delta(epsilon))

    return _Curve(epsilon, delta)


def _rdp_curve(mechanism: Mechanism) -> _Curve:
    event, relation = dp_event(mechanism)
    accountant = dp_rdp.RdpAccountant(neighboring_relation=relation)
    with _quiet():
        accountant.compose(event)
    orders = accountant.orders
    # Rounding may leave a divergence a little low, even negative, which would count as none.
    rdp = np.maximum(accountant.rdp, 0) + mechanism.steps * 1e-15 / (orders - 1)
    return _Curve(
        lambda delta: float(dp_rdp.compute_epsilon(orders, rdp, delta)[0]),
        lambda epsilon: float(dp_rdp.compute_delta(orders, rdp, epsilon)[0]),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without dp-accounting's warnings of orders that it leaves out, which is sound."""
    logger = logging.getLogger("absl")
    drop = lambda record: "Excluding this order" not in str(record.msg)
    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)


def _least_noise(
    epsilon_of: Callable[[float], float], target: float, start: float, tolerance: float
) -> float:
    """The least z, of six digits, with epsilon_of(z) <= target, to the given tolerance in epsilon.

    log epsilon is nearly linear in log z: secants, kept inside a bracket, take about five steps.
    Returns more than LARGEST_NOISE_MULTIPLIER where that is not enough.
    """

    def excess(z: float) -> float:
        return math.log(max(epsilon_of(z), 1e-3 * target) / target)

    z = _round_up(start)
    low, high = 0.0, math.inf  # epsilon is above the target at low, and not at high
    points: list[tuple[float, float]] = []
    for _ in range(100):
        value = excess(z)
        if value <= 0:
            high = z
        else:
            low = z
        if (high < math.inf and -tolerance <= value <= 0) or high <= low * (1 + 2e-6):
            break
        if low > LARGEST_NOISE_MULTIPLIER:
            return math.inf
        points = [*points[-1:], (math.log(z), value)]
        slope = -1.0
        if len(points) == 2 and points[0][1] != points[1][1] and math.isfinite(value):
            slope = (points[1][1] - points[0][1]) / (points[1][0] - points[0][0])
        step = -(value + tolerance / 2) / min(slope, -0.1)
        guess = _round_up(z * math.exp(min(max(step, -0.3), 0.7)))
        if not low < guess < high:
            guess = _round_up(math.sqrt(max(low, high / 4) * min(high, 4 * low or high)))
            if guess >= high:
                break
        z = guess
    return high


def _round_up(z: float) -> float:
    """z rounded up to six significant digits."""
    digits = 5 - math.floor(math.log10(z))
    rounded = round(z, digits)
    return rounded if rounded >= z else round(z + 10.0**-digits, digits)


def _batch_size(mechanism: Mechanism) -> int:
    n = mechanism.num_examples
    if n is None:
        raise ValueError(f"sampling={mechanism.sampling!r} needs num_examples: give N")
    size = mechanism.sampling_probability * n
    if round(size) < 1 or abs(size - round(size)) > 1e-6 * size:
        raise ValueError(
            f"sampling_probability {mechanism.sampling_probability} of {n} examples is a batch of "
            f"{size}: sampling={mechanism.sampling!r} needs a whole batch size"
        )
    return round(size)


def _whole(name: str, value: int, least: int) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ValueError(
            f"{name} is {value!r}: give a whole number (round up the steps of a broken epoch)"
        ) from None
    if number < least:
        raise ValueError(f"{name} is {number}: give a whole number of at least {least}")
    return number
