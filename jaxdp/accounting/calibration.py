"""How much noise a target needs: the least noise multiplier that meets an epsilon."""

import math
from collections.abc import Callable
from dataclasses import replace

from ..types import Accountant, Adjacency, Sampling, Unit
from . import gdp
from .guarantee import check_delta, curves, gaussian_mu
from .mechanism import Mechanism, event_factor

LARGEST_NOISE_MULTIPLIER = 1e6


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
