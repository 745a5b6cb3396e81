"""What is known of a value that is computed from one parameter w, while it is being standardised.

w minus means, times a factor of each channel; sums of w; a function of squared lengths of w's
channels. The rules tell what an operation makes of them, and None where that is none of these.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from .standardise import Gain

# For each axis of a value the axis of w that it is. None where the value does not change along it:
# it is new, or has size 1.
Axes = tuple[int | None, ...]


@dataclass(frozen=True)
class Number:
    """The same known number everywhere."""

    value: float


@dataclass(frozen=True)
class Other:
    """A value that does not depend on w: a variable, and for each axis the axis of that variable.

    The variable is None inside a call, where it has no name outside.
    """

    var: Any
    axes: Axes


@dataclass(frozen=True)
class W:
    """The parameter, or a view of it, as an array of this shape."""

    var: Any
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Rate:
    """A positive function of the squared lengths of w's channels, after the removal of means."""

    w: W
    mean: frozenset[int]
    norm: frozenset[int]
    apply: Callable[[jax.Array], jax.Array]
    # Between these lies d log rate / d log of the squared length.
    low: float = 1.0
    high: float = 1.0
    is_length: bool = True  # the squared length itself


@dataclass(frozen=True)
class Factor:
    """A number of each channel: scale·(a rate)·(gains)."""

    scale: float = 1.0
    rate: Rate | None = None
    gains: tuple[Gain, ...] = ()


@dataclass(frozen=True)
class Weight:
    """factor·(w - mean(w))."""

    w: W
    axes: Axes
    mean: frozenset[int] = frozenset()
    factor: Factor = Factor()


@dataclass(frozen=True)
class Square:
    """(w - mean(w))²."""

    w: W
    axes: Axes
    mean: frozenset[int]


@dataclass(frozen=True)
class Sums:
    """factor·(sum of w over axes), or zero: the sum of what has no mean."""

    w: W
    axes: Axes
    summed: frozenset[int]
    factor: Factor
    zero: bool


@dataclass(frozen=True)
class Channels:
    """A factor as a value of its own."""

    w: W
    axes: Axes
    factor: Factor


OfW = Weight | Square | Sums | Channels
Value = Number | Other | OfW | None  # None: depends on w in an unknown way


def summed(value: Value, axes: Sequence[int], shape: Sequence[int]) -> Value:
    if not isinstance(value, OfW):
        return None
    places = [value.axes[axis] for axis in axes if shape[axis] != 1]
    over = frozenset(axis for axis in places if axis is not None)
    if len(over) != len(places):  # repeats what was spread
        return None
    rest = tuple(axis for i, axis in enumerate(value.axes) if i not in axes)
    if isinstance(value, Weight):
        if value.factor.rate is not None or value.factor.gains:
            return None
        if value.mean and over != value.mean:
            return None
        return Sums(value.w, rest, over, value.factor, zero=bool(value.mean))
    if isinstance(value, Square):
        rate = Rate(value.w, value.mean, over, lambda squared: squared)
        return Channels(value.w, rest, Factor(rate=rate))
    if isinstance(value, Channels) and value.factor.rate is not None:
        rate = value.factor.rate
        if value.factor == Factor(rate=rate) and rate.is_length:
            return Channels(value.w, rest, Factor(rate=replace(rate, norm=rate.norm | over)))
    return None


def power(value: Value, exponent: float) -> Value:
    if isinstance(value, Number):
        return Number(value.value**exponent) if value.value > 0 else None
    if isinstance(value, Weight) and exponent == 2:
        if value.factor == Factor():
            return Square(value.w, value.axes, value.mean)
        return None
    if isinstance(value, Channels):
        rate = value.factor.rate
        if rate is None or value.factor != Factor(rate=rate):
            return None
        apply = lambda squared: _raised(rate.apply(squared), exponent)
        ends = sorted((rate.low * exponent, rate.high * exponent))
        changed = replace(rate, apply=apply, low=ends[0], high=ends[1], is_length=False)
        return replace(value, factor=Factor(rate=changed))
    return None


def _raised(x: jax.Array, exponent: float) -> jax.Array:
    if exponent in (0.5, -0.5):
        return jnp.sqrt(x) if exponent > 0 else jax.lax.rsqrt(x)
    return x ** (int(exponent) if float(exponent).is_integer() else exponent)


def multiplied(a: Value, b: Value) -> Value:
    if a == b and isinstance(a, Weight):
        return power(a, 2)
    if isinstance(a, Number | Other) or isinstance(b, Weight | Sums):
        a, b = b, a
    if not isinstance(a, Weight | Sums | Channels):
        return None
    if isinstance(b, Number):
        return _scaled(a, b.value)
    if isinstance(b, Other):
        gain = _gain(b, a.axes)
        return _with(a, replace(a.factor, gains=(*a.factor.gains, gain))) if gain else None
    if isinstance(b, Channels) and a.w == b.w and a.factor.rate is None:
        own = _spread(b.axes, len(a.axes))
        if own is None or any(
            mine not in (None, axis) for axis, mine in zip(a.axes, own, strict=True)
        ):
            return None
        product = Factor(
            a.factor.scale * b.factor.scale, b.factor.rate, (*a.factor.gains, *b.factor.gains)
        )
        return _with(a, product)
    return None


def _with(value: Weight | Sums | Channels, factor: Factor) -> Value:
    return replace(value, factor=factor)


def _scaled(value: Weight | Sums | Channels, number: float) -> Value:
    rate = value.factor.rate
    if not isinstance(value, Channels):
        return replace(value, factor=replace(value.factor, scale=value.factor.scale * number))
    if rate is None or number <= 0:
        return None
    changed = replace(rate, apply=lambda squared: rate.apply(squared) * number, is_length=False)
    return replace(value, factor=replace(value.factor, rate=changed))


def _spread(axes: Axes, rank: int) -> Axes | None:
    """The axes of an operand next to one of this rank: only scalars may have another."""
    if not axes:
        return (None,) * rank
    return axes if len(axes) == rank else None


def _gain(other: Other, axes: Axes) -> Gain | None:
    """The gain that multiplies a value with these axes of w."""
    own = _spread(other.axes, len(axes))
    if own is None:
        return None
    place = {mine: axis for mine, axis in zip(own, axes, strict=True) if mine is not None}
    if other.var is None or None in place.values():
        return None
    return Gain(other.var, tuple(place.get(i) for i in range(len(other.var.aval.shape))))


def divided(a: Value, b: Value) -> Value:
    if isinstance(b, Number):
        return multiplied(a, Number(1 / b.value)) if b.value else None
    return multiplied(a, power(b, -1)) if isinstance(b, Channels) else None


def subtracted(a: Value, b: Value, close: float) -> Value:
    """w - mean(w), where both may have one factor."""
    if not isinstance(a, Weight) or not isinstance(b, Sums) or a.w != b.w:
        return None
    count = math.prod(a.w.shape[axis] for axis in b.summed)
    spread = tuple(None if axis in b.summed else axis for axis in a.axes)
    mean = replace(b.factor, scale=b.factor.scale * count)
    if _spread(b.axes, len(spread)) != spread or not math.isclose(
        mean.scale, a.factor.scale, rel_tol=close
    ):
        return None
    if replace(mean, scale=a.factor.scale) != a.factor:
        return None
    if a.mean or b.zero:
        return a if a.mean == b.summed and b.zero else None
    return replace(a, mean=b.summed)


def added(a: Value, b: Value) -> Value:
    if isinstance(a, Number):
        a, b = b, a
    shift = lambda x, number: x + number
    return _shifted(a, b.value, shift) if isinstance(b, Number) and b.value >= 0 else None


def larger(a: Value, b: Value) -> Value:
    if isinstance(a, Number):
        a, b = b, a
    return _shifted(a, b.value, jnp.maximum) if isinstance(b, Number) and b.value >= 0 else None


def _shifted(value: Value, number: float, apply: Callable[..., jax.Array]) -> Value:
    """A rate plus a number ≥ 0, or the larger of both: it changes less than the rate does."""
    rate = value.factor.rate if isinstance(value, Channels) else None
    if not isinstance(value, Channels) or rate is None or value.factor != Factor(rate=rate):
        return None
    changed = replace(
        rate,
        apply=lambda squared: apply(rate.apply(squared), number),
        low=min(rate.low, 0.0),
        high=max(rate.high, 0.0),
        is_length=False,
    )
    return replace(value, factor=Factor(rate=changed))
