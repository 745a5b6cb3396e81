"""The tables of the rounded Gaussian: which cells of the number line it draws, and how often.

A draw is the start of a cell, chosen from an alias table, plus a position: a sum of five uniform
whole numbers. With a kernel K (the law of the position) and weights w (of the cells), the law of
the draw is the convolution of w with K. The weights are those of the Gaussian deconvolved by K, by
its cumulants, so that the convolution is a Gaussian again but for a relative error of 1e-11 or so:
the zeros of the uniforms' Fourier transforms lie where the grid of the cells would show.

Beyond 8 standard deviations the weights are rounded up, and go on to 13, so that no number there is
drawn too seldom: that would cost e^ε times as much as what is drawn too often (docs/design.md).

All of it is computed in integers and decimals of 60 digits: nothing here depends on the machine.

References:
  Walker 1977, An Efficient Method for Generating Discrete Random Variables with General
  Distributions (the alias table; built as in Vose 1991).
"""

import functools
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal, localcontext
from typing import Literal

import numpy as np

Scale = Literal[22, 24]  # log2 of the standard deviation of the draws

CELLS_PER_STD = 64
DIGITS = 60
# In standard deviations: weights are rounded up beyond the first; beyond the second they are less
# than one unit, and every third cell gets one; there are none beyond the last.
ROUNDED_UP, SPARSE, FARTHEST = 8, 10.25, 13
MARGIN = 21  # weights that are rounded up are first raised by 2^-21, for the deconvolution's error


@dataclass(frozen=True)
class Uniform:
    """A uniform whole number: `step` times one of 0 .. 2^bits - 1."""

    step: int
    bits: int


# Widths of a whole cell each; 51 bits in all. Steps beyond 1 save bits: the errors that they make
# have frequencies at which the others' transforms vanish.
KERNELS: dict[Scale, tuple[Uniform, ...]] = {
    22: (Uniform(1, 16), Uniform(1, 16), Uniform(2**5, 11), Uniform(2**11, 5), Uniform(2**13, 3)),
    24: (Uniform(1, 18), Uniform(1, 18), Uniform(2**8, 10), Uniform(2**14, 4), Uniform(2**15, 3)),
}
SLOT_BITS: dict[Scale, int] = {22: 13, 24: 11}


@dataclass(frozen=True)
class Tables:
    """An alias table. Slot i is cell i with probability threshold[i] / 2^64, else alias[i].

    Attributes:
      high, low: `[slots] uint32` the upper and lower words of the thresholds.
      alias: `[slots] int32`.
      cells: how many cells there are; the middle one is the Gaussian's.
    """

    high: np.ndarray
    low: np.ndarray
    alias: np.ndarray
    cells: int


@functools.cache
def tables(scale: Scale) -> Tables:
    """The alias table of a scale."""
    slots = 2 ** SLOT_BITS[scale]
    weights = cell_weights(scale)
    size = 2 ** weight_bits(scale) // slots  # of a slot: 2^64
    left = [*weights, *[0] * (slots - len(weights))]
    threshold, alias = [0] * slots, list(range(slots))
    small = [i for i in range(slots) if left[i] < size]
    large = [i for i in range(slots) if left[i] >= size]
    while small and large:
        i, giver = small.pop(), large[-1]
        threshold[i], alias[i] = left[i], giver
        left[giver] -= size - left[i]
        if left[giver] < size:
            small.append(large.pop())
    # Whole numbers leave nothing over: what remains are whole slots of their own cell.
    assert not small
    assert all(left[i] == size for i in large)
    words = np.array(threshold, np.uint64)
    return Tables(
        high=(words >> np.uint64(32)).astype(np.uint32),
        low=(words & np.uint64(2**32 - 1)).astype(np.uint32),
        alias=np.array(alias, np.int32),
        cells=len(weights),
    )


def cell_weights(scale: Scale) -> list[int]:
    """The weight of every cell, as multiples of 2^-`weight_bits`; they add up to 1."""
    with localcontext(Context(prec=DIGITS)):
        variance, fourth, sixth = _deconvolved(scale)
        cell = Decimal(2**scale // CELLS_PER_STD)
        half = [
            _density((j * cell) ** 2 / variance, fourth, sixth)
            for j in range(FARTHEST * CELLS_PER_STD + 1)
        ]
        unit = 2 ** weight_bits(scale) / (half[0] + 2 * sum(half[1:]))
        whole = [int((weight * unit).to_integral_value()) for weight in half]
        up = range(ROUNDED_UP * CELLS_PER_STD + 1, int(SPARSE * CELLS_PER_STD) + 1)
        for j in up:
            raised = half[j] * unit * (1 + Decimal(2) ** -MARGIN)
            whole[j] = int(raised.to_integral_value(ROUND_CEILING))
    for j in range(up.stop, len(whole)):
        whole[j] = 1 if (j - up.stop) % 3 == 2 else 0
    whole[0] = 2 ** weight_bits(scale) - 2 * sum(whole[1:])
    return [*whole[:0:-1], *whole]


def weight_bits(scale: Scale) -> int:
    """Weights are multiples of 2^-this: the bits that choose a slot, and 64 within it."""
    return SLOT_BITS[scale] + 64


def kernel_middle(scale: Scale) -> int:
    """The mean of the position, a whole number."""
    return sum(u.step * (2**u.bits - 1) for u in KERNELS[scale]) // 2


def _deconvolved(scale: Scale) -> tuple[Decimal, Decimal, Decimal]:
    """Variance, and standardised fourth and sixth cumulants, of the law of the weights.

    They are those of a rounded Gaussian (a Gaussian plus a uniform of width 1) less the kernel's.
    """
    uniforms = [(Decimal(u.step), Decimal(2**u.bits)) for u in KERNELS[scale]]
    cumulants = [
        sum(s**order * (m**order - 1) / divisor for s, m in uniforms)
        for order, divisor in ((2, 12), (4, -120), (6, 252))
    ]
    variance = Decimal(4) ** scale + (Decimal(1) / 12 - cumulants[0])
    fourth = Decimal(1) / -120 - cumulants[1]
    sixth = Decimal(1) / 252 - cumulants[2]
    return variance, fourth / variance**2, sixth / variance**3


def _density(square: Decimal, fourth: Decimal, sixth: Decimal) -> Decimal:
    """A Gaussian times its Hermite series, at a squared distance in standard deviations."""
    he4 = square**2 - 6 * square + 3
    he6 = square**3 - 15 * square**2 + 45 * square - 15
    he8 = square**4 - 28 * square**3 + 210 * square**2 - 420 * square + 105
    series = 1 + fourth / 24 * he4 + sixth / 720 * he6 + fourth**2 / 1152 * he8
    return (-square / 2).exp() * series
