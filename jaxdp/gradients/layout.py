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
    """A view of the numbers of an array, which are counted in C order.

    An axis of the view is made of several axes where one stride can't tell it.
    """

    offset: int
    dims: tuple[tuple[Axis, ...], ...]  # what each axis of the view is made of

    @classmethod
    def of(cls, offset: int, axes: Sequence[Axis]) -> "Layout":
        """A view with one stride for each axis."""
        return cls(offset, tuple((axis,) for axis in axes))

    @classmethod
    def whole(cls, shape: Sequence[int]) -> "Layout":
        """The array itself."""
        return cls.of(0, tuple(map(Axis, shape, strides_of(shape))))

    @property
    def axes(self) -> tuple[Axis, ...]:
        """All that the view's axes are made of, in order."""
        return tuple(axis for dim in self.dims for axis in dim)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(math.prod(axis.size for axis in dim) for dim in self.dims)

    @property
    def simple(self) -> bool:
        """Whether every axis has one stride."""
        return all(len(dim) == 1 for dim in self.dims)

    @property
    def repeats(self) -> bool:
        """Whether a number is in the view several times."""
        return any(axis.stride == 0 and axis.size > 1 for axis in self.axes)

    def transpose(self, order: Sequence[int]) -> "Layout":
        return replace(self, dims=tuple(self.dims[i] for i in order))

    def reverse(self, places: Sequence[int]) -> "Layout":
        axes = [axis for i in places for axis in self.dims[i]]
        offset = self.offset + sum((axis.size - 1) * axis.stride for axis in axes)
        backwards = lambda dim: tuple(Axis(axis.size, -axis.stride) for axis in dim)
        dims = (backwards(dim) if i in places else dim for i, dim in enumerate(self.dims))
        return Layout(offset, tuple(dims))

    def slice(
        self, starts: Sequence[int], limits: Sequence[int], steps: Sequence[int]
    ) -> "Layout | None":
        """None if an axis that is made of several is cut."""
        offset, dims = self.offset, list(self.dims)
        for i, (size, *cut) in enumerate(zip(self.shape, starts, limits, steps, strict=True)):
            start, limit, step = cut
            if (start, limit, step) == (0, size, 1):
                continue
            if len(self.dims[i]) != 1:
                return None
            ((_, stride),) = self.dims[i]
            offset += start * stride
            dims[i] = (Axis(len(range(start, limit, step)), stride * step),)
        return Layout(offset, tuple(dims))

    def broadcast(self, shape: Sequence[int], places: Sequence[int]) -> "Layout":
        """As `lax.broadcast_in_dim`: axis i of the view is axis `places[i]` of the new one."""
        dims: list[tuple[Axis, ...]] = [(Axis(size, 0),) for size in shape]
        for size, dim, place in zip(self.shape, self.dims, places, strict=True):
            if size == shape[place]:
                dims[place] = dim
        return replace(self, dims=tuple(dims))

    def reshape(self, shape: Sequence[int]) -> "Layout | None":
        """None if a new axis begins or ends within an old one, at no multiple of its parts."""
        left = [axis for axis in self.axes if axis.size != 1]
        dims = []
        for size in shape:
            dim: list[Axis] = []
            while size > 1:
                axis = left.pop(0)
                if size % axis.size == 0:
                    dim.append(axis)
                    size //= axis.size
                elif axis.size % size == 0:
                    inside = axis.size // size
                    dim.append(Axis(size, axis.stride * inside))
                    left.insert(0, Axis(inside, axis.stride))
                    size = 1
                else:
                    return None
            dims.append(merged(dim) or (Axis(1, 0),))
        return replace(self, dims=tuple(dims))

    def split(self, strides: Sequence[int]) -> "Layout | None":
        """The same, every axis split so that it stays within one axis of an array.

        `strides` are those of the array. None if an axis can't be split.
        """
        axes: list[Axis] = []
        for size, stride in self.axes:
            parts: list[Axis] = []  # innermost last
            for border in sorted(s for s in strides if s > abs(stride) > 0):
                # What is left of this axis, in steps of what was split off.
                step = stride * math.prod(part.size for part in parts)
                if size * abs(step) <= border:
                    break
                inside, rest = divmod(border, abs(step))
                if rest or size % inside:
                    return None
                parts.insert(0, Axis(inside, step))
                size //= inside
            parts.insert(0, Axis(size, stride * math.prod(part.size for part in parts)))
            axes += [part for part in parts if part.size > 1] or [Axis(1, stride)]
        return Layout.of(self.offset, axes)

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
        array = array.reshape(*array.shape[:lead], *[axis.size for axis in self.axes])
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
        apart = Layout.of(self.offset, self.axes)
        return apart.reverse([i for i, axis in enumerate(self.axes) if axis.stride < 0])


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
