"""Factors of a gradient, and how they go from a derived weight to the leaves that it is made of.

The gradient of a matrix product's weight is Σ_t a_t ⊗ c_t. Where the weight is computed from leaves
by sums, products with a matrix, scales or concatenations, the gradient of each leaf has the same
form, with factors that are transformed once: d(W + AB)/dA of a ⊗ c is a ⊗ Bc. Norm and sum use the
same transformed factors.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import Precision

from .jax_internals import STACK
from .jax_internals import primitives as p
from .layout import Axis, Block, Layout, in_order, merged, strides_of
from .representations import wide
from .uses import Derived, View

# One step from factors to factors. Arrays: a [b, *outer, *s, t, *d] and c [b, *outer, *s, t, *p];
# then the value of the known operand, `[*outer, *its shape]`, if the step has one.
Transform = Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, jax.Array]]


@dataclass(frozen=True)
class Step:
    transform: Transform
    known: tuple[Derived, int] | None = None  # an operand of what equation the transform needs


@dataclass(frozen=True)
class Form:
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

    @property
    def lead(self) -> int:
        """How many axes are in front of d, and of p."""
        return 2 + len(self.outer) + len(self.s)

    def sort(self, turn: bool = True) -> tuple["Form", Step]:
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


@dataclass(frozen=True)
class _Aligned:
    """Factors of a gradient in terms of the axes of an array; every axis is in one group."""

    group: tuple[str, ...]  # of every axis of the array: "s", "d" or "p"
    blocks: tuple[Block, ...]
    t: int
    outer: tuple[int, ...]

    def axes_of(self, group: str) -> list[int]:
        return [k for k, own in enumerate(self.group) if own == group]

    def whole(self, axis: int, size: int) -> bool:
        return self.blocks[axis] == Block(0, size, 1)


def _align(form: Form) -> tuple[_Aligned, Step] | None:
    """Splits and joins the axes of factors to those of the array; None if they don't fit."""
    strides = strides_of(form.shape)
    blocks = form.layout.blocks(form.shape)
    parts = {name: Layout.of(0, getattr(form, name)).split(strides) for name in ("s", "d", "p")}
    if blocks is None or any(part is None for part in parts.values()):
        return None
    if any(axis.stride < 0 for axis in form.layout.axes):
        return None
    owner: dict[int, str] = {}
    places: dict[str, list[list[int]]] = {}
    for name, part in parts.items():
        assert part is not None
        places[name] = [[] for _ in form.shape]
        for i in in_order(part.axes):
            size, stride = part.axes[i]
            if size == 1:
                continue
            k = next(k for k, n in enumerate(form.shape) if strides[k] <= stride < strides[k] * n)
            if owner.setdefault(k, name) != name:
                return None
            places[name][k].append(i)
    aligned = _Aligned(
        tuple(owner.get(k, "p") for k in range(len(form.shape))), blocks, form.t, form.outer
    )
    outer = len(form.outer)

    def arranged(array: jax.Array, side: str) -> jax.Array:
        b, *loops = array.shape[: 1 + outer]
        split = lambda name: parts[name].shape  # type: ignore[union-attr]
        array = array.reshape(b, *loops, *split("s"), form.t, *split(side))
        first = {"s": 1 + outer, side: 2 + outer + len(split("s"))}

        def order(name: str) -> Iterator[int]:
            ones = [i for i, size in enumerate(split(name)) if size == 1]
            yield from (first[name] + i for i in ones)
            for own in places[name]:
                yield from (first[name] + i for i in own)

        t = 1 + outer + len(split("s"))
        array = array.transpose(*range(1 + outer), *order("s"), t, *order(side))
        sizes = lambda name: [blocks[k].size for k in aligned.axes_of(name)]
        return array.reshape(b, *loops, *sizes("s"), form.t, *sizes(side))

    return aligned, Step(lambda a, c, _: (arranged(a, "d"), arranged(c, "p")))


def pulled(form: Form, derived: Derived) -> Iterator[tuple[View, Form, list[Step]] | None]:
    """For every operand of a derived value that has leaves: the factors of its source's gradient.

    `form` is that of the derived value. None stands for operands that no rule takes.
    """
    start = _align(form)
    for position, view in enumerate(derived.operands):
        if not view.leaves:
            continue
        rule = _RULES.get(derived.eqn.primitive)
        found = None
        if (
            start is not None
            and rule is not None
            and view.layout.simple
            and not view.layout.repeats
        ):
            found = rule(start[0], derived, position)
        if start is None or found is None:
            yield None
            continue
        aligned, step = found
        final, move = _relocate(aligned, view)
        yield view, final, [start[1], step, move]


def _relocate(aligned: _Aligned, view: View) -> tuple[Form, Step]:
    """From the numbers of a view to those of its source; loops between them become positions."""
    axes = [
        Axis(block.size, axis.stride * block.step)
        for axis, block in zip(view.layout.axes, aligned.blocks, strict=True)
    ]
    offset = view.layout.offset + sum(
        axis.stride * block.start
        for axis, block in zip(view.layout.axes, aligned.blocks, strict=True)
    )
    kept = len(aligned.outer) - len(view.loops)
    own = [kept + i for i, (_, axis) in enumerate(view.loops) if axis is not None]
    same = [kept + i for i, (_, axis) in enumerate(view.loops) if axis is None]
    of = lambda name: tuple(axes[k] for k in aligned.axes_of(name))
    sliced = tuple(axis for _, axis in view.loops if axis is not None)
    t = aligned.t * math.prod(aligned.outer[i] for i in same)
    form = Form(view.shape, offset, sliced + of("s"), t, of("d"), of("p"), aligned.outer[:kept])
    num_s, num_outer = len(aligned.axes_of("s")), len(aligned.outer)

    def moved(array: jax.Array) -> jax.Array:
        s = range(1 + num_outer, 1 + num_outer + num_s)
        at_t = 1 + num_outer + num_s
        loops = lambda places: [1 + i for i in places]
        order = [0, *loops(range(kept)), *loops(own), *s, *loops(same), at_t]
        array = array.transpose(*order, *range(at_t + 1, array.ndim))
        front = kept + len(own) + num_s + 1
        return array.reshape(*array.shape[:front], t, *array.shape[front + len(same) + 1 :])

    return form, Step(lambda a, c, _: (moved(a), moved(c)))


def _of_sum(aligned: _Aligned, derived: Derived, position: int) -> tuple[_Aligned, Step] | None:
    if derived.eqn.invars[position].aval.shape != derived.shape:
        return None
    sign = -1 if derived.eqn.primitive is p.sub_p and position == 1 else 1
    return aligned, Step(lambda a, c, _: (a, sign * c))


def _of_negative(
    aligned: _Aligned, derived: Derived, position: int
) -> tuple[_Aligned, Step] | None:
    return aligned, Step(lambda a, c, _: (a, -c))


def _of_scale(aligned: _Aligned, derived: Derived, position: int) -> tuple[_Aligned, Step] | None:
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


def _of_product(aligned: _Aligned, derived: Derived, position: int) -> tuple[_Aligned, Step] | None:
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
    new = _Aligned(tuple(group), tuple(blocks), aligned.t, aligned.outer)
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
    aligned: _Aligned, derived: Derived, position: int
) -> tuple[_Aligned, Step] | None:
    """One of several values side by side: its own part of the factor that runs along them."""
    axis = derived.eqn.params["dimension"]
    shapes = [atom.aval.shape for atom in derived.eqn.invars]
    begin = sum(shape[axis] for shape in shapes[:position])
    return _cut(aligned, derived, axis, begin, shapes[position][axis])


def _of_stack(aligned: _Aligned, derived: Derived, position: int) -> tuple[_Aligned, Step] | None:
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
    aligned: _Aligned, derived: Derived, axis: int, begin: int, size: int
) -> tuple[_Aligned, Step] | None:
    if not aligned.whole(axis, derived.shape[axis]):
        return None
    blocks = list(aligned.blocks)
    blocks[axis] = Block(0, size, 1)
    name, at = aligned.group[axis], _place(aligned, axis)
    cut = lambda x: jax.lax.slice_in_dim(x, begin, begin + size, axis=at)

    def transform(a: jax.Array, c: jax.Array, _: Any) -> tuple[jax.Array, jax.Array]:
        return (a if name == "p" else cut(a)), (c if name == "d" else cut(c))

    return replace(aligned, blocks=tuple(blocks)), Step(transform)


def _place(aligned: _Aligned, axis: int) -> int:
    """The axis of the factors that is this axis of the array."""
    name, outer = aligned.group[axis], len(aligned.outer)
    in_group = aligned.axes_of(name).index(axis)
    return 1 + outer + in_group + (0 if name == "s" else 1 + len(aligned.axes_of("s")))


_RULES = {
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


def descend(view: View, form: Form, steps: list[Step]) -> dict[int, tuple[Form, list[Step]] | None]:
    """By leaf, the factors of its gradient, given those of a view's source.

    None for a leaf that is reached on several ways, or on one that no rule takes.
    """
    found: dict[int, tuple[Form, list[Step]] | None] = {}
    visits = 0

    def go(view: View, form: Form, steps: list[Step]) -> None:
        nonlocal visits
        visits += 1
        if isinstance(view.source, int):
            found[view.source] = None if view.source in found else (form, steps)
            return
        assert isinstance(view.source, Derived)
        operands = [operand for operand in view.source.operands if operand.leaves]
        for operand, way in zip(operands, pulled(form, view.source), strict=True):
            if way is None or visits > _MOST_VISITS:
                found.update(dict.fromkeys(operand.leaves))
            else:
                go(way[0], way[1], [*steps, *way[2]])

    go(view, form, steps)
    return found


_MOST_VISITS = 200  # a value may be reached on very many ways: then it is left to other forms
