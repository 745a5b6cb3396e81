"""Joins the axes of an array and splits them again."""

import math
from collections.abc import Iterable, Sequence

import jax


def grouped(array: jax.Array, groups: Sequence[Sequence[int]]) -> jax.Array:
    """`[b, *axes]` to `[b, one axis per group]`; axes are counted behind b."""
    order = [0, *(1 + axis for group in groups for axis in group)]
    sizes = [math.prod(array.shape[1 + axis] for axis in group) for group in groups]
    return array.transpose(order).reshape(array.shape[0], *sizes)


def ungrouped(array: jax.Array, lead: int, sizes: Sequence[int], order: Sequence[int]) -> jax.Array:
    """Splits all axes behind the first `lead` into axes of these sizes, then brings these to order.

    Axis i of the result, counted behind `lead`, is the `order[i]`-th of the split ones.
    """
    apart = array.reshape(*array.shape[:lead], *sizes)
    return apart.transpose(*range(lead), *[lead + axis for axis in order])


def folded(array: jax.Array, axes: Iterable[int], into: int) -> jax.Array:
    """Folds axes into a later one, in front of what it counts."""
    axes = list(axes)
    if not axes:
        return array
    rest = [axis for axis in range(array.ndim) if axis not in axes]
    order = [axis for r in rest for axis in ([*axes, r] if r == into else [r])]
    sizes = [
        array.shape[into] * math.prod(array.shape[a] for a in axes) if r == into else array.shape[r]
        for r in rest
    ]
    return array.transpose(order).reshape(sizes)
