"""Finds where a loss uses each parameter.

A value is a *view* of one parameter leaf while only relabellings (transpose, reshape, cast, ...)
touch it. The first other equation that it meets is a *use* of that leaf.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from .jax_internals import PVARY, Literal, open_jaxpr, scan_counts, source_line
from .jax_internals import primitives as p

# A path names an equation by its index in the loss's jaxpr, then in the jaxpr inside that equation,
# and so on. (The same inner jaxpr may be called twice, so an equation object names nothing.)
Path = tuple[int, ...]

Undo = Callable[[jax.Array, int], jax.Array]


@dataclass(frozen=True)
class Relabelling:
    """One step from a leaf to its view; `undo(array, lead)` reverses it behind `lead` axes."""

    undo: Undo
    sliced: int  # how many loops had sliced the leaf before this step: each adds a leading axis


@dataclass(frozen=True)
class View:
    """How the operand of an equation came from a parameter leaf."""

    leaf: int
    steps: tuple[Relabelling, ...] = ()
    # The loops around the use, outermost first: their lengths, and whether each iteration sees
    # its own slice of the leaf (scan over layers) or the same values (a recurrent cell).
    loops: tuple[tuple[int, bool], ...] = ()

    @property
    def sliced(self) -> int:
        return sum(sliced for _, sliced in self.loops)

    def then(self, undo: Undo) -> "View":
        """The view after one more relabelling."""
        return replace(self, steps=(*self.steps, Relabelling(undo, self.sliced)))

    def restore(self, array: jax.Array, lead: int) -> jax.Array:
        """Turns an array shaped like the use's operand (after sliced loops) into the leaf's shape.

        The first `lead` axes stay as they are.
        """
        for step in reversed(self.steps):
            array = step.undo(array, lead + step.sliced)
        return array


@dataclass(frozen=True)
class Use:
    """One equation that takes a view of a leaf and does more than relabel it."""

    view: View
    path: Path
    primitive: Any  # None if the view leaves the program or a loop without meeting an equation
    params: Mapping[str, Any]
    operand: int  # which operand the view is
    operands: tuple[Any, ...]  # abstract values, without loops
    result: Any
    where: str  # the user's line

    @property
    def what(self) -> str:
        return self.primitive.name if self.primitive is not None else "output"


def find_uses(jaxpr: Any, count: int) -> list[list[Use]]:
    """Finds the uses of each of the first `count` arguments of a jaxpr."""
    search = _Search([[] for _ in range(count)])
    views: list[View | None] = [View(i) for i in range(count)]
    rest = len(jaxpr.invars) - count
    for view in search.jaxpr(jaxpr, [*views, *[None] * rest], ()):
        if view is not None:
            search.add_unknown(view)
    return search.uses


@dataclass(frozen=True)
class _Search:
    """Follows views of the leaves through jaxprs and collects their uses."""

    uses: list[list[Use]]

    def add_unknown(self, view: View, eqn: Any = None, path: Path = (), operand: int = 0) -> None:
        """Adds a use that no rule can read."""
        where = source_line(eqn) if eqn is not None else ""
        primitive = eqn.primitive if eqn is not None else None
        self.uses[view.leaf].append(Use(view, path, primitive, {}, operand, (), None, where))

    def jaxpr(self, jaxpr: Any, inputs: Sequence[View | None], path: Path) -> list[View | None]:
        """Given the views that a jaxpr's inputs are, returns those that its outputs are."""
        views = {
            var: view for var, view in zip(jaxpr.invars, inputs, strict=True) if view is not None
        }
        look = lambda atom: None if isinstance(atom, Literal) else views.get(atom)
        for index, eqn in enumerate(jaxpr.eqns):
            operands = [look(atom) for atom in eqn.invars]
            if any(view is not None for view in operands):
                results = self.equation(eqn, operands, (*path, index))
                views.update(
                    (var, view)
                    for var, view in zip(eqn.outvars, results, strict=True)
                    if view is not None
                )
        return [look(atom) for atom in jaxpr.outvars]

    def equation(self, eqn: Any, operands: Sequence[View | None], path: Path) -> list[View | None]:
        undo = _relabelling(eqn)
        if undo is not None:
            view = operands[0]
            assert view is not None
            return [view.then(undo)]
        if eqn.primitive in _CALLS:
            inner, _ = open_jaxpr(eqn.params["jaxpr"])
            return self.jaxpr(inner, operands, path)
        if eqn.primitive is p.scan_p:
            return self.scan(eqn, operands, path)
        for position, view in enumerate(operands):
            if view is not None and len(eqn.outvars) == 1:
                self.add(view, eqn, path, position)
            elif view is not None:
                self.add_unknown(view, eqn, path, position)
        return [None] * len(eqn.outvars)

    def add(self, view: View, eqn: Any, path: Path, operand: int) -> None:
        use = Use(
            view=view,
            path=path,
            primitive=eqn.primitive,
            params=eqn.params,
            operand=operand,
            operands=tuple(atom.aval for atom in eqn.invars),
            result=eqn.outvars[0].aval,
            where=source_line(eqn),
        )
        self.uses[view.leaf].append(use)

    def scan(self, eqn: Any, operands: Sequence[View | None], path: Path) -> list[View | None]:
        consts, carry = scan_counts(eqn)
        length = eqn.params["length"]
        inside: list[View | None] = []
        for position, view in enumerate(operands):
            if view is not None and consts <= position < consts + carry:
                self.add_unknown(view, eqn, path, position)
                view = None
            elif view is not None:
                sliced = position >= consts + carry
                view = replace(view, loops=(*view.loops, (length, sliced)))
            inside.append(view)
        inner, _ = open_jaxpr(eqn.params["jaxpr"])
        for view in self.jaxpr(inner, inside, path):
            if view is not None:
                self.add_unknown(view, eqn, path)
        return [None] * len(eqn.outvars)


_CALLS = {p.jit_p, p.closed_call_p, p.remat_p}

_IDENTITIES = {p.copy_p, p.name_p, p.sharding_constraint_p, PVARY}

_RESHAPES = {p.reshape_p, p.squeeze_p, p.broadcast_in_dim_p}


def _relabelling(eqn: Any) -> Undo | None:
    """Returns the inverse of an equation that only relabels its operand's numbers, else None."""
    primitive, params = eqn.primitive, eqn.params
    if len(eqn.invars) != 1:
        return None
    before, after = eqn.invars[0].aval, eqn.outvars[0].aval
    if primitive in _IDENTITIES:
        return lambda array, lead: array
    if primitive is p.convert_element_type_p:
        # Gradients are restored in float32 or wider: narrower types in between are rounding.
        if all(jnp.issubdtype(aval.dtype, jnp.floating) for aval in (before, after)):
            return lambda array, lead: array
        return None
    if primitive is p.transpose_p:
        return _reordering(params["permutation"], after.shape)
    if primitive is p.rev_p:
        axes = params["dimensions"]
        return lambda array, lead: jnp.flip(array, [lead + axis for axis in axes])
    if primitive is p.reshape_p and params["dimensions"] is not None:
        order = params["dimensions"]
        return _reordering(order, [before.shape[axis] for axis in order])
    if primitive in _RESHAPES and before.size == after.size:
        return lambda array, lead: array.reshape(*array.shape[:lead], *before.shape)
    return None


def _reordering(order: Sequence[int], sizes: Sequence[int]) -> Undo:
    """The inverse of a transposition to axes of these sizes and a reshape after it."""
    inverse = [order.index(axis) for axis in range(len(order))]

    def undo(array: jax.Array, lead: int) -> jax.Array:
        array = array.reshape(*array.shape[:lead], *sizes)
        return array.transpose(*range(lead), *[lead + axis for axis in inverse])

    return undo
