"""Where the numbers of a view lie among those of an array: strides, as in NumPy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Axis(NamedTuple):
    """`size` numbers that lie `stride` apart. Stride 0: one number, repeated."""

    size: int
    stride: int


class Block(NamedTuple):
    """What a view takes of one axis of an array: `size` places, `step` apart, from `start` on."""

    start: int
    size: int
    step: int

    def meets(self, other: "Block") -> bool:
        """Whether a place may be in both."""
        if self.step == other.step and (self.start - other.start) % self.step:
            return False
        last = lambda block: block.start + (block.size - 1) * block.step
        return self.start <= last(other) and other.start <= last(self)


@dataclass(frozen=True)
class Layout:
    """A view of the numbers of an array, which are counted in C order."""

    offset: int
    axes: tuple[Axis, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> "Layout":
        """The array itself."""
        return cls(0, tuple(map(Axis, shape, strides_of(shape))))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)

    @property
    def repeats(self) -> bool:
        """Whether a number is in the view several times."""
        return any(axis.stride == 0 and axis.size > 1 for axis in self.axes)

    def transpose(self, order: Sequence[int]) -> "Layout":
        return replace(self, axes=tuple(self.axes[i] for i in order))

    def reverse(self, dims: Sequence[int]) -> "Layout":
        offset = self.offset + sum((self.axes[i].size - 1) * self.axes[i].stride for i in dims)
        return Layout(
            offset,
            tuple(
                Axis(axis.size, -axis.stride) if i in dims else axis
                for i, axis in enumerate(self.axes)
            ),
        )

    def slice(self, starts: Sequence[int], limits: Sequence[int], steps: Sequence[int]) -> "Layout":
        offset = self.offset + sum(
            start * axis.stride for start, axis in zip(starts, self.axes, strict=True)
        )
        return Layout(
            offset,
            tuple(
                Axis(len(range(start, limit, step)), axis.stride * step)
                for axis, start, limit, step in zip(self.axes, starts, limits, steps, strict=True)
            ),
        )

    def broadcast(self, shape: Sequence[int], dims: Sequence[int]) -> "Layout":
        """As `lax.broadcast_in_dim`: axis i of the view is axis `dims[i]` of the new one."""
        axes = [Axis(size, 0) for size in shape]
        for axis, dim in zip(self.axes, dims, strict=True):
            if axis.size == shape[dim]:
                axes[dim] = axis
        return replace(self, axes=tuple(axes))

    def reshape(self, shape: Sequence[int]) -> "Layout | None":
        """None if the new axes cross the old ones, so that no strides can tell it."""
        old = [axis for axis in self.axes if axis.size != 1]
        new: list[Axis] = []
        wanted = [size for size in shape if size != 1]
        while old or wanted:
            # The fewest axes on both sides that hold equally many numbers.
            i = j = 1
            if not old or not wanted:
                return None
            while (a := math.prod(x.size for x in old[:i])) != (b := math.prod(wanted[:j])):
                i, j = (i + 1, j) if a < b else (i, j + 1)
                if i > len(old) or j > len(wanted):
                    return None
            if any(x.stride != y.stride * y.size for x, y in pairwise(old[:i])):
                return None
            sizes, last = wanted[:j], old[i - 1].stride
            new += [Axis(size, last * s) for size, s in zip(sizes, strides_of(sizes), strict=True)]
            old, wanted = old[i:], wanted[j:]
        rest = iter(new)
        return replace(self, axes=tuple(Axis(1, 0) if size == 1 else next(rest) for size in shape))

    def split(self, strides: Sequence[int]) -> "Layout | None":
        """The same, every axis split so that it stays within one axis of an array.

        `strides` are those of the array. None if an axis can't be split.
        """
        axes: list[Axis] = []
        for size, stride in self.axes:
            parts: list[Axis] = []
            for outer in sorted((s for s in strides if s > abs(stride) > 0), key=abs):
                below = math.prod(part.size for part in parts)
                if below * abs(stride) * (size // below) <= outer or size == below:
                    break
                inside, rest = divmod(outer, abs(stride) * below)
                if rest or (size // below) % inside:
                    return None
                if inside > 1:
                    parts.insert(0, Axis(inside, stride * below))
            below = math.prod(part.size for part in parts)
            if size // below > 1 or not parts:
                parts.insert(0, Axis(size // below, stride * below))
            axes += parts
        return replace(self, axes=tuple(axes))

    def blocks(self, shape: Sequence[int]) -> tuple[Block, ...] | None:
        """What the view takes of each axis of an array of this shape; None if no blocks tell it.

        With a view that repeats nothing.
        """
        if self.repeats or (apart := self._positive().split(strides_of(shape))) is None:
            return None
        rest, blocks = apart.offset, []
        for size, stride in zip(shape, strides_of(shape), strict=True):
            start, rest = divmod(rest, stride)
            inside = sorted(
                (a for a in apart.axes if a.size > 1 and stride <= a.stride < stride * size),
                key=lambda axis: -axis.stride,
            )
            step, count = 1, 1
            if inside:
                if any(a.stride != b.stride * b.size for a, b in pairwise(inside)):
                    return None
                step, odd = divmod(inside[-1].stride, stride)
                count = math.prod(axis.size for axis in inside)
                if odd:
                    return None
            if start + (count - 1) * step >= size:
                return None
            blocks.append(Block(start, count, step))
        taken = math.prod(block.size for block in blocks)
        return tuple(blocks) if taken == math.prod(self.shape) else None

    def restore(self, array: jax.Array, lead: int, shape: Sequence[int]) -> jax.Array:
        """`[*lead, *view]` to `[*lead, *shape]`: every number at its place, zeros elsewhere.

        The first `lead` axes stay as they are. The view must have `blocks` in this shape.
        """
        blocks = self.blocks(shape)
        positive = self._positive()
        apart = positive.split(strides_of(shape))
        assert blocks is not None
        assert apart is not None
        backwards = [lead + i for i, axis in enumerate(self.axes) if axis.stride < 0]
        array = jnp.flip(array, backwards) if backwards else array
        array = array.reshape(*array.shape[:lead], *apart.shape)
        order = sorted(range(len(apart.axes)), key=lambda i: -apart.axes[i].stride)
        array = array.transpose(*range(lead), *[lead + i for i in order])
        array = array.reshape(*array.shape[:lead], *[block.size for block in blocks])
        padding = [(0, 0, 0)] * lead + [
            (start, size - (start + (count - 1) * step + 1), step - 1)
            for size, (start, count, step) in zip(shape, blocks, strict=True)
        ]
        if all(pad == (0, 0, 0) for pad in padding):
            return array
        return jax.lax.pad(array, jnp.zeros([], array.dtype), padding)

    def _positive(self) -> "Layout":
        """The same numbers, with every axis forwards."""
        return self.reverse([i for i, axis in enumerate(self.axes) if axis.stride < 0])


def strides_of(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of an array of this shape in C order."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def in_order(axes: Sequence[Axis]) -> list[int]:
    """The places of axes, largest stride first."""
    return sorted(range(len(axes)), key=lambda i: -abs(axes[i].stride))


def merged(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """The same numbers in the same order with the fewest axes; axes of size 1 are left out."""
    found: list[Axis] = []
    for axis in axes:
        if axis.size == 1:
            continue
        if found and found[-1].stride == axis.stride * axis.size:
            found[-1] = Axis(found[-1].size * axis.size, axis.stride)
        else:
            found.append(axis)
    return tuple(found)
