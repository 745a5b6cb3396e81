"""The factors of a gradient: what they are factors of, and the steps that make them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from .layout import Axis, Layout, in_order, merged
from .uses import Derived

# One step from factors to factors. Arrays: a [b, *outer, *s, t, *d] and c [b, *outer, *s, t, *p];
# then the value of the known operand, `[*outer, *its shape]`, if the step has one.
Transform = Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, jax.Array]]


@dataclass(frozen=True)
class Step:
    transform: Transform
    # The operand that the transform needs: that of the equation of a derived value, by position.
    known: tuple[Derived, int] | None = None


@dataclass(frozen=True)
class Factors:
    """What the factors of a gradient are factors of: the numbers of an array, by their places.

    s are axes that both factors have, d those of a alone, p those of c alone; t positions are
    summed over.
    """

    shape: tuple[int, ...]  # of the array
    offset: int
    s: tuple[Axis, ...]
    t: int
    d: tuple[Axis, ...]
    p: tuple[Axis, ...]
    outer: tuple[int, ...] = ()  # the lengths of the loops around the array

    @property
    def layout(self) -> Layout:
        return Layout.of(self.offset, self.s + self.d + self.p)

    @property
    def key(self) -> tuple:
        """Equal for factors of the same numbers in the same order, once `sort` has been done."""
        return self.offset, merged(self.s), merged(self.d), merged(self.p)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """s, t, d, p."""
        count = lambda axes: math.prod(axis.size for axis in axes)
        return count(self.s), self.t, count(self.d), count(self.p)

    def sort(self, turn: bool = True) -> tuple["Factors", Step]:
        """Axes in the order of the array, joined: factors `[b, s, t, d]` and `[b, s, t, p]`.

        With `turn`, d and p change places where p comes first in the array, so that all uses of an
        array in products are alike.
        """
        assert not self.outer
        # Every axis forwards, largest stride first.
        count = len(self.s)
        groups = (self.s, self.d, self.p)
        orders = [in_order(axes) for axes in groups]
        flips = [[i for i, axis in enumerate(axes) if axis.stride < 0] for axes in groups]
        offset = self.offset + sum(
            (axis.size - 1) * axis.stride for axes in groups for axis in axes if axis.stride < 0
        )
        s, d, p = (
            tuple(Axis(axes[i].size, abs(axes[i].stride)) for i in order)
            for axes, order in zip(groups, orders, strict=True)
        )
        # The factor that runs along the axis with the largest stride comes first.
        first = lambda axes: max((axis.stride for axis in axes if axis.size > 1), default=0)
        swapped = turn and first(p) > first(d)

        def side(x: jax.Array, own: int) -> jax.Array:
            backwards = [1 + i for i in flips[0]]
            backwards += [1 + count + 1 + i for i in flips[own]]
            return _joined(jnp.flip(x, backwards) if backwards else x, orders[0], orders[own])

        def transform(a: jax.Array, c: jax.Array, _: Any) -> tuple[jax.Array, jax.Array]:
            a, c = side(a, 1), side(c, 2)
            return (c, a) if swapped else (a, c)

        d, p = (p, d) if swapped else (d, p)
        return replace(self, offset=offset, s=s, d=d, p=p), Step(transform)


def _joined(array: jax.Array, s: Sequence[int], own: Sequence[int]) -> jax.Array:
    """Brings axes to these orders and joins them: `[b, *s, t, *own]` to `[b, s, t, own]`."""
    n = len(s)
    array = array.transpose(0, *[1 + i for i in s], 1 + n, *[2 + n + i for i in own])
    sizes = math.prod(array.shape[1 : 1 + n]), array.shape[1 + n], math.prod(array.shape[2 + n :])
    return array.reshape(array.shape[0], *sizes)
