"""Where a loss uses each parameter.

A value is a *view* of one parameter leaf while only relabellings (transpose, reshape, cast, ...)
touch it. The first other equation that it meets is a *use* of that leaf.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax._src import core as jax_core
from jax._src.lax import lax as lax_internals
from jax.extend.core import Literal
from jax.extend.core import primitives as p

from .jax_internals import line, open_jaxpr, scan_counts

# Paths name an equation by its index in the loss's jaxpr, then inside that equation's, and so on.
# (The same inner jaxpr may be called twice, so an equation object names nothing.)
Path = tuple[int, ...]


@dataclass(frozen=True)
class Relabelling:
    """One step from a leaf to its view; `undo(array, lead)` takes it back behind `lead` axes."""

    undo: Callable[[jax.Array, int], jax.Array]
    sliced: int  # how many loops had sliced the leaf by then: that many axes lead the view


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

    def then(self, undo: Callable[[jax.Array, int], jax.Array]) -> "View":
        return replace(self, steps=(*self.steps, Relabelling(undo, self.sliced)))

    def restore(self, array: jax.Array, lead: int) -> jax.Array:
        """Relabels what is like the use's operand (with sliced loops leading) to be like the leaf.

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
    primitive: Any  # None if the view leaves the program or the loop without one
    params: Mapping[str, Any]
    operand: int  # which operand the view is
    operands: tuple[Any, ...]  # abstract values, without loops
    result: Any
    where: str  # the user's line

    @property
    def what(self) -> str:
        return self.primitive.name if self.primitive is not None else "output"


class Walk:
    """Follows views of the leaves through jaxprs; collects their uses."""

    def __init__(self, uses: list[list[Use]]) -> None:
        self.uses = uses

    def escape(self, view: View, eqn: Any = None, path: Path = (), operand: int = 0) -> None:
        """Notes a use about which nothing is known but that there is one."""
        where = line(eqn) if eqn is not None else ""
        primitive = eqn.primitive if eqn is not None else None
        self.uses[view.leaf].append(Use(view, path, primitive, {}, operand, (), None, where))

    def jaxpr(self, jaxpr: Any, inputs: Sequence[View | None], path: Path) -> list[View | None]:
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
            if view is None:
                continue
            if len(eqn.outvars) != 1:
                self.escape(view, eqn, path, position)
                continue
            avals = tuple(atom.aval for atom in eqn.invars)
            self.uses[view.leaf].append(
                Use(
                    view,
                    path,
                    eqn.primitive,
                    eqn.params,
                    position,
                    avals,
                    eqn.outvars[0].aval,
                    line(eqn),
                )
            )
        return [None] * len(eqn.outvars)

    def scan(self, eqn: Any, operands: Sequence[View | None], path: Path) -> list[View | None]:
        consts, carry = scan_counts(eqn)
        length = eqn.params["length"]
        inside: list[View | None] = []
        for position, view in enumerate(operands):
            if view is not None and consts <= position < consts + carry:
                self.escape(view, eqn, path, position)
                view = None
            elif view is not None:
                sliced = position >= consts + carry
                view = replace(view, loops=(*view.loops, (length, sliced)))
            inside.append(view)
        inner, _ = open_jaxpr(eqn.params["jaxpr"])
        for view in self.jaxpr(inner, inside, path):
            if view is not None:
                self.escape(view, eqn, path)
        return [None] * len(eqn.outvars)


_CALLS = {p.jit_p, p.closed_call_p, p.remat_p}

_IDENTITIES = {lax_internals.copy_p, p.name_p, p.sharding_constraint_p, jax_core.pvary_p}

_RESHAPES = {p.reshape_p, p.squeeze_p, p.broadcast_in_dim_p}


def _relabelling(eqn: Any) -> Callable[[jax.Array, int], jax.Array] | None:
    """How to take back an equation that only relabels its operand's numbers, if it does."""
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
        order = params["permutation"]
        inverse = [order.index(axis) for axis in range(len(order))]
        return lambda array, lead: array.transpose(*range(lead), *[lead + axis for axis in inverse])
    if primitive is p.rev_p:
        axes = params["dimensions"]
        return lambda array, lead: jnp.flip(array, [lead + axis for axis in axes])
    reorders = primitive is p.reshape_p and params["dimensions"] is not None
    if primitive in _RESHAPES and before.size == after.size and not reorders:
        return lambda array, lead: array.reshape(*array.shape[:lead], *before.shape)
    return None
