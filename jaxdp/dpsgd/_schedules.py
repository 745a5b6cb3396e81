"""Noise multipliers that change with the step."""

import itertools
from collections.abc import Callable

from ..types import Schedule
from ._numbers import real


def noise_schedule(z: float | Callable[[int], float], steps: int) -> float | Schedule:
    """A noise multiplier, checked; a function of the step becomes `((z, count), ...)`."""
    values = [z(step) for step in range(steps)] if callable(z) else [z]
    for value in values:
        if not real("noise_multiplier", value) >= 0:
            raise ValueError(
                f"noise_multiplier is {value}: give 0 (no privacy) or more, or epsilon"
            )
        if callable(z) and value == 0:
            raise ValueError(
                "noise_multiplier is 0 in some step: a schedule needs noise in every step. For "
                "training without privacy, give noise_multiplier=0"
            )
    if not callable(z):
        return float(z)
    return tuple((float(value), len(list(run))) for value, run in itertools.groupby(values))


def first_steps(schedule: Schedule, steps: int) -> Schedule:
    """The schedule of the first `steps` steps; after its end the last noise multiplier stays."""
    taken: list[tuple[float, int]] = []
    left = steps
    for i, (z, count) in enumerate(schedule):
        count = left if i == len(schedule) - 1 else min(count, left)
        taken.append((z, count))
        left -= count
    return tuple(taken)
