"""The white-box audit: what an attacker who sees every release can tell, measured.

The audit makes the user's own release many times, each with fresh keys, half of them with a canary
in the batch and half without. An attacker who knows everything but the noise then tells them apart.
If it is wrong less often than the plan allows, something is broken: the noise, its keys, the
clipping, the mask, or the gradients.

Who sees the releases r can do no better than by the likelihood ratio. For Gaussian noise that is a
linear function of r, along the shift that the canary makes. The audit finds this function from
releases that it does not count afterwards:

1. The shift: releases with and without the canary, under equal keys, so that the noise cancels.
2. For every parameter leaf, the product of the release with the shift is a feature. Pilot releases
   give the features' covariance S; the score of a release is the features times S⁻¹·(their shift).
   So noise that is too small in one leaf counts, and noise that two steps share cancels.
3. The same pilot releases choose the thresholds of the score.

Then fresh releases are counted: false alarms and misses of that fixed rule. `bounds` makes lower
bounds of them. They hold for any mechanism: no step needs the noise to be Gaussian.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._distribution import needed_by
from ..accounting import gdp
from ..dpsgd.plan import Plan
from ..types import PyTree
from . import bounds, canaries
from .attackers import Attackers
from .bounds import Errors
from .canaries import Grads
from .harness import Harness

WIDTH = 80  # of what is printed

PILOTS = 500  # releases of either kind, at least


@dataclass(frozen=True)
class CanaryAudit:
    """What an attacker could tell of one canary.

    Attributes:
      canary: its name.
      mu: lower bound on μ of one release.
      epsilon: lower bound on ε of one release, at the audit's δ.
      errors: how often attackers with different thresholds were wrong. The two bounds are of single
        ones among them, which were chosen before.
    """

    canary: str
    mu: float
    epsilon: float
    errors: Errors = field(repr=False)


@dataclass(frozen=True)
class StepAudit:
    """The result of `audit_step`.

    All bounds hold together with probability `confidence`, whatever the step does: if the claim is
    true, none of them is above it, but for a chance of 1 - `confidence`.

    Attributes:
      claimed_mu: μ that the plan claims for a release that surely holds the record: 1/z.
      claimed_epsilon: ε of that at `delta`.
      delta: δ.
      confidence: the chance that all bounds hold.
      releases: how many were made and counted for each canary.
      steps: how many consecutive releases an attacker saw at once.
      canaries: what could be told of each.
    """

    claimed_mu: float
    claimed_epsilon: float
    delta: float
    confidence: float
    releases: int
    steps: int
    canaries: tuple[CanaryAudit, ...]

    @property
    def mu(self) -> float:
        """The largest lower bound on μ."""
        return max(one.mu for one in self.canaries)

    @property
    def epsilon(self) -> float:
        """The largest lower bound on ε at δ."""
        return max(one.epsilon for one in self.canaries)

    @property
    def found(self) -> tuple[str, ...]:
        """The canaries for which a bound is above the claim: a bug."""
        return tuple(
            one.canary
            for one in self.canaries
            if one.mu > self.claimed_mu or one.epsilon > self.claimed_epsilon
        )

    def __str__(self) -> str:
        lines = [
            f"{'canary':<12} {'mu, at least':>14} {'epsilon, at least':>18}",
            *(f"{one.canary:<12} {one.mu:>14.3f} {one.epsilon:>18.3f}" for one in self.canaries),
            f"{'claimed':<12} {self.claimed_mu:>14.3f} {self.claimed_epsilon:>18.3f}",
            f"Of one release that holds the record, at delta = {self.delta:g}. {self.releases:,} "
            "releases were",
            f"counted for each canary; all bounds hold with a confidence of {self.confidence:g}.",
        ]
        verdict = "No bound is above the claim."
        if self.found:
            verdict = f"NOT AS PRIVATE AS CLAIMED: found by {', '.join(self.found)}."
        return "\n".join([*lines, *textwrap.wrap(verdict, WIDTH)])

    def plot(self, path: str | Path) -> None:
        """Draws the claimed trade-off curve, and what attackers of the strongest canary reached.

        Args:
          path: of the picture. Its ending is the format: .png, .svg, .pdf.
        """
        with needed_by("the plot of an audit", "train"):
            from . import figure
        best = max(self.canaries, key=lambda one: one.mu)
        told = f"{best.canary}, μ ≥ {best.mu:.3g}"
        figure.draw(self.claimed_mu, told, best.errors, path)


def audit_step(
    plan: Plan,
    privatizer: optax.GradientTransformation,
    grads: Grads,
    params: PyTree,
    batch: PyTree,
    *,
    which: Sequence[str] | None = None,
    releases: int = 20_000,
    steps: int = 2,
    delta: float | None = None,
    confidence: float = 0.95,
    seed: int | None = None,
) -> StepAudit:
    """Measures how private the releases of a training step are, and compares with the claim.

    It makes the release of the step as it is, `privatizer.update(grads(params, batch, mask), state,
    params)`, compiled, many times with fresh keys, with and without a record made for it.

    A bound below the claim proves nothing about other records, other batches and other attackers.
    One above the claim is a bug, but for the stated chance. What is measured is one release that
    surely holds the record: sampling and composition are the accountant's (`plan.epsilon()`).

    Args:
      plan: what is claimed.
      privatizer: `jaxdp.privatize(plan)`, or what you have in its place: an Optax transformation
        with typed keys (`jax.random.key`) in its state. What its `update` returns is the release.
        Leave out what comes after the noise, such as Adam: it would hide much from the attacker.
      grads: the function `(params, batch, mask) -> gradients` of the step: what `per_example_grads`
        returns, or your own.
      params: the parameters of the step.
      batch: arrays `[B, ...]` of B records, as `grads` takes them; with batch units `[units,
        capacity, ...]`. At least 4; the last quarter becomes padding.
      which: names of canaries, of `jaxdp.audit.CANARIES`. None: all that suit the batch.
      releases: how many are made and counted for each canary.
      steps: 2: the attacker sees two releases of one run, and the canary is in the first. So keys
        that are used again are found. 1: it sees one.
      delta: δ of the bound on ε. None: the plan's.
      confidence: the chance that all bounds hold together.
      seed: repeats an audit. None: keys from the operating system.

    Raises:
      ValueError, TypeError: for arguments that make no sense, a plan without noise, and a state
        without keys.

    References:
      Jagielski et al. 2020 (arXiv 2006.07709) and Nasr et al. 2023 (arXiv 2302.07956): audits with
      canaries. Dong et al. 2019 (arXiv 1905.02383): μ from two errors.

    Example:
      >>> audit = audit_step(plan, jaxdp.privatize(plan), grads, params, batch)  # doctest: +SKIP
      >>> audit.mu <= audit.claimed_mu  # doctest: +SKIP
      True
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"plan is a {type(plan).__name__}: pass the jaxdp.Plan of the step")
    if not (hasattr(privatizer, "init") and hasattr(privatizer, "update")):
        given = type(privatizer).__name__
        raise TypeError(
            f"privatizer is a {given}: give jaxdp.privatize(plan), or your own in Optax"
        )
    if not callable(grads):
        raise TypeError(
            f"grads is a {type(grads).__name__}: give (params, batch, mask) -> gradients"
        )
    _check_arrays(params, batch)
    z = float(plan.noise_multipliers()[0])
    if z == 0:
        raise ValueError(
            "the plan's noise multiplier is 0: it claims nothing that can be audited. Give it an "
            "epsilon, or a noise_multiplier above 0"
        )
    if not (seed is None or (isinstance(seed, int) and seed >= 0)):
        raise ValueError(f"seed is {seed!r}: give a whole number of at least 0, or None")
    if steps not in (1, 2):
        raise ValueError(f"steps is {steps!r}: give 1 or 2, the releases that the attacker sees")
    steps = min(steps, plan.steps)
    if not (isinstance(releases, int) and releases >= 100):
        raise ValueError(f"releases is {releases!r}: give a whole number of at least 100")
    bounds.check_share("confidence", confidence, "as 0.95")
    if confidence < 0.5:  # `mu_bounds` is proved for a significance of 1/4 at most
        raise ValueError(f"confidence is {confidence}: give at least 0.5")
    delta = plan.delta if delta is None else delta
    bounds.check_share("delta", delta, "as 1e-5")
    chosen = _chosen(which, canaries.names_for(plan, grads, params, batch))
    # Two numbers for every canary.
    significance = (1 - confidence) / (2 * len(chosen))
    harness = Harness(plan, privatizer, grads, params, batch, steps, np.random.default_rng(seed))
    found = tuple(audit_with(harness, name, releases // 2, delta, significance) for name in chosen)
    return StepAudit(
        claimed_mu=1 / z,
        claimed_epsilon=gdp.epsilon_from_mu(1 / z, delta),
        delta=delta,
        confidence=confidence,
        releases=2 * (releases // 2),
        steps=steps,
        canaries=found,
    )


def audit_with(
    harness: Harness, name: str, each: int, delta: float, significance: float
) -> CanaryAudit:
    """Audits with one canary; each of its two bounds is wrong with that chance at most."""
    canary, shift = harness.canary(name)
    pilot = harness.features(canary, shift, max(PILOTS, each // 5))
    attackers = Attackers(shift.of_features, pilot)
    mu = lambda errors: bounds.mu_bounds(errors, significance)
    epsilon = lambda errors: bounds.epsilon_bounds(errors, delta, significance)
    by_mu, by_epsilon = attackers.best(mu, each), attackers.best(epsilon, each)
    errors = attackers.errors(harness.features(canary, shift, each))
    return CanaryAudit(name, float(mu(errors)[by_mu]), float(epsilon(errors)[by_epsilon]), errors)


def _check_arrays(params: PyTree, batch: PyTree) -> None:
    """Raises a ValueError if one of the two holds no arrays, or a number that is not finite."""
    for name, tree in (("params", params), ("batch", batch)):
        leaves = jax.tree.leaves(tree)
        if not leaves or not all(hasattr(leaf, "dtype") for leaf in leaves):
            given = type(tree).__name__
            raise ValueError(f"{name} is a {given} without arrays in it: give a pytree of arrays")
        numbers = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
        if not all(bool(jnp.isfinite(leaf).all()) for leaf in numbers):
            raise ValueError(
                f"{name} has NaN or infinite numbers, under which no canary shows: give finite ones"
            )


def _chosen(which: Sequence[str] | None, fitting: tuple[str, ...]) -> tuple[str, ...]:
    if which is None:
        return fitting
    names = (which,) if isinstance(which, str) else tuple(which)
    for name in names:
        if name not in fitting:
            why = (
                " (the others need floating numbers, or gradients of examples)"
                if name in canaries.CANARIES
                else ""
            )
            raise ValueError(
                f"the canary is {name!r}: for this step there are {', '.join(fitting)}{why}"
            )
    if not names:
        raise ValueError("which is empty: name a canary, or give None for all")
    return names
