"""ε of a statement's mechanisms, by dp-accounting alone: other code than that which stated it.

Nothing here uses `jaxdp.accounting`. dp-accounting makes the distribution of a step by its own
code, composes and converts it. All its bounds are upper bounds on the true ε.
"""

import contextlib
import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import dp_accounting
import numpy as np
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from dp_accounting.rdp.rdp_privacy_accountant import (
    DEFAULT_RDP_ORDERS,
    RdpAccountant,
    compute_epsilon,
)
from scipy import optimize, special

from ...types import Accountant, Adjacency, Sampling
from .statement import MechanismFacts, Statement

# What a receiver may find in docs/design.md: which neighbours each sampling has a proof for.
SOUND: dict[tuple[Sampling, Adjacency], tuple[Accountant, ...]] = {
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

INTERVALS = tuple(10.0 ** (-k / 2) for k in range(8, 19))  # of the grid of losses: coarse is quick
DENSE_GRID, FEW_STEPS = 2**11, 10**5
LARGEST_GRID = 2**23  # points of a step or of all steps: half a minute
MOST_STEPS, MOST_SCHEDULED = 10**9, 10**7
ORDERS = tuple(map(float, DEFAULT_RDP_ORDERS))
HIGHER_ORDERS = tuple(2.0**k for k in range(11, 17))

# (r, e, V) of the two tables of noise, W, and δ₁, of the theorem in docs/design.md.
TABLES = ((3.9e-12, 7.0e-8, 2.45e-21), (1.85e-11, 1.72e-7, 8.0e-21))
MISSING = 1.3e-38
DELTA_1 = 1e-32


class NotKnown(ValueError):
    """A statement of something that can't be recomputed here."""


@dataclass(frozen=True)
class Charge:
    """What the randomness costs, by the theorem "Noise that is counted" of docs/design.md.

    Attributes:
      t: half of the ε that it adds.
      once: M·V.
      each: M·W + S + δ₁.
    """

    t: float = 0.0
    once: float = 0.0
    each: float = 0.0

    def delta(self, epsilon: float) -> float:
        """The part of δ that it takes at an ε, its own 2t included."""
        return self.once + (1 + math.exp(min(epsilon, 700.0))) * self.each

    def epsilon(self, delta: float, exact: Callable[[float], float]) -> float:
        """The least ε with ε = exact(δ') + 2t and e^t·δ' + `delta(ε)` = δ; infinite: none."""
        if self == Charge():
            return exact(delta)
        found = 0.0
        for _ in range(100):  # it rises: the larger ε, the less of δ is left
            left = (delta - self.delta(found)) * math.exp(-self.t)
            if left <= 0:
                return math.inf
            new = exact(left) + 2 * self.t
            if new <= found * (1 + 1e-9):
                return new
            found = new
        return math.inf


def charge_of(statement: Statement) -> Charge:
    """The charge for all draws of a statement, whichever of the two tables they come from."""
    drawn = [m for m in statement.mechanisms if m.steps and m.sampling.probability]
    draws = math.fsum(m.noise_draws_per_step * m.steps for m in drawn)
    distance = math.fsum(m.sampling.law_distance * m.steps for m in drawn)
    if draws == 0:
        return Charge()
    return Charge(
        max(_least_t(draws, *table) for table in TABLES),
        max(draws * beyond for _, _, beyond in TABLES),
        draws * MISSING + distance + DELTA_1,
    )


def _least_t(draws: float, r: float, e: float, beyond: float) -> float:
    """t at the best λ, which the theorem leaves free."""

    def t(log_lambda: float) -> float:
        at = math.exp(log_lambda)
        grown = draws * r**2 * math.exp(-(at + 2) * math.log1p(-e))
        return math.log(1 / DELTA_1) / at + (at + 1) / 2 * grown + 2 * draws * beyond

    best = optimize.minimize_scalar(
        t, bounds=(0.0, math.log(1e9)), method="bounded", options={"xatol": 1e-9}
    )
    return float(best.fun)


class Recomputed:
    """Bounds on ε of all mechanisms of a statement, if their noise were exactly Gaussian.

    Args:
      statement: of which only the facts about the mechanisms, and the adjacency, are used.

    Raises:
      NotKnown: for mechanisms that this module has no composition for.
    """

    def __init__(self, statement: Statement) -> None:
        mechanisms = [m for m in statement.mechanisms if m.steps and m.sampling.probability]
        samplings = {m.sampling.kind for m in mechanisms} or {"full_batch"}
        if len(samplings) > 1:
            raise NotKnown(f"the mechanisms are sampled in several ways ({', '.join(samplings)})")
        steps = sum(m.steps for m in mechanisms)
        if steps > MOST_STEPS:
            raise NotKnown(f"the mechanisms have {steps:,} steps, more than {MOST_STEPS:,}")
        self.sampling: Sampling = samplings.pop()
        self.adjacency = statement.adjacency
        self.charge = charge_of(statement)
        self.mechanisms = mechanisms
        self.steps = [(m, z, count) for m in mechanisms for z, count in _exposures(m) if count]
        self.count = sum(count for _, _, count in self.steps)
        self._plds: dict[float, PLDAccountant] = {}
        self._rdps: dict[tuple[float, ...], tuple[np.ndarray, np.ndarray]] = {}
        self.mu = math.inf
        if all(z > 0 for _, z, _ in self.steps):
            self.mu = math.hypot(*(math.sqrt(count) / z for _, z, count in self.steps))

    @property
    def amplified(self) -> bool:
        """Whether sampling makes the guarantee stronger than that of Gaussians alone."""
        certain = all(m.sampling.probability == 1 for m, _, _ in self.steps)
        return self.sampling in ("poisson", "fixed_size") and not certain

    def bounds(self, accountant: Accountant, delta: float, stated: float) -> Iterator[float]:
        """Upper bounds on ε, the noise's charge included, by one way after the other.

        All of them hold. Where one is close to the stated ε, the caller needs no more of them.

        Args:
          accountant: which one stated it.
          delta: δ.
          stated: the ε that was stated, for which grids are made finer.
        """
        with_charge = functools.partial(self.charge.epsilon, delta)
        if accountant == "pld" or self.sampling == "fixed_size":
            yield with_charge(self._gaussian)
        if accountant == "pld" and not self.amplified:
            return
        intervals = [i for i in INTERVALS if self._fits(i)] if accountant == "pld" else []
        for interval in intervals[:1]:
            yield with_charge(self._by_pld(interval))
        if "rdp" in SOUND[self.sampling, self.adjacency] and self.mu < math.inf:
            yield with_charge(self._by_rdp)
        if accountant == "pld":
            yield with_charge(self._participation)
        for coarser, interval in itertools.pairwise(intervals):
            above = with_charge(self._by_pld(coarser)) - stated
            # A step's loss is rounded by an interval at most, to either side with equal means: that
            # spreads their sum by half the root of the number of steps of intervals, or less.
            if not 0 < above <= 4 * coarser * math.sqrt(self.count):
                return
            yield with_charge(self._by_pld(interval))

    def _gaussian(self, delta: float) -> float:
        """Of the one Gaussian that all compose to, without amplification, in closed form."""
        if self.mu == 0:
            return 0.0
        if self.mu == math.inf:
            return math.inf
        return gaussian_epsilon(self.mu, delta)

    def _participation(self, delta: float) -> float:
        """0 if the record is in no batch at all but with probability δ."""
        nowhere = math.fsum(
            count * math.log1p(-min(m.sampling.probability, 1 - 1e-16))
            for m, _, count in self.steps
        )
        return 0.0 if delta >= -math.expm1(nowhere) else math.inf

    def _by_rdp(self, delta: float) -> float:
        found, order = compute_epsilon(*self._divergences(ORDERS), delta)
        if order == ORDERS[-1]:  # the best one may be above all of them
            found = min(found, compute_epsilon(*self._divergences(HIGHER_ORDERS), delta)[0])
        return float(found)

    def _divergences(self, orders: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Orders, and the Rényi divergences of all steps."""
        if orders not in self._rdps:
            relations = dp_accounting.NeighboringRelation
            relation = relations.ADD_OR_REMOVE_ONE
            if self.sampling == "fixed_size":
                relation = relations.REPLACE_ONE
            elif self.sampling == "poisson" and self.adjacency == "zero_out":
                relation = relations.REPLACE_SPECIAL
            accountant = RdpAccountant(orders, relation)
            with _quiet():
                for mechanism, z, count in self.steps:
                    accountant.compose(self._event(mechanism, z), count)
            kept = accountant.orders
            # A step's is a logarithm, over order - 1, of terms as exact as lgamma(order + 1). What
            # is rounded to 0 or below would count for nothing.
            off = 2.0**-50 * np.maximum(1.0, special.gammaln(kept + 1)) * self.count / (kept - 1)
            self._rdps[orders] = kept, np.maximum(accountant.rdp, 0.0) + off
        return self._rdps[orders]

    def _by_pld(self, interval: float) -> Callable[[float], float]:
        if interval not in self._plds:
            relations = dp_accounting.NeighboringRelation
            replaced = self.adjacency == "replace_one"
            relation = relations.REPLACE_ONE if replaced else relations.ADD_OR_REMOVE_ONE
            accountant = PLDAccountant(relation, interval)
            for mechanism, z, count in self.steps:
                accountant.compose(self._event(mechanism, self._std(mechanism, z)), count)
            self._plds[interval] = accountant
        return self._plds[interval].get_epsilon

    def _std(self, mechanism: MechanismFacts, z: float) -> float:
        """The noise for the PLD of Poisson sampling: over C where that doubles C by itself.

        Under replace-one the sum without the record is compared with sums that have it. If
        examples are clipped, z is the noise over 2C. The clipped mean of a batch unit moves by 2C.
        """
        doubled = self.adjacency == "replace_one" and mechanism.clipping.unit == "example"
        return 2 * z if doubled else z

    def _event(self, mechanism: MechanismFacts, noise: float) -> dp_accounting.DpEvent:
        event = dp_accounting.GaussianDpEvent(noise)
        sampling = mechanism.sampling
        if self.sampling == "poisson":
            return dp_accounting.PoissonSampledDpEvent(sampling.probability, event)
        if self.sampling == "fixed_size":
            return dp_accounting.SampledWithoutReplacementDpEvent(
                sampling.num_examples, round(sampling.expected_batch_size), event
            )
        return event

    def _fits(self, interval: float) -> bool:
        """Whether the grids are small enough: dp-accounting makes those of any size.

        But for noise of mass e^-50, the loss of a step without sampling is at most 1/2s² + 10/s;
        with it, log(1 - q + q·e^that), and at least log(1 - q). The losses of all steps spread by
        their mean and some standard deviations; a step's variance is at most q²(exp(1/s²) - 1).
        """
        variance, widest, most = 0.0, 0.0, 0.0
        for mechanism, z, count in self.steps:
            s, q = self._std(mechanism, z), min(mechanism.sampling.probability, 1 - 1e-16)
            if s == 0:
                return False
            unsampled = 0.5 / s**2 + 10 / s
            width = math.log1p(q * math.expm1(min(unsampled, 700.0))) - math.log1p(-q)
            width = 2 * min(width, 2 * unsampled)
            widest, most = max(widest, width), most + count * width
            variance += count * min(q**2 * math.expm1(min(1 / s**2, 700.0)), q * width**2)
        spread = min(variance + 20 * math.sqrt(variance), most)
        # It composes grids with few points point by point, and so often as there are steps.
        enough = widest / interval >= DENSE_GRID or self.count <= FEW_STEPS
        return enough and max(widest, spread) / interval <= LARGEST_GRID


def gaussian_epsilon(mu: float, delta: float) -> float:
    """ε of the Gaussian mechanism with sensitivity over standard deviation `mu`, finite and > 0.

    Infinite, which is sound, where dp-accounting finds none.
    """
    with np.errstate(all="ignore"):  # it takes logarithms of 0 on its way
        try:
            return float(dp_accounting.get_epsilon_gaussian(1 / mu, delta))
        except (RuntimeError, OverflowError):
            return math.inf


def _exposures(mechanism: MechanismFacts) -> Iterator[tuple[float, int]]:
    """(z, count): how often one record may be used, and with which noise."""
    stretches, sampling = stretches_of(mechanism), mechanism.sampling
    if sampling.kind != "shuffled":
        yield from stretches
        return
    # A record is in one batch of every epoch that was begun: in that with the least noise.
    per_epoch = math.ceil(sampling.num_examples / round(sampling.expected_batch_size))
    if len(stretches) == 1:
        yield stretches[0][0], math.ceil(mechanism.steps / per_epoch)
        return
    if mechanism.steps > MOST_SCHEDULED:
        raise NotKnown(f"the noise of {mechanism.steps:,} shuffled steps has a schedule")
    by_step = [z for z, count in stretches for _ in range(count)]
    for start in range(0, len(by_step), per_epoch):
        yield min(by_step[start : start + per_epoch]), 1


def stretches_of(mechanism: MechanismFacts) -> list[tuple[float, int]]:
    """The noise multipliers of a mechanism with the numbers of their steps."""
    if isinstance(mechanism.noise_multiplier, tuple):
        return [(part.noise_multiplier, part.steps) for part in mechanism.noise_multiplier]
    return [(mechanism.noise_multiplier, mechanism.steps)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the log lines of dp-accounting about orders that it leaves out, which is sound."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
