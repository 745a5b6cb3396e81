"""Checks and defaults of a plan's numbers."""

from ..accounting.noise_charge import UNKNOWN_DRAWS
from ..types import Sampling
from ._numbers import real, whole
from .clipping import Clipping


def check_batch_size(size: object, num_examples: int, sampling: Sampling) -> None:
    number = real("expected_batch_size", size)
    if not 0 < number <= num_examples:
        raise ValueError(
            f"expected_batch_size is {size}, with {num_examples} examples: it must be above 0 and "
            "at most the number of examples"
        )
    if sampling != "poisson" and number % 1:
        raise ValueError(
            f"expected_batch_size is {size}: with sampling={sampling!r} every batch has the same "
            "size, so give a whole number"
        )


def delta_of(delta: float | None, num_examples: int) -> float:
    delta = num_examples**-1.1 if delta is None else real("delta", delta)
    if not 0 < delta < 1 / num_examples:
        raise ValueError(
            f"delta is {delta:.3g}: it must be above 0 and below 1/N = {1 / num_examples:.3g}, "
            "because a mechanism that publishes one random record whole has δ = 1/N. Leave it "
            f"out for N^-1.1 = {num_examples**-1.1:.3g}"
        )
    return delta


def draws_of(num_parameters: int | None, steps: int) -> float:
    return UNKNOWN_DRAWS / steps if num_parameters is None else float(num_parameters)


def units_of(num_units: int | None, clipping: Clipping) -> int | None:
    if clipping.unit == "batch":
        return (
            1 if num_units is None else whole("num_units", num_units, "the number of batch units")
        )
    if num_units is not None:
        raise ValueError(
            f"num_units is {num_units}, but {clipping!r} clips every example on its own: leave it "
            "out, or use a clipping with unit='batch'"
        )
    return None
