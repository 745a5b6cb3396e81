"""Estimates how much temporary memory a clipped gradient takes, and chooses forms that take less.

The estimate is for the whole gradient of m examples: norms, coefficients and weighted sum. What is
held until the coefficients are known is counted together with what the backward pass needs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np

from .buffers import NOTHING, Bytes
from .choice import Choice, Part, choose, inner_of, joint_sizes
from .convolution import ConvShape, rows_at_once
from .costs import costs_of, dense_operations
from .flow import flow_of
from .jax_internals import needed, open_jaxpr
from .liveness import Liveness
from .lookup import LookupShape
from .number import NumberShape
from .places import places
from .program import Program
from .ragged import RaggedShape
from .representations import accumulation_dtype
from .tapped import Tapped, found_at

# How much more memory than vmap(grad) factors may take: the estimates are no better.
TOLERANCE = 1.05

# Forms are compared for a batch of this size: large, so that what examples share matters little.
_MANY = 256

# How often leaves are moved from factors to arrays. Each time costs a trace of the gradient.
_ROUNDS = 4


@dataclass(frozen=True)
class Estimate:
    """The temporary memory of a gradient of m examples at a time, in bytes."""

    points: tuple[Bytes, ...]  # the backward pass, at its peak: the largest of them counts
    kept: Bytes = NOTHING  # what is there at its end
    # By leaf, what its norms and its sum take besides, for a number of examples.
    answers: tuple[Callable[[int], int], ...] = ()
    # What making each product takes, during the backward pass.
    products: tuple[Callable[[int], int], ...] = ()

    def of(self, examples: int) -> int:
        product = max([0, *[needs(examples) for needs in self.products]])
        before = max(point.of(examples) for point in self.points) + product
        return max([before, *[self.kept.of(examples) + ends(examples) for ends in self.answers]])

    def plus(self, more: Bytes) -> "Estimate":
        points = tuple(point.plus(more) for point in self.points)
        return replace(self, points=points, kept=self.kept.plus(more))


def plain_memory(program: Program) -> Estimate:
    """That of the gradient of the mean loss."""
    return _backward(program, _all_dense(program), summed=True)


def vmap_memory(program: Program) -> Estimate:
    return form_memory(program, _all_dense(program))


def two_pass_memory(program: Program) -> Estimate:
    """That of two backward passes, with what each of them holds for every example."""
    found = places(program)
    rows = sum(_size(program, i) for i, place in enumerate(found) if place.where == "leaf")
    dense = Choice("dense", "")
    choices = [place.choice if place.where == "tap" else dense for place in found]
    answers = [
        partial(_answers, program, i, place.choice)
        for i, place in enumerate(found)
        if place.where == "tap"
    ]
    # Patches of a convolution are gathered where its kernel's gradient arises.
    patches = [
        partial(_answers, program, i, place.choice)
        for i, place in enumerate(found)
        if place.where == "site" and isinstance(place.choice.parts[0].shape, ConvShape)
    ]
    estimate = _backward(program, choices, summed=True).plus(Bytes(0, rows))
    return replace(estimate, answers=tuple(answers), products=tuple(patches))


def form_memory(program: Program, choices: Sequence[Choice]) -> Estimate:
    """That of gradients in chosen forms."""
    estimate = _backward(program, choices, summed=False)
    answers = [partial(_answers, program, i, choice) for i, choice in enumerate(choices)]
    products = [
        partial(_of_part, part)
        for choice in choices
        for part in choice.parts
        if choice.form == "product" and isinstance(part.shape, ConvShape)
    ]
    return replace(estimate, answers=tuple(answers), products=tuple(products))


def accumulators(program: Program) -> int:
    """The bytes of a sum over microbatches: the total, and what rounding has taken from it."""
    return 2 * sum(_size(program, i) for i in range(len(program.uses)))


def _all_dense(program: Program) -> list[Choice]:
    return [Choice("dense", "") for _ in program.uses]


def _size(program: Program, leaf: int) -> int:
    """The bytes of one leaf's gradient."""
    aval = program.jaxpr.invars[leaf].aval
    return int(np.prod(aval.shape)) * accumulation_dtype(aval.dtype).itemsize


def _backward(program: Program, choices: Sequence[Choice], summed: bool) -> Estimate:
    """The memory of the backward pass, and of what is there at its end.

    `summed`: whether the gradients of dense leaves are added up over the examples, and not counted.
    """
    tapped = Tapped(program, choices, frozenset())
    count = len(program.uses)
    avals = [var.aval for var in program.jaxpr.invars]
    varies = [count <= place < len(avals) - program.shared for place in range(len(avals))]
    products: list[tuple[range, int]] = []

    def differentiate(*inputs: Any) -> list[Any]:
        found = tapped.differentiate(inputs[:count], inputs[count:])
        (cotangents, gradients), (_, recorded) = found
        results = list(gradients)
        for leaf, choice in enumerate(choices):
            begin = len(results)
            for part in choice.parts if choice.form not in ("dense", "zero") else ():
                for use, shape in zip(part.uses, part.shapes, strict=True):
                    operands, cotangent = found_at(
                        tapped.sites, use, shape.recorded, cotangents, recorded
                    )
                    results += [*operands, cotangent]
            if choice.form == "product":
                products.append((range(begin, len(results)), _size(program, leaf)))
        return results

    jaxpr = needed(open_jaxpr(jax.make_jaxpr(differentiate)(*avals))[0])
    flags = [summed and place < len(tapped.dense) for place in range(len(jaxpr.outvars))]
    liveness = Liveness(flow_of(jaxpr, varies, summed=flags, returned=flags, products=products))
    return Estimate(tuple(liveness.peaks()), liveness.kept())


def _answers(program: Program, leaf: int, choice: Choice, examples: int) -> int:
    """What the norms and the weighted sum of a leaf take besides what is kept."""
    if choice.form == "zero":
        return 0
    stored = examples * _size(program, leaf)
    if choice.form == "dense":
        return stored
    parts = [_of_part(part, examples) for part in choice.parts]
    return max([stored, *parts] if choice.form == "product" else parts)


def _of_part(part: Part, examples: int) -> int:
    shape = inner_of(part.shape)
    if isinstance(shape, NumberShape):
        return 0
    if isinstance(shape, LookupShape):
        t, p = shape.sizes
        return 4 * examples * len(part.shapes) * t * (2 * p + 1)
    s, t, d, p = joint_sizes(part.shapes)
    products = s * d * p if part.norms == "direct" else 2 * s * t * t
    if isinstance(shape, ConvShape):
        rows = rows_at_once(examples, examples * s * t * d)
        # Gathered, and brought into the order of the product.
        return 4 * max(
            examples * s * t * (d // shape.window + p), rows * (2 * s * t * d + products)
        )
    # Both factors without rows that are not finite, and one scaled; or the products.
    return 4 * examples * max(s * t * (d + 2 * p), products)


def forms(program: Program, thrifty: bool) -> list[Choice]:
    """The forms in which one pass holds the gradients of each leaf.

    Args:
      program: the loss.
      thrifty: whether arrays may take the place of factors where they are cheaper or smaller.
    """
    choices = choose(program, thrifty)
    return lightened(program, choices) if thrifty else choices


def lightened(program: Program, choices: list[Choice]) -> list[Choice]:
    """Forms that take no more memory than vmap(grad), whatever they take leaf by leaf.

    Leaves go from factors to arrays, those first that save most for an operation more. Only shapes
    decide, and not the batch's size.
    """
    sizes = [_size(program, i) // 4 for i in range(len(choices))]
    costs = [costs_of(*each) for each in zip(choices, sizes, strict=True)]
    # JAX can't differentiate a ragged product under vmap.
    held = [any(isinstance(part.shape, RaggedShape) for part in c.parts) for c in choices]
    saved = {
        i: numbers - sizes[i]
        for i, (_, numbers) in enumerate(costs)
        if numbers > sizes[i] and not held[i]
    }
    if sum(numbers for _, numbers in costs) <= sum(sizes):
        return choices
    limit = TOLERANCE * vmap_memory(program).of(_MANY)
    price = lambda i: max(dense_operations(choices[i], sizes[i]) - costs[i][0], 1) / saved[i]
    waiting = sorted(saved, key=lambda i: (price(i), i))
    for left in reversed(range(_ROUNDS)):
        excess = form_memory(program, choices).of(_MANY) - limit
        if excess <= 0 or not waiting:
            break
        while waiting and (excess > 0 or left == 0):
            i = waiting.pop(0)
            excess -= 4 * saved[i] * _MANY
            choices = [_stored(c) if j == i else c for j, c in enumerate(choices)]
    return choices


def _stored(choice: Choice) -> Choice:
    """The same leaf, held as an array."""
    return replace(choice, form="dense", reason="its factors take more memory")
