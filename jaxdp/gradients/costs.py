"""What each form of a leaf's gradients costs, for one example and besides the backward pass."""

from .choice import Choice, Made, Part, Products, joint_sizes
from .lookup import LookupShape
from .number import NumberShape


def dense_operations(choice: Choice, size: int) -> int:
    """The floating-point operations of a leaf of so many numbers, if it is held as an array."""
    total = 4 * size
    for part in choice.parts:
        if isinstance(part.shape, Products | Made):
            s, t, d, p = joint_sizes(part.shapes)
            total += 2 * s * t * d * p
    return total


def costs_of(choice: Choice, size: int) -> tuple[int, int]:
    """Operations and numbers kept, for a leaf of so many numbers."""
    if choice.form == "zero":
        return 0, 0
    if choice.form in ("dense", "product"):
        return dense_operations(choice, size), size
    operations = sum(map(_operations, choice.parts))
    return operations, sum(part.numbers for part in choice.parts)


def _operations(part: Part) -> int:
    if isinstance(part.shape, NumberShape):
        return 1
    if isinstance(part.shape, LookupShape):
        t, p = len(part.shapes) * part.shape.sizes[0], part.shape.sizes[1]
        return 2 * t * t * p + 2 * t * p
    s, t, d, p = joint_sizes(part.shapes)
    product = 2 * s * t * d * p
    if part.norms == "direct":
        return 2 * product
    return (2 if part.narrow else 1) * product + 2 * s * t * t * (d + p)
