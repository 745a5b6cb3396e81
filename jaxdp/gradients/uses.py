"""Finds where a loss uses each parameter, and each value that is made of parameters alone.

A value is a *view* of a parameter leaf while only relabellings (transpose, reshape, slice, cast,
...) touch it. What an equation computes from views alone is a *derived value*, with views of its
own. The first equation that takes a view together with something of the example is a *use*.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from .jax_internals import (
    PVARY,
    RAGGED_DOT,
    SPLIT,
    UNSTACK,
    Literal,
    open_jaxpr,
    scan_counts,
    source_line,
)
from .jax_internals import primitives as p
from .layout import Axis, Layout

# A path names an equation by its index in the loss's jaxpr, then in the jaxpr inside that equation,
# and so on. (The same inner jaxpr may be called twice, so an equation object names nothing.)
Path = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Derived:
    """A value that an equation computes from parameters alone."""

    path: Path
    eqn: Any
    result: int  # which of the equation's results
    operands: tuple["View", ...]
    outer: tuple[int, ...]  # the lengths of the loops around it

    @property
    def shape(self) -> tuple[int, ...]:
        return self.eqn.outvars[self.result].aval.shape

    # Known once: a value may be reached from another on very many ways.
    @cached_property
    def leaves(self) -> frozenset[int]:
        """The leaves that it is made of."""
        return frozenset(leaf for view in self.operands for leaf in view.leaves)


@dataclass(frozen=True)
class View:
    """How the operand of an equation came from a parameter leaf, or from a derived value."""

    source: int | Derived | None  # a leaf by its number; None: a constant, without a gradient
    shape: tuple[int, ...]  # of the source
    layout: Layout
    # The loops between the source and the use, outermost first: their lengths, and the axis of the
    # source of which each iteration sees its own slice (scan over layers), or None if all see the
    # same values (a recurrent cell).
    loops: tuple[tuple[int, Axis | None], ...] = ()

    @property
    def leaves(self) -> frozenset[int]:
        if self.source is None:
            return frozenset()
        return frozenset([self.source]) if isinstance(self.source, int) else self.source.leaves

    @property
    def sliced(self) -> int:
        return sum(axis is not None for _, axis in self.loops)

    @property
    def with_loops(self) -> Layout:
        """The layout of the operands of all iterations: an axis for each sliced loop in front."""
        sliced = tuple((axis,) for _, axis in self.loops if axis is not None)
        return Layout(self.layout.offset, sliced + self.layout.dims)

    def restore(self, array: jax.Array, lead: int) -> jax.Array:
        """Turns an array shaped like the use's operand (after sliced loops) into the source's.

        The first `lead` axes stay as they are.
        """
        return self.with_loops.restore(array, lead, self.shape)


@dataclass(frozen=True, eq=False)
class Use:
    """One equation that takes a view and something of the example, or stands for all that do."""

    view: View
    path: Path
    primitive: Any  # None if the view leaves the program or a loop without meeting an equation
    params: Mapping[str, Any]
    operand: int  # which operand the view is
    operands: tuple[Any, ...]  # abstract values, without loops
    result: Any
    where: str  # the user's line
    # Whether it stands for all uses of a derived number, at the equation that makes this.
    of_number: bool = False

    @property
    def outer(self) -> tuple[int, ...]:
        """The lengths of the loops around the view's source."""
        return self.view.source.outer if isinstance(self.view.source, Derived) else ()

    @property
    def what(self) -> str:
        return self.primitive.name if self.primitive is not None else "output"


def find_uses(jaxpr: Any, count: int, shared: int) -> list[list[Use]]:
    """Finds the uses of each of the first `count` arguments of a jaxpr.

    A use of a derived value is one of every leaf that the value is made of.

    Args:
      jaxpr: the loss of one example.
      count: how many of its arguments are leaves of the parameters.
      shared: how many of the last ones are the same for all examples.
    """
    search = _Search()
    leaves = [_whole(i, var.aval.shape) for i, var in enumerate(jaxpr.invars[:count])]
    rest = len(jaxpr.invars) - count - shared
    constant = [_whole(None, var.aval.shape) for var in jaxpr.invars[count + rest :]]
    for value in search.jaxpr(jaxpr, [*leaves, *[None] * rest, *constant], (), ()):
        if value is not None:
            search.add_unknown(value)
    uses: list[list[Use]] = [[] for _ in range(count)]
    for use in _at_their_makers(search.uses):
        for leaf in sorted(use.view.leaves):
            uses[leaf].append(use)
    return uses


def _at_their_makers(uses: list[Use]) -> Iterator[Use]:
    """The uses; those of some derived values as a single one, at the equation that makes the value.

    So it is with a number (an L2 penalty), and with a product or a look-up of a parameter and a
    constant that is used in a way without a rule: `x + table[arange(length)]`.
    """
    made_of = _parts_of(uses)
    of: dict[Derived, list[Use]] = {}
    for use in uses:
        if isinstance(use.view.source, Derived):
            of.setdefault(use.view.source, []).append(use)
    moved = {
        source: at_maker
        for source, own in of.items()
        # A tap would also see what other derived values, made of this one, are used for.
        if source not in made_of and (at_maker := _at_maker(source, own)) is not None
    }
    for use in uses:
        source = use.view.source
        if not isinstance(source, Derived) or source not in moved:
            yield use
        elif use is of[source][0]:
            yield moved[source]


def _parts_of(uses: list[Use]) -> set[Derived]:
    """The derived values that others, which are used, are made of."""
    found: set[Derived] = set()
    left = [use.view for use in uses]
    while left:
        source = left.pop().source
        for operand in source.operands if isinstance(source, Derived) else ():
            if isinstance(operand.source, Derived) and operand.source not in found:
                found.add(operand.source)
                left.append(operand)
    return found


def _at_maker(source: Derived, uses: list[Use]) -> Use | None:
    """One use in place of all those of a derived value; None if they stay."""
    eqn = source.eqn
    if len(eqn.outvars) > 1:
        return None
    with_leaves = [(i, view) for i, view in enumerate(source.operands) if view.leaves]
    unread = any(use.primitive not in _READ for use in uses)
    if len(with_leaves) == 1 and eqn.primitive in _READ and unread:
        ((operand, view),) = with_leaves
    elif source.shape == () and jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating):
        operand, view = 0, _whole(source, ())
    else:
        return None
    return replace(_use_of(eqn, view, source.path, operand), of_number=view.source is source)


def _use_of(eqn: Any, view: View, path: Path, operand: int) -> Use:
    """The use of a view as an operand of an equation with one result."""
    return Use(
        view=view,
        path=path,
        primitive=eqn.primitive,
        params=eqn.params,
        operand=operand,
        operands=tuple(atom.aval for atom in eqn.invars),
        result=eqn.outvars[0].aval,
        where=source_line(eqn),
    )


# Equations of which there are rules.
_READ = {
    p.dot_general_p,
    p.conv_general_dilated_p,
    p.gather_p,
    p.dynamic_slice_p,
    RAGGED_DOT,
}


def _whole(source: int | Derived | None, shape: tuple[int, ...]) -> View:
    return View(source, shape, Layout.whole(shape))


@dataclass
class _Search:
    """Follows views through jaxprs and collects their uses.

    A variable that depends on the example has None in place of a view.
    """

    uses: list[Use] = field(default_factory=list)

    def add_unknown(self, view: View, eqn: Any = None, path: Path = (), operand: int = 0) -> None:
        """Adds a use that no rule can read."""
        where = source_line(eqn) if eqn is not None else ""
        primitive = eqn.primitive if eqn is not None else None
        self.uses.append(Use(view, path, primitive, {}, operand, (), None, where))

    def jaxpr(
        self, jaxpr: Any, inputs: Sequence[View | None], path: Path, outer: tuple[int, ...]
    ) -> list[View | None]:
        """Given the views that a jaxpr's inputs are, returns those that its outputs are."""
        views: dict[Any, View | None] = {v: _whole(None, v.aval.shape) for v in jaxpr.constvars}
        views.update(zip(jaxpr.invars, inputs, strict=True))

        def look(atom: Any) -> View | None:
            return _whole(None, jnp.shape(atom.val)) if isinstance(atom, Literal) else views[atom]

        for index, eqn in enumerate(jaxpr.eqns):
            operands = list(map(look, eqn.invars))
            results = self.equation(eqn, operands, (*path, index), outer)
            views.update(zip(eqn.outvars, results, strict=True))
        return list(map(look, jaxpr.outvars))

    def equation(
        self, eqn: Any, operands: Sequence[View | None], path: Path, outer: tuple[int, ...]
    ) -> Sequence[View | None]:
        known = [view for view in operands if view is not None]
        if len(known) == len(operands) and not eqn.effects:
            return _derived(eqn, known, path, outer)
        used = [(i, view) for i, view in enumerate(operands) if view is not None and view.leaves]
        if not used:
            return [None] * len(eqn.outvars)
        if eqn.primitive in _CALLS:
            inner, _ = open_jaxpr(eqn.params["jaxpr"])
            return self.jaxpr(inner, operands, path, outer)
        if eqn.primitive is p.scan_p:
            return self.scan(eqn, operands, path, outer)
        for position, view in used:
            if len(eqn.outvars) == 1:
                self.uses.append(_use_of(eqn, view, path, position))
            else:
                self.add_unknown(view, eqn, path, position)
        return [None] * len(eqn.outvars)

    def scan(
        self, eqn: Any, operands: Sequence[View | None], path: Path, outer: tuple[int, ...]
    ) -> Sequence[View | None]:
        consts, carry = scan_counts(eqn)
        length = eqn.params["length"]
        inside: list[View | None] = []
        for position, view in enumerate(operands):
            if consts <= position < consts + carry:
                if view is not None and view.leaves:
                    self.add_unknown(view, eqn, path, position)
                view = None  # it may take up something of the example on the way
            elif view is not None and position >= consts + carry and len(view.layout.dims[0]) != 1:
                if view.leaves:
                    self.add_unknown(view, eqn, path, position)
                view = None
            elif view is not None:
                layout, own = view.layout, None
                if position >= consts + carry:
                    ((own,), *rest) = layout.dims
                    layout = replace(layout, dims=tuple(rest))
                view = replace(view, layout=layout, loops=(*view.loops, (length, own)))
            inside.append(view)
        inner, _ = open_jaxpr(eqn.params["jaxpr"])
        for view in self.jaxpr(inner, inside, path, (*outer, length)):
            if view is not None and view.leaves:
                self.add_unknown(view, eqn, path)
        return [None] * len(eqn.outvars)


def _derived(
    eqn: Any, operands: Sequence[View], path: Path, outer: tuple[int, ...]
) -> Sequence[View]:
    """The views that the results of an equation are, of parameters and constants alone."""
    if len(operands) == 1 and (views := _relabelled(eqn, operands[0])) is not None:
        return views
    moves = any(view.leaves for view in operands) and eqn.primitive is not p.stop_gradient_p
    results = []
    for i, var in enumerate(eqn.outvars):
        smooth = moves and jnp.issubdtype(var.aval.dtype, jnp.inexact)  # complex ones too
        source = Derived(path, eqn, i, tuple(operands), outer) if smooth else None
        results.append(_whole(source, var.aval.shape))
    return results


_CALLS = {p.jit_p, p.closed_call_p, p.remat_p}

_IDENTITIES = {p.copy_p, p.name_p, p.sharding_constraint_p, PVARY}


def _relabelled(eqn: Any, view: View) -> list[View] | None:
    """The results of an equation that only relabels its operand's numbers, else None."""
    params, layout = eqn.params, view.layout
    before, after = eqn.invars[0].aval, eqn.outvars[0].aval
    found: Layout | None = None
    if eqn.primitive in _IDENTITIES:
        found = layout
    elif eqn.primitive is p.convert_element_type_p:
        # Gradients are restored in float32 or wider: narrower types in between are rounding.
        if all(jnp.issubdtype(aval.dtype, jnp.floating) for aval in (before, after)):
            found = layout
    elif eqn.primitive is p.transpose_p:
        found = layout.transpose(params["permutation"])
    elif eqn.primitive is p.rev_p:
        found = layout.reverse(params["dimensions"])
    elif eqn.primitive is p.slice_p:
        steps = params["strides"] or (1,) * before.ndim
        found = layout.slice(params["start_indices"], params["limit_indices"], steps)
    elif eqn.primitive is SPLIT:
        return _parts(view, list(_split(layout, params)))
    elif eqn.primitive is UNSTACK:
        return _parts(view, list(_unstacked(layout, params["axis"])))
    elif eqn.primitive is p.broadcast_in_dim_p:
        found = layout.broadcast(params["shape"], params["broadcast_dimensions"])
    elif eqn.primitive is p.squeeze_p:
        found = layout.reshape(after.shape)
    elif eqn.primitive is p.reshape_p:
        order = params["dimensions"]
        found = (layout if order is None else layout.transpose(order)).reshape(after.shape)
    return None if found is None else [replace(view, layout=found)]


def _parts(view: View, layouts: Sequence[Layout | None]) -> list[View] | None:
    known = [layout for layout in layouts if layout is not None]
    whole = len(known) == len(layouts)
    return [replace(view, layout=layout) for layout in known] if whole else None


def _split(layout: Layout, params: Mapping[str, Any]) -> Iterator[Layout | None]:
    axis, start = params["axis"], 0
    for size in params["sizes"]:
        starts, limits = [0] * len(layout.dims), list(layout.shape)
        starts[axis], limits[axis] = start, start + size
        yield layout.slice(starts, limits, [1] * len(layout.dims))
        start += size


def _unstacked(layout: Layout, axis: int) -> Iterator[Layout | None]:
    for i in range(layout.shape[axis]):
        starts, limits = [0] * len(layout.dims), list(layout.shape)
        starts[axis], limits[axis] = i, i + 1
        part = layout.slice(starts, limits, [1] * len(layout.dims))
        yield part and replace(part, dims=part.dims[:axis] + part.dims[axis + 1 :])
