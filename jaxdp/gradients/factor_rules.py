"""How factors go through an equation that makes a weight of parameters, one rule for each kind.

The gradient of the result is Σ_t a_t ⊗ c_t. Sums, scales, products with a matrix and concatenation
act on one of the two factors, or on none.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import Precision

from .factors import Step
from .jax_internals import STACK
from .jax_internals import primitives as p
from .layout import Block
from .representations import wide
from .uses import Derived


@dataclass(frozen=True)
class Aligned:
    """Factors of a gradient in terms of the axes of an array; every axis is in one group."""

    group: tuple[str, ...]  # of every axis of the array: "s", "d" or "p"
    blocks: tuple[Block, ...]
    t: int
    outer: tuple[int, ...]

    def axes_of(self, group: str) -> list[int]:
        return [k for k, own in enumerate(self.group) if own == group]

    def whole(self, axis: int, size: int) -> bool:
        return self.blocks[axis] == Block(0, size, 1)


def _of_sum(aligned: Aligned, derived: Derived, position: int) -> tuple[Aligned, Step] | None:
    if derived.eqn.invars[position].aval.shape != derived.shape:
        return None
    sign = -1 if derived.eqn.primitive is p.sub_p and position == 1 else 1
    return aligned, Step(lambda a, c, _: (a, sign * c))


def _of_negative(aligned: Aligned, derived: Derived, position: int) -> tuple[Aligned, Step] | None:
    return aligned, Step(lambda a, c, _: (a, -c))


def _of_scale(aligned: Aligned, derived: Derived, position: int) -> tuple[Aligned, Step] | None:
    """A value times, or over, one that varies along axes of one group only."""
    eqn = derived.eqn
    other = derived.operands[1 - position]
    if eqn.invars[position].aval.shape != derived.shape:
        return None
    if eqn.primitive is p.div_p and position == 1:
        return None
    moves = lambda dim: any(axis.stride and axis.size > 1 for axis in dim)
    varies = [k for k, dim in enumerate(other.layout.dims) if moves(dim)]
    groups = {aligned.group[k] for k in varies}
    if len(groups) > 1 or "s" in groups:
        return None
    side = groups.pop() if groups else "p"
    outer, num_s = len(aligned.outer), len(aligned.axes_of("s"))

    def transform(a: jax.Array, c: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        a, c, scale = wide(a, c, scale)
        if scale.ndim > outer:
            cut = [
                slice(b.start, b.start + (b.size - 1) * b.step + 1, b.step) for b in aligned.blocks
            ]
            # Where it repeats one number along an axis, one is enough.
            one = [c if k in varies else slice(0, 1) for k, c in enumerate(cut)]
            scale = scale[(slice(None),) * outer + tuple(one)]
            sizes = [scale.shape[outer + k] for k in aligned.axes_of(side)]
        else:
            sizes = [1] * len(aligned.axes_of(side))
        scale = scale.reshape(1, *scale.shape[:outer], *[1] * num_s, 1, *sizes)
        if eqn.primitive is p.div_p:
            return (a / scale, c) if side == "d" else (a, c / scale)
        return (a * scale, c) if side == "d" else (a, c * scale)

    return aligned, Step(transform, (derived, 1 - position))


def _of_product(aligned: Aligned, derived: Derived, position: int) -> tuple[Aligned, Step] | None:
    """A matrix product of a value with another."""
    eqn = derived.eqn
    contracting, batch = eqn.params["dimension_numbers"]
    if batch[0]:
        return None
    shapes = [atom.aval.shape for atom in eqn.invars]
    free = [[k for k in range(len(shapes[side])) if k not in contracting[side]] for side in (0, 1)]
    first = {0: 0, 1: len(free[0])}  # where the free axes of each side begin in the result
    other = 1 - position
    theirs = [first[other] + i for i in range(len(free[other]))]
    sizes = [shapes[other][k] for k in free[other]]
    groups = {aligned.group[k] for k, size in zip(theirs, sizes, strict=True) if size > 1}
    if len(groups) > 1 or "s" in groups:
        return None
    if not all(aligned.whole(k, size) for k, size in zip(theirs, sizes, strict=True)):
        return None
    side = groups.pop() if groups else "p"
    mine = [first[position] + i for i in range(len(free[position]))]
    group, blocks = [""] * len(shapes[position]), [Block(0, 1, 1)] * len(shapes[position])
    for k, at in zip(free[position], mine, strict=True):
        group[k], blocks[k] = aligned.group[at], aligned.blocks[at]
    for k in contracting[position]:
        group[k], blocks[k] = side, Block(0, shapes[position][k], 1)
    new = Aligned(tuple(group), tuple(blocks), aligned.t, aligned.outer)
    outer, lead = len(aligned.outer), 2 + len(aligned.outer) + len(aligned.axes_of("s"))
    before = aligned.axes_of(side)
    # Axes of size 1 of the other side may be in another group: there they only vanish.
    inside = [k for k in theirs if k in before]
    kept = [k for k in before if k not in theirs]

    def one_side(x: jax.Array, matrix: jax.Array) -> jax.Array:
        ones = [outer + free[other][i] for i, k in enumerate(theirs) if k not in inside]
        matrix = jnp.squeeze(matrix, ones)
        # What is left of the matrix's axes, by the axis that they had.
        left = [k for k in range(len(shapes[other])) if outer + k not in ones]
        axes_x = [lead + before.index(k) for k in inside]
        axes_m = [outer + left.index(free[other][theirs.index(k)]) for k in inside]
        loops = list(range(outer))
        numbers = ((axes_x, axes_m), ([1 + i for i in loops], loops))
        y = jax.lax.dot_general(x, matrix, numbers, precision=Precision.HIGHEST)
        # [*outer, b, *s, t, *kept, *contracted axes in the matrix's order]
        order_m = [k for k in left if k in contracting[other]]
        labels: list[Any] = [free[position][mine.index(k)] for k in kept]
        labels += [contracting[position][list(contracting[other]).index(k)] for k in order_m]
        wanted = sorted(labels)
        return y.transpose(
            outer,
            *loops,
            *range(1 + outer, lead),
            *[lead + labels.index(k) for k in wanted],
        )

    def dropped(x: jax.Array, name: str) -> jax.Array:
        """Without the other side's axes of size 1 in the group that the product leaves alone."""
        own = aligned.axes_of(name)
        return jnp.squeeze(x, [lead + own.index(k) for k in theirs if k in own])

    def transform(a: jax.Array, c: jax.Array, matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
        a, c, matrix = wide(a, c, matrix)
        if side == "d":
            return one_side(a, matrix), dropped(c, "p")
        return dropped(a, "d"), one_side(c, matrix)

    return new, Step(transform, (derived, other))


def _of_concatenation(
    aligned: Aligned, derived: Derived, position: int
) -> tuple[Aligned, Step] | None:
    """One of several values side by side: its own part of the factor that runs along them."""
    axis = derived.eqn.params["dimension"]
    shapes = [atom.aval.shape for atom in derived.eqn.invars]
    begin = sum(shape[axis] for shape in shapes[:position])
    return _cut(aligned, derived, axis, begin, shapes[position][axis])


def _of_stack(aligned: Aligned, derived: Derived, position: int) -> tuple[Aligned, Step] | None:
    axis = derived.eqn.params["axis"]
    found = _cut(aligned, derived, axis, position, 1)
    if found is None:
        return None
    cut, step = found
    name, at = aligned.group[axis], _place(aligned, axis)
    rest = [k for k in range(len(derived.shape)) if k != axis]
    without = replace(
        cut,
        group=tuple(cut.group[k] for k in rest),
        blocks=tuple(cut.blocks[k] for k in rest),
    )
    squeezed = lambda x: jnp.squeeze(x, at)

    def transform(a: jax.Array, c: jax.Array, _: Any) -> tuple[jax.Array, jax.Array]:
        a, c = step.transform(a, c, None)
        return (a if name == "p" else squeezed(a)), (c if name == "d" else squeezed(c))

    return without, Step(transform)


def _cut(
    aligned: Aligned, derived: Derived, axis: int, begin: int, size: int
) -> tuple[Aligned, Step] | None:
    if not aligned.whole(axis, derived.shape[axis]):
        return None
    blocks = list(aligned.blocks)
    blocks[axis] = Block(0, size, 1)
    name, at = aligned.group[axis], _place(aligned, axis)
    cut = lambda x: jax.lax.slice_in_dim(x, begin, begin + size, axis=at)

    def transform(a: jax.Array, c: jax.Array, _: Any) -> tuple[jax.Array, jax.Array]:
        return (a if name == "p" else cut(a)), (c if name == "d" else cut(c))

    return replace(aligned, blocks=tuple(blocks)), Step(transform)


def _place(aligned: Aligned, axis: int) -> int:
    """The axis of the factors that is this axis of the array."""
    name, outer = aligned.group[axis], len(aligned.outer)
    in_group = aligned.axes_of(name).index(axis)
    return 1 + outer + in_group + (0 if name == "s" else 1 + len(aligned.axes_of("s")))


RULES = {
    p.add_p: _of_sum,
    p.sub_p: _of_sum,
    p.add_jaxvals_p: _of_sum,
    p.neg_p: _of_negative,
    p.mul_p: _of_scale,
    p.div_p: _of_scale,
    p.dot_general_p: _of_product,
    p.concatenate_p: _of_concatenation,
    STACK: _of_stack,
}
