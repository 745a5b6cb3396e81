"""Everything that reads jaxpr internals: where a loss uses each parameter, and how to replay it.

A value is a *view* of one parameter leaf while only relabellings (transpose, reshape, cast, ...)
touch it. The first other equation that it meets is a *use* of that leaf. Replaying a loss with
*taps* adds an array to the result of chosen uses, so that the gradient with respect to the tap is
the cotangent of that result, and records one of its operands.

Written against the parts of jaxprs that JAX 0.10 and the newest JAX share.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax._src import callback, custom_batching, debugging, source_info_util
from jax._src import core as jax_core
from jax._src.interpreters.batching import BatchTrace
from jax._src.lax import lax as lax_internals
from jax._src.lax import parallel
from jax._src.state import primitives as state_primitives
from jax.extend.core import Literal, Primitive, jaxprs_in_params, mapped_aval
from jax.extend.core import primitives as p

# Paths name an equation by its index in the loss's jaxpr, then inside that equation's, and so on.
# (The same inner jaxpr may be called twice, so an equation object names nothing.)
Path = tuple[int, ...]
# For every equation on the way to a use: which of a use's operands to record, or what is inside.
Sites = Mapping[int, Any]  # of tuple[int, ...] or Sites


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


@dataclass
class Program:
    """A traced function of leaves: `params` leaves first, then those of one example."""

    jaxpr: Any
    consts: Sequence[Any]
    uses: list[list[Use]] = field(default_factory=list)  # per parameter leaf

    def replay(
        self,
        leaves: Sequence[Any],
        sites: Sites,
        taps: Any,
        substitutes: Mapping[Any, Callable[..., Any]],
    ) -> tuple[list[Any], dict[int, Any]]:
        """Runs the program with taps; returns its results and the recorded operands.

        Args:
          leaves: the program's arguments.
          sites: the equations to tap.
          taps: a tree like `sites` of arrays to add to their results. Inside a loop they have a
            leading axis of its iterations; so have the recorded operands.
          substitutes: for primitives, functions that are run in their place at sites.
        """
        return _Replay(substitutes).jaxpr(self.jaxpr, self.consts, leaves, sites, taps)


def one_example(batch: Any) -> Any:
    """What one example of the batch is like."""
    return jax.tree.map(lambda leaf: mapped_aval(leaf.shape[0], 0, jax.typeof(leaf)), batch)


def trace(loss_fn: Callable[..., Any], params: Any, example: tuple) -> Program:
    """Traces `loss_fn` on one example and finds every use of every parameter leaf.

    Raises:
      ValueError: if the loss can see more than its own example (DESIGN rule 19).
    """
    closed = jax.make_jaxpr(loss_fn)(params, *example)
    jaxpr, consts = _open(closed)
    _refuse_coupling(jaxpr)
    leaves = jax.tree.leaves(params)
    walk = _Walk([[] for _ in leaves])
    views: list[View | None] = [View(i) for i in range(len(leaves))]
    rest = len(jaxpr.invars) - len(leaves)
    outputs = walk.jaxpr(jaxpr, [*views, *[None] * rest], ())
    for view in outputs:
        if view is not None:
            walk.escape(view)
    return Program(jaxpr, consts, walk.uses)


def check_uncoupled(loss_fn: Callable[..., Any], params: Any, batch: tuple) -> None:
    """Refuses a loss that can see more than its own example, in its value or in its gradient.

    Raises:
      ValueError: naming what couples the examples (DESIGN rule 19).
    """
    example = jax.tree.map(lambda leaf: mapped_aval(leaf.shape[0], 0, jax.typeof(leaf)), batch)
    params = vary(params, varying_axes((params, batch)))
    # The gradient's program too: the rules of a custom_vjp are not in the loss's own.
    closed = jax.make_jaxpr(jax.value_and_grad(loss_fn))(params, *example)
    _refuse_coupling(_open(closed)[0])


def is_traced() -> bool:
    """Whether this code runs under jit, vmap or another transformation."""
    return not jax_core.trace_state_clean()


def is_vmapped() -> bool:
    """Whether the innermost transformation around this code is vmap."""
    return isinstance(jax_core.trace_ctx.trace, BatchTrace)


def varying_axes(tree: Any) -> frozenset:
    """The mesh axes of a surrounding `shard_map` along which any of the arrays differs."""
    axes: set = set()
    for leaf in jax.tree.leaves(tree):
        aval = jax.typeof(leaf)
        manual = getattr(aval, "manual_axis_type", None)
        axes |= set(getattr(manual, "varying", None) or getattr(aval, "vma", None) or ())
    return frozenset(axes)


def vary(tree: Any, axes: frozenset) -> Any:
    """Marks arrays as differing along mesh axes.

    Inside `shard_map`, the gradient with respect to an array that all devices share is summed over
    the devices at once: for per-example gradients that would mix examples before they are clipped.
    """

    def one(leaf: jax.Array) -> jax.Array:
        missing = tuple(sorted(axes - varying_axes(leaf)))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(one, tree) if axes else tree


# --- finding the uses -------------------------------------------------------------------------


class _Walk:
    """Follows views of the leaves through jaxprs; collects their uses."""

    def __init__(self, uses: list[list[Use]]) -> None:
        self.uses = uses

    def escape(self, view: View, eqn: Any = None, path: Path = (), operand: int = 0) -> None:
        """Notes a use about which nothing is known but that there is one."""
        where = _line(eqn) if eqn is not None else ""
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
            inner, _ = _open(eqn.params["jaxpr"])
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
                    _line(eqn),
                )
            )
        return [None] * len(eqn.outvars)

    def scan(self, eqn: Any, operands: Sequence[View | None], path: Path) -> list[View | None]:
        consts, carry = _scan_counts(eqn)
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
        inner, _ = _open(eqn.params["jaxpr"])
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


def _line(eqn: Any) -> str:
    return source_info_util.summarize(eqn.source_info)


def _scan_counts(eqn: Any) -> tuple[int, int]:
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].unpack()  # JAX 0.11 and newer
    return len(consts), len(carry)


def _open(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """A jaxpr and the values of its constants; newer JAX keeps them in one object."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


# --- replaying --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Replay:
    substitutes: Mapping[Any, Callable[..., Any]]

    def jaxpr(
        self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any], sites: Sites, taps: Any
    ) -> tuple[list[Any], dict[int, Any]]:
        values = dict(zip(jaxpr.constvars, consts, strict=True))
        values.update(zip(jaxpr.invars, inputs, strict=True))
        recorded: dict[int, Any] = {}
        read = lambda atom: atom.val if isinstance(atom, Literal) else values[atom]
        for index, eqn in enumerate(jaxpr.eqns):
            operands = [read(atom) for atom in eqn.invars]
            site = sites.get(index)
            if site is None:
                results = _bind(eqn, operands)
            elif isinstance(site, tuple):
                (result,) = self.site(eqn, operands)
                results, recorded[index] = [result + taps[index]], tuple(operands[i] for i in site)
            else:
                results, recorded[index] = self.enter(eqn, operands, site, taps[index])
            values.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars], recorded

    def site(self, eqn: Any, operands: Sequence[Any]) -> Sequence[Any]:
        substitute = self.substitutes.get(eqn.primitive)
        if substitute is None:
            return _bind(eqn, operands)
        with eqn.ctx.manager:
            return [substitute(*operands, **eqn.params)]

    def enter(
        self, eqn: Any, operands: Sequence[Any], sites: Sites, taps: Any
    ) -> tuple[Sequence[Any], dict[int, Any]]:
        """Replays a call or a loop that has sites inside."""
        inner, consts = _open(eqn.params["jaxpr"])
        if eqn.primitive is p.scan_p:
            return self.scan(eqn, inner, consts, operands, sites, taps)

        def call(operands: Sequence[Any], taps: Any) -> tuple[list[Any], dict[int, Any]]:
            return self.jaxpr(inner, consts, operands, sites, taps)

        if eqn.primitive is p.remat_p:
            call = jax.checkpoint(
                call, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"]
            )
        return call(operands, taps)

    def scan(
        self,
        eqn: Any,
        inner: Any,
        consts: Sequence[Any],
        operands: Sequence[Any],
        sites: Sites,
        taps: Any,
    ) -> tuple[Sequence[Any], dict[int, Any]]:
        num_shared, num_carry = _scan_counts(eqn)
        shared, init = operands[:num_shared], operands[num_shared : num_shared + num_carry]

        def body(carry: Any, slices: Any) -> tuple[Any, Any]:
            xs, tap = slices
            results, recorded = self.jaxpr(inner, consts, [*shared, *carry, *xs], sites, tap)
            return tuple(results[:num_carry]), (tuple(results[num_carry:]), recorded)

        options = {name: eqn.params[name] for name in ("length", "reverse", "unroll")}
        xs = tuple(operands[num_shared + num_carry :])
        carry, (ys, recorded) = jax.lax.scan(body, tuple(init), (xs, taps), **options)
        return [*carry, *ys], recorded


def _bind(eqn: Any, operands: Sequence[Any]) -> Sequence[Any]:
    with eqn.ctx.manager:
        results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    return results if eqn.primitive.multiple_results else [results]


# --- refusing what couples examples -----------------------------------------------------------


def _primitives(*modules: Any) -> set[Any]:
    return {v for module in modules for v in vars(module).values() if isinstance(v, Primitive)}


_COUPLING = {
    "it communicates across a mapped axis, so examples would see each other. Reduce outside the "
    "loss, after clipping": _primitives(parallel) - {p.axis_index_p, jax_core.pvary_p},
    "its batching rule is the user's own and may mix examples. Write the loss of one example "
    "without custom_vmap": {custom_batching.custom_vmap_p},
    "a callback sees several examples and leaves the program. Take it out of the loss": _primitives(
        callback, debugging
    ),
    "a Ref can carry values from one example to the next. Return values instead": _primitives(
        state_primitives
    )
    | {jax_core.ref_p},
}


def _reaches_out(eqn: Any) -> bool:
    """False for a collective over an axis of one example's own, which vmap has made positional."""
    return any(not isinstance(axis, int) for axis in eqn.params.get("axes", ("unknown",)))


def _refuse_coupling(jaxpr: Any) -> None:
    for eqn in jaxpr.eqns:
        for reason, primitives in _COUPLING.items():
            if eqn.primitive in primitives and _reaches_out(eqn):
                raise ValueError(
                    f"the loss uses {eqn.primitive.name} ({_line(eqn)}), which has no per-example "
                    f"gradient: {reason}"
                )
        for inner in jaxprs_in_params(eqn.params):
            _refuse_coupling(_open(inner)[0])
