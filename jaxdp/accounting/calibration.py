"""Calibration: the smallest noise multiplier that meets a target epsilon."""

import functools
import math
from collections.abc import Callable
from dataclasses import replace

from ..types import Accountant, Adjacency, Sampling, Unit
from . import gdp
from .guarantee import charge_of, check_delta, curves, gaussian_mu
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
    noise_draws_per_step: float = 0,
) -> float:
    """The smallest constant noise multiplier that meets a target, rounded up to six digits.

    Args:
      target_epsilon: the epsilon to meet, finite and above 0.
      delta: between 0 and 1.
      steps: how many updates are released.
      sampling_probability: q = expected batch size / N.
      sampling: how the batch of a step is chosen.
      adjacency: which data sets are neighbours.
      unit: what is clipped.
      num_examples: N; "shuffled" and "fixed_size" need it.
      accountant: which one must meet the target.
      noise_draws_per_step: how many numbers get noise drawn by jaxdp; 0: exactly Gaussian noise.

    Returns:
      z, the noise standard deviation over the sensitivity. Epsilon was computed for this z and is
      at most `target_epsilon`. The smallest possible z is at most 1 part in 10,000 smaller, or 1 in
      1,000 for epsilons in the hundreds. 0 if nothing is released.

    Raises:
      ValueError: for numbers that make no sense or a combination without sound accounting; if no z
        up to a million meets the target; or if delta is so large that no noise is needed.

    Example:
      >>> z = solve_noise_multiplier(target_epsilon=1.0, delta=1e-5, steps=1000,
      ...                            sampling_probability=0.01)
      >>> f"{z:.2f}"
      '1.41'
    """
    if not 0 < target_epsilon < math.inf:
        raise ValueError(f"target_epsilon is {target_epsilon}: give a finite number above 0")
    check_delta(delta, num_examples)
    run = Mechanism(
        1.0,
        steps,
        sampling_probability,
        sampling,
        adjacency,
        unit,
        num_examples,
        noise_draws_per_step,
    )
    return _solved(run, target_epsilon, delta, accountant)


@functools.lru_cache(maxsize=100)  # it takes seconds, and trials ask for the same plan again
def _solved(run: Mechanism, target_epsilon: float, delta: float, accountant: Accountant) -> float:
    if not run.exposures:
        return 0.0
    steps, q, draws = run.steps, run.sampling_probability, run.noise_draws_per_step
    if run.sampling == "poisson" and steps * math.log1p(-min(q, 1 - 1e-9)) >= math.log1p(-delta):
        raise ValueError(
            f"delta is {delta}: the probability that a record takes part in any of {steps} steps "
            f"at sampling probability {q:.3g} is no larger, so that the target "
            "is met even without noise. Take a smaller delta, as N^-1.1"
        )

    charge = charge_of([run])
    exact_epsilon, exact_delta = charge.exact_target(target_epsilon, delta)
    if not (exact_epsilon > 0 and exact_delta > 0):
        short = "epsilon" if exact_delta > 0 else "delta"
        raise ValueError(
            f"the target is epsilon {target_epsilon:g} at delta {delta:.3g}, and drawing noise for "
            f"{draws * steps:.3g} numbers costs epsilon {charge.epsilon:.3g} and "
            f"delta {charge.added_delta(target_epsilon):.3g} by itself: {short} is too small. Give "
            f"a larger {short}, or noise to fewer numbers: if a Plan is not told num_parameters, "
            "it pays for 1e11 numbers over the run"
        )

    def excess(z: float) -> float:
        """log(delta at z / target delta), at the target epsilon: z is enough if this is <= 0."""
        curves_at_z = curves(replace(run, noise_multiplier=z), accountant)
        least = min(curve.delta(exact_epsilon) for curve in curves_at_z)
        return math.log(max(least, 5e-324)) - math.log(exact_delta)

    z = _least_noise(excess, _likely_noise(run, gdp.mu_from_epsilon(exact_epsilon, exact_delta)))
    while z <= LARGEST_NOISE_MULTIPLIER:
        final = curves(replace(run, noise_multiplier=z), accountant)
        exact = lambda delta: min(curve.epsilon(delta) for curve in final)
        if charge.epsilon_at(delta, exact) <= target_epsilon:
            return z
        z = _six_digits_up(z * (1 + 1e-6))
    raise ValueError(
        f"no noise multiplier up to {LARGEST_NOISE_MULTIPLIER:,.0f} gives epsilon "
        f"{target_epsilon} at delta {delta} for {steps} steps at sampling probability "
        f"{q:.3g}: take fewer steps, a smaller batch size, a larger epsilon or "
        "a larger delta"
    )


def _likely_noise(run: Mechanism, mu: float) -> float:
    """About the z for which a run is mu-GDP, by the central limit theorem of arXiv 1905.02383.

    The loss of a sampled step has variance q²(exp(1/z²) - 1), or 4q² sinh(1/s²) for replace_one,
    where s = z times `event_factor`.
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
    """A z of six digits with -tolerance <= excess(z) <= 0, or the smallest with excess(z) <= 0.

    The secant method in log z, kept inside a bracket. Before there is a bracket, the first steps
    are small, because a PLD takes longest for a z that is far too small. Returns infinity if
    LARGEST_NOISE_MULTIPLIER is not enough.
    """
    low, high = 0.0, math.inf  # excess(low) > 0 >= excess(high)
    z = _six_digits_up(min(start, LARGEST_NOISE_MULTIPLIER))
    value, slope, farthest = excess(z), -20.0, 0.1
    for attempt in range(200):
        low, high = (z, high) if value > 0 else (low, z)
        if -tolerance <= value <= 0:
            break
        if low >= LARGEST_NOISE_MULTIPLIER:
            return math.inf
        if low == 0 and farthest > 3:  # almost any z is enough: a record is hardly ever used
            break
        step = min(max(-(value + tolerance / 2) / slope, -5.0), 5.0)
        if low == 0 or high == math.inf:
            # At least 1e-5, so that the six digits change.
            step = math.copysign(min(max(abs(step), 1e-5), farthest), value)
            farthest *= 2
        guess = _six_digits_up(min(z * math.exp(step), LARGEST_NOISE_MULTIPLIER))
        if not low < guess < high or (attempt > 8 and high < math.inf and low > 0):
            if attempt > 8 and high <= low * 1.001:  # excess jumps here: the PLD's grid ends
                break
            guess = _six_digits_up(math.sqrt(low * high))
            if not low < guess < high:
                break
        guess_value = excess(guess)
        slope = min((guess_value - value) / math.log(guess / z), -1e-3)
        z, value = guess, guess_value
    return high


def _six_digits_up(z: float) -> float:
    """z rounded up to six significant digits.

    `rounding.round_up` rounds for print, by the decimal digits. This one solves, and differs where
    z has a seventh digit 5 and no more: 0.05000005 becomes 0.0500002 here, 0.0500001 there. Either
    is sound, but a solved noise multiplier must not change from one version to the next.
    """
    digits = 5 - math.floor(math.log10(z))
    rounded = round(z, digits)
    return rounded if rounded >= z else round(z + 10.0**-digits, digits)
