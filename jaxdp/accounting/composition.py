"""What several mechanisms cost together, for example the segments of one run."""

import functools
import math
from collections.abc import Sequence
from dataclasses import replace

import dp_accounting
from dp_accounting.pld import pld_privacy_accountant

from ..types import Accountant
from . import gdp, guarantee, pld
from .mechanism import Mechanism, accountants, dp_event


def epsilon(
    mechanisms: Sequence[Mechanism], delta: float, accountant: Accountant | None = None
) -> float:
    """An upper bound on epsilon at `delta` of all the mechanisms, run one after the other.

    Each may depend on what the earlier ones released (adaptive composition).

    Args:
      mechanisms: all with the same sampling and the same adjacency.
      delta: between 0 and 1.
      accountant: None takes the tightest sound one.

    Raises:
      ValueError: if sampling or adjacency differ, or the accountant has no sound bound for them.
    """
    return _epsilon(tuple(mechanisms), delta, accountant)


@functools.lru_cache(maxsize=1000)  # it takes up to a second, and reports ask for the same again
def _epsilon(
    mechanisms: tuple[Mechanism, ...], delta: float, accountant: Accountant | None
) -> float:
    # The noise is charged for all of them together. Without it, more of them can be joined.
    parts = _merged([replace(m, noise_draws_per_step=0) for m in mechanisms if m.steps])
    if not parts:
        return 0.0
    accountant = accountant or accountants(parts[0].sampling, parts[0].adjacency)[0]
    if len(parts) == 1:
        guarantee.check_delta(delta, parts[0].num_examples)
        bounds = guarantee.curves(parts[0], accountant)
        exact = lambda delta: min(bound.epsilon(delta) for bound in bounds)
    elif accountant in accountants(parts[0].sampling, parts[0].adjacency):
        exact = lambda delta: _exact_epsilon(parts, delta, accountant)
    else:
        raise ValueError(f"accountant is {accountant!r}: it has no sound bound here. Leave it out")
    return guarantee.charge_of(mechanisms).epsilon_at(delta, exact)


def epsilon_of_all(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """As `epsilon`, for mechanisms with different samplings.

    Those of one sampling are composed. Then the samplings share δ evenly, and their ε are added:
    basic composition, which also holds if their steps were taken by turns.

    Args:
      mechanisms: all with the same adjacency.
      delta: between 0 and 1.

    Raises:
      ValueError: if adjacencies differ.
    """
    adjacencies = sorted({m.adjacency for m in mechanisms})
    if len(adjacencies) > 1:
        raise ValueError(
            f"the mechanisms have the adjacencies {', '.join(adjacencies)}: their guarantees are "
            "about different neighbours and can't be composed. Give one adjacency"
        )
    spent = [m for m in mechanisms if m.steps]
    samplings = dict.fromkeys(m.sampling for m in spent)
    return sum(
        epsilon([m for m in spent if m.sampling == sampling], delta / len(samplings))
        for sampling in samplings
    )


def _exact_epsilon(parts: Sequence[Mechanism], delta: float, accountant: Accountant) -> float:
    """epsilon with noise that is exactly Gaussian."""
    if accountant == "rdp":
        return guarantee.rdp_curve(parts).epsilon(delta)
    # Without amplification, Gaussians compose to a Gaussian.
    unamplified = gdp.epsilon_from_mu(math.hypot(*map(guarantee.gaussian_mu, parts)), delta)
    if parts[0].sampling in ("shuffled", "full_batch"):
        return unamplified
    bounds = [unamplified, _pld_epsilon(parts, delta)]
    if "rdp" in accountants(parts[0].sampling, parts[0].adjacency):
        bounds.append(guarantee.rdp_curve(parts).epsilon(delta))
    return min(bounds)


def affordable_steps(
    spent: Sequence[Mechanism], more: Mechanism, target_epsilon: float, delta: float
) -> int:
    """The largest number of steps of `more` that can follow `spent` without exceeding a target.

    Args:
      spent: what was released before.
      more: what would be released next; its `steps` is the number that is wanted.
      target_epsilon: the epsilon that all of them together may reach at `delta`.
      delta: between 0 and 1.

    Returns:
      From 0 to `more.steps`. 0 also if `spent` alone exceeds the target.
    """
    fits = lambda steps: epsilon([*spent, replace(more, steps=steps)], delta) <= target_epsilon
    if fits(more.steps):
        return more.steps
    low, high = -1, more.steps  # low fits (unless it is -1), high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return max(low, 0)


def _merged(mechanisms: Sequence[Mechanism]) -> list[Mechanism]:
    """Joins mechanisms that differ only in noise and steps: the bound for one is the tightest."""
    kinds = {(m.sampling, m.adjacency) for m in mechanisms}
    if len(kinds) > 1:
        raise ValueError(
            f"the mechanisms have (sampling, adjacency) {sorted(kinds)}: their guarantees are "
            "about different neighbours and can't be composed. Give one sampling and one adjacency"
        )
    merged: dict[Mechanism, dict[float, int]] = {}
    for m in mechanisms:
        if m.sampling == "shuffled":  # each begins its own epochs
            return list(mechanisms)
        counts = merged.setdefault(replace(m, noise_multiplier=1.0, steps=0), {})
        for z, count in m.schedule:
            counts[z] = counts.get(z, 0) + count
    return [
        replace(kind, noise_multiplier=tuple(counts.items()), steps=sum(counts.values()))
        for kind, counts in merged.items()
    ]


def _pld_epsilon(parts: Sequence[Mechanism], delta: float) -> float:
    slack = pld.roundoff(sum(part.steps for part in parts))
    if delta <= slack:
        return math.inf
    return float(_composed(tuple(parts)).get_epsilon(delta - slack))


@functools.lru_cache(maxsize=4)
def _composed(parts: tuple[Mechanism, ...]) -> pld_privacy_accountant.PLDAccountant:
    events, relations = zip(*map(dp_event, parts), strict=True)
    accountant = pld_privacy_accountant.PLDAccountant(relations[0], pld.COARSEST_INTERVAL)
    accountant.compose(dp_accounting.ComposedDpEvent(list(events)))
    return accountant
