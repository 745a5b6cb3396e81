"""Checks a privacy statement: every number against the facts that it is said to follow from.

ε is computed again from the mechanisms by dp-accounting alone (`recomputed`). What a statement says
of itself can't be checked from outside: that these mechanisms were run, and that its assumptions
hold.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ...types import Accountant
from .clipping_call import wrong_in
from .recomputed import SOUND, Recomputed, gaussian_epsilon, stretches_of
from .statement import Epsilons, MechanismFacts, Statement

# A stated number has five digits, so that rounding it moves it by up to 1e-4 of itself, upwards.
# dp-accounting rounds its grids so that ε is too large; what is below it by less may still hold.
BELOW = 1e-4
# What is above by more comes from other mechanisms: equal grids give equal numbers.
ABOVE = 2e-3
SMALLEST = 1e-6  # differences that no one can use
MOST_DRAWS = 1e15  # no model has so many numbers
SAMPLER = 2.0**-99  # how far the drawn number of records is from its law: docs/design.md, rule 11


class Check(NamedTuple):
    """One check.

    Attributes:
      name: what is checked.
      holds: whether it is as it must be.
      told: the value, or both values.
    """

    name: str
    holds: bool
    told: str


def checks(statement: Statement) -> Iterator[Check]:
    """All checks of a statement, one after the other.

    ε is not computed from facts that are wrong already: then the last check says so.

    Raises:
      NotKnown: for mechanisms that can't be composed here.
    """
    s = statement
    steps, accountants = _steps(s), _accountants(s)
    facts = [_secrets(s), steps, _delta(s), accountants, _claim(s)]
    for number, mechanism in enumerate(s.mechanisms, 1):
        where = f"segment {number}: " if len(s.mechanisms) > 1 else ""
        facts += [
            Check(f"{where}{name}", not wrong, wrong or told)
            for name, wrong, told in (
                ("sampling", _wrong_sampling(mechanism), _told_sampling(mechanism)),
                ("noise", _wrong_noise(mechanism), _told_noise(mechanism)),
                (
                    "clipping",
                    wrong_in(mechanism.clipping, s.adjacency),
                    f"{mechanism.clipping.call}: one record moves the sum by "
                    f"{mechanism.clipping.sensitivity_at_first_step:g}",
                ),
            )
        ]
    yield from facts
    # ε does not depend on the others, but through z, which is relative to the sensitivity.
    possible = not any(_wrong_sampling(m) or _wrong_noise(m) for m in s.mechanisms)
    if not (steps.holds and accountants.holds and possible and 0 < s.delta < 1):
        yield Check("ε", False, "not computed: no run has such mechanisms")
        return
    again = Recomputed(s)
    yield from _noise_charge(s, again)
    for name, epsilon in s.epsilon.items():
        yield _epsilon(again, name, epsilon, s.delta)
    for at in s.epsilon_at_smaller_deltas:
        for name, epsilon in at.epsilon.items():
            yield _epsilon(again, name, epsilon, at.delta)
    yield _gaussian(s, again)
    yield _target(s)


def _secrets(s: Statement) -> Check:
    seeded = not s.private or s.reproducible or s.noise.key_bits != 128
    if seeded:
        told = f"private is {s.private}, reproducible {s.reproducible}, {s.noise.key_bits} bits"
        return Check("keys", False, f"{told}: a seed was given, so there is NO guarantee")
    return Check("keys", True, f"of 128 bits, from the operating system; {s.secrets}")


def _steps(s: Statement) -> Check:
    total = sum(m.steps for m in s.mechanisms)
    last = s.mechanisms[-1].steps if s.mechanisms else 0
    if s.steps != total:
        return Check("steps", False, f"{s.steps} stated, and the mechanisms have {total}")
    if last > s.steps_planned:
        return Check("steps", False, f"{last} in the last segment, and {s.steps_planned} planned")
    return Check("steps", True, f"{total} in all, {s.steps_planned} planned")


def _delta(s: Statement) -> Check:
    sizes = [s.num_examples, *(m.sampling.num_examples for m in s.mechanisms)]
    if s.mechanisms and s.num_examples != sizes[-1]:
        told = f"{s.num_examples} stated, and the last segment has {sizes[-1]}"
        return Check("N", False, told)
    if not 0 <= s.data.canaries < max(s.num_examples, 1):
        return Check("N", False, f"{s.data.canaries} of {s.num_examples} records are canaries")
    if min(sizes) < 1 or not 0 < s.delta < 1 / max(sizes):
        return Check("δ", False, f"{s.delta:g}, and it must be above 0 and below 1/{max(sizes)}")
    if not all(0 < at.delta < 1 for at in s.epsilon_at_smaller_deltas):
        return Check("δ", False, "a smaller δ is not between 0 and 1")
    return Check("δ", True, f"{s.delta:.4g}, below 1/N = 1/{max(sizes):,}")


def _accountants(s: Statement) -> Check:
    """Whether the sampling has a proof for these neighbours, and ε is by sound accountants."""
    kinds = dict.fromkeys(m.sampling.kind for m in s.mechanisms)
    for kind in kinds:
        allowed = SOUND.get((kind, s.adjacency))
        if allowed is None:
            told = f"{s.adjacency} with {kind} sampling: no accounting is known to be sound for it"
            return Check("adjacency", False, told)
        for epsilon in _all_epsilons(s):
            unsound = [name for name in epsilon if name not in allowed]
            if unsound:
                told = f"ε by {unsound[0].upper()}, which has no sound bound for {s.adjacency}"
                return Check("adjacency", False, f"{told} with {kind} sampling")
    return Check("adjacency", True, f"{s.adjacency}, with {' and '.join(kinds) or 'no'} sampling")


def _claim(s: Statement) -> Check:
    least = all(epsilon[s.accountant] <= min(epsilon.values()) for epsilon in _all_epsilons(s))
    told = f"by {s.accountant.upper()}, "
    return Check("claim", least, told + ("the smallest" if least else "and another ε is smaller"))


def _all_epsilons(s: Statement) -> Iterable[Epsilons]:
    return [s.epsilon, *(at.epsilon for at in s.epsilon_at_smaller_deltas)]


def _wrong_sampling(mechanism: MechanismFacts) -> str:
    sampling = mechanism.sampling
    if sampling.num_examples < 1 or not 0 <= sampling.expected_batch_size <= sampling.num_examples:
        return f"{sampling.expected_batch_size:g} of {sampling.num_examples} records in a step"
    share = sampling.expected_batch_size / sampling.num_examples
    if not math.isclose(sampling.probability, share, rel_tol=1e-9):
        return f"probability {sampling.probability:g} stated, and batch size over N is {share:g}"
    if sampling.kind == "full_batch" and share != 1:
        return f"full_batch, and {sampling.expected_batch_size:g} records are expected in a step"
    size = sampling.expected_batch_size
    whole = abs(size - round(size)) <= 1e-6 and (size == 0 or round(size) >= 1)
    if sampling.kind in ("shuffled", "fixed_size") and not whole:
        return f"{sampling.kind}, and {size:g} is no number of records"
    if sampling.law_distance < (SAMPLER if sampling.kind == "poisson" else 0):
        return f"law_distance is {sampling.law_distance:g}, and only {SAMPLER:.3g} is proved"
    return ""


def _told_sampling(mechanism: MechanismFacts) -> str:
    sampling = mechanism.sampling
    return (
        f"{sampling.kind}, probability {sampling.probability:.6g} = "
        f"{sampling.expected_batch_size:g} / {sampling.num_examples:,}"
    )


def _wrong_noise(mechanism: MechanismFacts) -> str:
    stretches = stretches_of(mechanism)
    for z, count in stretches:
        if count < 0 or not (z == 0 or 1e-9 <= z <= 1e9):
            return f"noise multiplier {z:g} for {count} steps"
    total = sum(count for _, count in stretches)
    if mechanism.steps < 0 or total != mechanism.steps:
        return f"{mechanism.steps} steps, and noise multipliers for {total}"
    if not 0 < mechanism.noise_draws_per_step <= MOST_DRAWS:
        return f"noise is charged for {mechanism.noise_draws_per_step:g} numbers in a step"
    return ""


def _told_noise(mechanism: MechanismFacts) -> str:
    parts = [f"z = {z:g} for {count} steps" for z, count in stretches_of(mechanism)]
    many = [*parts[:2], f"... ({len(parts)} in all)"] if len(parts) > 3 else parts
    return f"{', '.join(many)}; {mechanism.noise_draws_per_step:,.12g} numbers in a step"


def _noise_charge(s: Statement, again: Recomputed) -> Iterator[Check]:
    """What drawing the noise costs, by the theorem."""
    for name, stated, found in (
        ("extra ε", s.noise.extra_epsilon, 2 * again.charge.t),
        ("extra δ", s.noise.extra_delta, min(again.charge.delta(s.claimed_epsilon), 1.0)),
    ):
        # That of δ is for an ε which was not yet rounded.
        holds = 0.99 * found <= stated <= 1.01 * found
        yield Check(f"{name} of noise", holds, _both(stated, found))


def _epsilon(again: Recomputed, accountant: Accountant, stated: float, delta: float) -> Check:
    name, least = f"ε by {accountant.upper()}", math.inf
    for bound in again.bounds(accountant, delta, stated):
        least = min(least, bound)
        if bound < math.inf and _is_same(stated, bound):
            return Check(name, True, f"{_both(stated, bound)}, at δ = {delta:.3g}")
    told = f"{_both(stated, least)}, at δ = {delta:.3g}"
    if _is_same(stated, least):  # both infinite
        return Check(name, True, told)
    if stated < least:
        return Check(name, False, f"{told}: it promises too much")
    return Check(name, False, f"{told}: it is not that of these mechanisms")


def _is_same(stated: float, bound: float) -> bool:
    if math.isinf(stated) or math.isinf(bound):
        return stated == bound
    return bound * (1 - BELOW) - SMALLEST <= stated <= bound * (1 + ABOVE) + SMALLEST


def _gaussian(s: Statement, again: Recomputed) -> Check:
    """The Gaussian-DP equivalent: of all steps, or that of the claim at δ."""
    name, mu = "μ", s.gaussian_dp.mu
    if s.gaussian_dp.at_every_delta and again.amplified:
        return Check(name, False, "at every δ, and with sampling it can be at one δ only")
    if s.gaussian_dp.at_every_delta:
        return Check(name, _is_same(mu, again.mu), f"{_both(mu, again.mu)}, at every δ")
    if math.isinf(mu) or mu <= 0:
        found = math.inf if mu > 0 else 0.0
    else:
        found = gaussian_epsilon(mu, s.delta)
    told = f"{_text(mu)}, whose ε is {_text(found)}; {_text(s.claimed_epsilon)} stated"
    # μ is for ε as it was before it was rounded.
    near = found == s.claimed_epsilon or math.isclose(
        found, s.claimed_epsilon, rel_tol=ABOVE, abs_tol=SMALLEST
    )
    return Check(name, near, told)


def _target(s: Statement) -> Check:
    if s.target_epsilon is None:
        return Check("target", True, "none: the noise was given")
    holds = s.claimed_epsilon <= s.target_epsilon * (1 + BELOW)
    told = f"ε = {_text(s.claimed_epsilon)}, and the target was {_text(s.target_epsilon)}"
    return Check("target", holds, told)


def _both(stated: float, found: float) -> str:
    return f"{_text(stated)} stated, {_text(found)} recomputed"


def _text(value: float) -> str:
    return "infinite" if math.isinf(value) else f"{value:.6g}"
