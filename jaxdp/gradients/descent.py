"""Factors of a derived weight's gradient go on to the leaves that it is made of.

Where the weight is computed from leaves by sums, products with a matrix, scales or concatenations,
the gradient of each leaf has the same form, with factors that are transformed once: d(W + AB)/dA of
a ⊗ c is a ⊗ Bc. Norm and sum use the same transformed factors.
"""

import math
from collections.abc import Iterator

import jax

from .factor_rules import RULES, Aligned
from .factors import Factors, Step
from .layout import Axis, Layout, in_order, strides_of
from .uses import Derived, View


def _align(form: Factors) -> tuple[Aligned, Step] | None:
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
    aligned = Aligned(
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


def _to_operands(
    form: Factors, derived: Derived
) -> Iterator[tuple[View, Factors, list[Step]] | None]:
    """For every operand of a derived value that has leaves: the factors of its source's gradient.

    `form` is that of the derived value. None stands for operands that no rule takes.
    """
    start, rule = _align(form), RULES.get(derived.eqn.primitive)
    for position, view in enumerate(derived.operands):
        if not view.leaves:
            continue
        fits = view.layout.simple and not view.layout.repeats
        found = rule(start[0], derived, position) if start and rule and fits else None
        if start is None or found is None:
            yield None
            continue
        aligned, step = found
        final, move = _relocate(aligned, view)
        yield view, final, [start[1], step, move]


def _relocate(aligned: Aligned, view: View) -> tuple[Factors, Step]:
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
    form = Factors(view.shape, offset, sliced + of("s"), t, of("d"), of("p"), aligned.outer[:kept])
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


def descend(
    view: View, form: Factors, steps: list[Step]
) -> dict[int, tuple[Factors, list[Step]] | None]:
    """By leaf, the factors of its gradient, given those of a view's source.

    None for a leaf that is reached on several ways, or on one that no rule takes.
    """
    found: dict[int, tuple[Factors, list[Step]] | None] = {}
    visits = 0

    def go(view: View, form: Factors, steps: list[Step]) -> None:
        nonlocal visits
        visits += 1
        if isinstance(view.source, int):
            found[view.source] = None if view.source in found else (form, steps)
            return
        assert isinstance(view.source, Derived)
        operands = [operand for operand in view.source.operands if operand.leaves]
        for operand, way in zip(operands, _to_operands(form, view.source), strict=True):
            if way is None or visits > _MOST_VISITS:
                found.update(dict.fromkeys(operand.leaves))
            else:
                go(way[0], way[1], [*steps, *way[2]])

    go(view, form, steps)
    return found


_MOST_VISITS = 200  # a value may be reached on very many ways: then it is left to other forms
