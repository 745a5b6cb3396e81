"""The law of the rounded Gaussian noise, number by number, in whole numbers.

P(n) of the sampler is a sum of products of a weight (a multiple of 2^-77 or 2^-75) and a count of
positions (out of 2^51 or 2^53): always a multiple of 2^-128. P(n) of the target is a Taylor series
in fixed point, in multiples of 2^-176. Both are kept in limbs of 24 bits, so that no product and no
sum of limbs exceeds an int64. Only their difference, which is exact up to `target_error`, becomes
a float64.
"""

import functools
import itertools
import math
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from fractions import Fraction

import numpy as np

from jaxdp.dpsgd import _noise_tables as noise_tables

LIMB, LIMBS = 24, 8
UNIT_BITS, SAMPLER_BITS = 176, 128
CELLS = noise_tables.CELLS_PER_STD
WITHIN = 8  # standard deviations
FARTHEST = noise_tables.FARTHEST  # standard deviations
PIECES = 256  # a cell is cut into, for the Taylor series
ORDER = 4  # of the Taylor series


@dataclass(frozen=True)
class Errors:
    """How far the sampler's law q is from the target's p.

    Attributes:
      rms: root mean square of q/p - 1 under p, within 8 standard deviations.
      largest: maximum of |q/p - 1| within them.
      beyond: sum of |q - p| beyond them, on both sides, with what the sampler cannot give.
      least: minimum of q/p - 1 from 8 to 13 standard deviations.
      missing: mass of p beyond 13, on both sides.
    """

    rms: float
    largest: float
    beyond: float
    least: float
    missing: float


def weights_of(table, scale):
    """The weight of every slot's cell as read from an alias table: multiples of 2^-weight_bits."""
    weights = [0] * len(table.alias)
    for slot, (high, low, alias) in enumerate(zip(table.high, table.low, table.alias, strict=True)):
        threshold = (int(high) << 32) | int(low)
        weights[slot] += threshold
        weights[alias] += 2**64 - threshold
    assert sum(weights) == 2 ** noise_tables.weight_bits(scale)
    return weights


def position_counts(uniforms):
    """How many of all choices of the bits give each position: `[positions] int64`, exact."""
    counts = np.ones(1, np.int64)
    for uniform in uniforms:
        size = len(counts) + uniform.step * (2**uniform.bits - 1)
        padded = np.zeros(-(-size // uniform.step) * uniform.step, np.int64)
        padded[: len(counts)] = counts
        # A running sum of 2^bits terms, `step` apart.
        total = padded.reshape(-1, uniform.step).cumsum(axis=0)
        total[2**uniform.bits :] -= total[: -(2**uniform.bits)].copy()
        counts = total.ravel()[:size]
    assert sum(counts.tolist()) == 2 ** sum(uniform.bits for uniform in uniforms)
    return counts


def limbs_of(numbers):
    """Whole numbers as limbs, the least first: `[numbers, LIMBS] int64`; the last has the sign."""
    size = LIMB // 8
    data = b"".join(n.to_bytes(size * LIMBS, "little", signed=True) for n in numbers)
    digits = np.frombuffer(data, np.uint8).reshape(len(numbers), LIMBS, size).astype(np.int64)
    limbs = digits @ (1 << 8 * np.arange(size))
    limbs[:, -1] -= (limbs[:, -1] >> (LIMB - 1)) << LIMB
    return limbs


def as_floats(limbs):
    """Their value in units, `limbs: [LIMBS, ...] int64`, which it overwrites.

    The limbs are first brought to -2^23 .. 2^23 - 1, exactly. So the first that is not zero is at
    least as large as all below it, and nothing cancels in the float64 sum: it is good to 1e-14.
    """
    for low, high in itertools.pairwise(limbs):
        carry = (low + (1 << (LIMB - 1))) >> LIMB
        low -= carry << LIMB
        high += carry
    value = np.zeros(limbs.shape[1:])
    for i, limb in enumerate(limbs):
        value += np.ldexp(limb.astype(np.float64), LIMB * i)
    return value


@functools.cache
def target_series(scale, pieces):
    """The target's Taylor series about the middles of the first pieces at n >= 0.

    P(n) = Φ((n+½)/s) - Φ((n-½)/s) = f(n) + f''(n)/24 + .., with f^(m) = (-1)^m·He_m(x)·φ(x)/s^(m+1)
    at x = n/s.

    Returns:
      `[ORDER + 1, LIMBS, pieces] int64`, in units: the coefficients of (n - middle)^m.
    """
    s = 2**scale
    coefficients = [[] for _ in range(ORDER + 1)]
    with localcontext(Context(prec=80)):
        spacing = Decimal(1) / (CELLS * PIECES)
        unit = Decimal(2) ** UNIT_BITS / s / (2 * _pi()).sqrt()
        # exp(-x²/2) by its ratios; 80 digits leave more than 60 after 200,000 products.
        density = (-((spacing / 2) ** 2) / 2).exp()
        ratio, change = (-(spacing**2)).exp(), (-(spacing**2)).exp()
        scales = [unit / math.factorial(m) / Decimal(-s) ** m for m in range(ORDER + 1)]
        rounding = 1 / Decimal(24 * s * s)
        for piece in range(pieces):
            x = (piece + Decimal("0.5")) * spacing
            he = [Decimal(1), x]
            for m in range(1, ORDER + 2):
                he.append(x * he[m] - m * he[m - 1])
            for m, own in enumerate(coefficients):
                value = density * scales[m] * (he[m] + he[m + 2] * rounding)
                own.append(int(value.to_integral_value()))
            density *= ratio
            ratio *= change
    return np.stack([limbs_of(own).T for own in coefficients])


def target_error(scale, edge):
    """A bound on the relative error of the target's series within `edge` standard deviations.

    It adds up: the Taylor remainder of order 5 at half a piece; what the series of P in f leaves
    out, f''''/1920; and half a unit for every coefficient (`target_rounding`). |x| is at most
    `edge` and |He_m(x)| at most the sum of its absolute terms; φ changes by less than 1% over a
    piece, and P/f by less. Decimals of 80 digits add nothing to it.
    """
    x, half = Fraction(edge), Fraction(1, 2 * CELLS * PIECES)
    absolute = [Fraction(1), x]
    for m in range(1, ORDER + 4):
        absolute.append(x * absolute[m] + m * absolute[m - 1])
    s = 2**scale
    remainder = half**5 / 120 * (absolute[5] + absolute[7] / (24 * s * s))
    left_out = absolute[4] / (1920 * Fraction(s) ** 4)
    smallest = Fraction(0.99 * math.exp(-(edge**2) / 2) / math.sqrt(2 * math.pi)) / s
    return Fraction(102, 100) * (remainder + left_out) + target_rounding(scale) / smallest


def target_rounding(scale):
    """The part of the error of the target's P(n) that is not relative to it."""
    half = 2**scale // CELLS // PIECES // 2
    return sum(Fraction(half) ** m for m in range(ORDER + 1)) / 2 / 2**UNIT_BITS


def differences(weights, uniforms, scale, cells):
    """Yields `(first, q - p, p)` for every cell: float64 of its numbers, from `first` on.

    Args:
      weights: of the cells, multiples of 2^-weight_bits; the middle one is the Gaussian's.
      uniforms: of the position.
      cells: numbers of the cells, counted from the middle.
    """
    width = 2**scale // CELLS
    middle = len(weights) // 2
    counts = position_counts(uniforms)
    # Cell i with position k gives n = (i - middle)·width + k - shift.
    shift = (len(counts) - 1) // 2
    before, after = -(-shift // width), -(-(len(counts) - shift) // width)
    kernel = np.zeros((before + after) * width, np.int64)
    offset = before * width - shift
    kernel[offset : offset + len(counts)] = counts
    kernel = kernel.reshape(before + after, width)  # row r: the cell r - before beyond the own
    weight_limbs = limbs_of([w << (UNIT_BITS - SAMPLER_BITS) for w in weights])
    size = width // PIECES
    # No int64 overflows: weights times counts, and coefficients times powers.
    assert len(kernel) * int(counts.max()) + 2 * (size // 2) ** ORDER < 2 ** (63 - LIMB)
    powers = np.stack([(np.arange(size) - size // 2) ** m for m in range(ORDER + 1)])
    series = target_series(scale, PIECES * REACH)
    product = np.empty(width, np.int64)
    for cell in cells:
        there = series[:, :, cell * PIECES : (cell + 1) * PIECES]
        target = np.einsum("mlp,mk->lpk", there, powers).reshape(LIMBS, width)
        limbs = -target
        for row, own in enumerate(kernel):
            source = middle + cell - (row - before)
            if 0 <= source < len(weights):
                for limb, weight in zip(limbs, weight_limbs[source], strict=True):
                    if weight:
                        limb += np.multiply(own, weight, out=product)
        unit = 2.0**-UNIT_BITS
        yield cell * width, as_floats(limbs) * unit, as_floats(target) * unit


REACH = FARTHEST * CELLS + 4  # cells; the position reaches 2.5 beyond the last


def errors(weights, uniforms, scale, cells=range(REACH)):
    """The errors of a sampler, whose law must be symmetric, over every whole number.

    Args:
      weights, uniforms, scale: as for `differences`.
      cells: 0 and so on; or fewer of them, whose errors are then lower bounds.
    """
    squares = largest = beyond = 0.0
    least = math.inf
    for first, difference, target in differences(weights, uniforms, scale, cells):
        relative = difference / target
        if first < WITHIN * 2**scale:
            largest = max(largest, np.abs(relative).max())
            energy = target * relative**2
            squares += 2 * energy.sum() - (energy[0] if first == 0 else 0)  # 0 has no mirror
        else:
            beyond += 2 * np.abs(difference).sum()
            if first < FARTHEST * 2**scale:
                least = min(least, relative.min())
    # The sampler gives nothing from here on.
    beyond += _tails(REACH / CELLS - 0.5 / 2**scale)
    missing = _tails(FARTHEST - 0.5 / 2**scale)
    return Errors(math.sqrt(squares), float(largest), float(beyond), float(least), missing)


def _tails(edge):
    """A bound on the mass of the Gaussian beyond `edge` on both sides: Φ(-x) < φ(x)/x."""
    return 2 * math.exp(-(edge**2) / 2) / (math.sqrt(2 * math.pi) * edge)


def _pi():
    """π to 80 digits, by Machin's formula."""

    def arctan_of_inverse(n):
        power = total = Decimal(1) / n
        for k in range(1, 130):
            power /= -n * n
            total += power / (2 * k + 1)
        return total

    return 4 * (4 * arctan_of_inverse(5) - arctan_of_inverse(239))
