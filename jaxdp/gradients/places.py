"""Where in a backward pass the gradients of each leaf are measured and summed, as it goes on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .choice import Choice, choose
from .layout import Layout
from .program import Program
from .uses import Use, View

Where = Literal["nowhere", "site", "leaf", "tap"]


@dataclass(frozen=True)
class Place:
    """Where the gradients of one leaf are measured and summed.

    At a "site", the leaf's only use, by slices of it if they are in loops. Elsewhere an example has
    several terms, whose squared norms don't add up: those are measured of all their factors
    together, which are held during a pass (a "tap"), or at the "leaf" as an array.
    """

    where: Where
    choice: Choice  # of a site as if the operand were the leaf, without loops around it

    @property
    def use(self) -> Use:
        return self.choice.uses[0]

    def reason(self, one_pass: bool) -> str:
        """Why the norm is taken as it is, and when."""
        when = "clipped in one pass" if one_pass else "in both passes"
        return {
            "nowhere": self.choice.reason,
            "site": f"{when}, {self.choice.reason}",
            "leaf": f"{when}, one leaf at a time, {self.choice.reason}",
            "tap": f"{when}, factors until its end, {self.choice.reason}",
        }[self.where]


def places(program: Program) -> list[Place]:
    """Where the gradients of each parameter leaf are measured and summed."""
    whole = choose(program, thrifty=False)
    apart = [[_at_operand(uses[0])] if _sliced_once(uses) else [] for uses in program.uses]
    inside = choose(replace(program, uses=apart), thrifty=False)
    sizes = [math.prod(var.aval.shape) for var in program.jaxpr.invars[: len(whole)]]
    return [_place(*leaf) for leaf in zip(whole, inside, sizes, strict=True)]


def _place(whole: Choice, inside: Choice, size: int) -> Place:
    if whole.form == "zero":
        return Place("nowhere", whole)
    if inside.parts:
        return Place("site", replace(inside, uses=whole.uses))
    if whole.parts and sum(part.numbers for part in whole.parts) < size:
        return Place("tap", whole)
    reason = "smaller than its factors" if whole.parts else whole.reason
    return Place("leaf", Choice("dense", reason, whole.uses))


def _sliced_once(uses: Sequence[Use]) -> bool:
    """Whether a leaf has one use, and each iteration of the loops around has its own slice."""
    if len(uses) != 1:
        return False
    view = uses[0].view
    own = isinstance(view.source, int) and view.sliced == len(view.loops)
    return own and view.with_loops.blocks(view.shape) is not None


def _at_operand(use: Use) -> Use:
    """The use as if its operand, in one iteration, were the leaf."""
    if not use.operands:
        return use
    shape = use.operands[use.operand].shape
    return replace(use, view=View(use.view.source, shape, Layout.whole(shape)))


def scattered(places: Sequence[Place], group_of: Sequence[int | None]) -> list[int]:
    """The groups that no place in the backward pass sees whole, by number.

    Those that are held until its end are whole then. A leaf without gradient adds nothing.
    """
    members: dict[int, list[Place]] = {}
    for place, group in zip(places, group_of, strict=True):
        if group is not None and place.where != "nowhere":
            members.setdefault(group, []).append(place)
    return [group for group, own in members.items() if not _seen_whole(own)]


def _seen_whole(members: Sequence[Place]) -> bool:
    if all(place.where == "tap" for place in members):
        return True
    first, *more = members
    return not more and (first.where == "leaf" or not first.use.view.loops)
