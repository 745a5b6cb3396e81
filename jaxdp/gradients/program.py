"""Everything that reads jaxpr internals: where a loss uses each parameter, and how to replay it.

A value is a *view* of one parameter leaf while only relabellings (transpose, reshape, cast, ...)
touch it. The first other equation that it meets is a *use* of that leaf. Replaying a loss with
*taps* adds an array to the result of chosen uses, so that the gradient with respect to the tap is
the cotangent of that result, and records one of its operands.

Written against the parts of jaxprs that JAX 0.10 and the newest JAX share.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.extend.core import Literal, mapped_aval
from jax.extend.core import primitives as p

from .coupling import refuse_coupling
from .jax_internals import bind, open_jaxpr, scan_counts
from .uses import Use, View, Walk

# For every equation on the way to a use: which of a use's operands to record, or what is inside.
Sites = Mapping[int, Any]  # of tuple[int, ...] or Sites


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
    jaxpr, consts = open_jaxpr(closed)
    refuse_coupling(jaxpr)
    leaves = jax.tree.leaves(params)
    walk = Walk([[] for _ in leaves])
    views: list[View | None] = [View(i) for i in range(len(leaves))]
    rest = len(jaxpr.invars) - len(leaves)
    outputs = walk.jaxpr(jaxpr, [*views, *[None] * rest], ())
    for view in outputs:
        if view is not None:
            walk.escape(view)
    return Program(jaxpr, consts, walk.uses)


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
                results = bind(eqn, operands)
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
            return bind(eqn, operands)
        with eqn.ctx.manager:
            return [substitute(*operands, **eqn.params)]

    def enter(
        self, eqn: Any, operands: Sequence[Any], sites: Sites, taps: Any
    ) -> tuple[Sequence[Any], dict[int, Any]]:
        """Replays a call or a loop that has sites inside."""
        inner, consts = open_jaxpr(eqn.params["jaxpr"])
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
        num_shared, num_carry = scan_counts(eqn)
        shared, init = operands[:num_shared], operands[num_shared : num_shared + num_carry]

        def body(carry: Any, slices: Any) -> tuple[Any, Any]:
            xs, tap = slices
            results, recorded = self.jaxpr(inner, consts, [*shared, *carry, *xs], sites, tap)
            return tuple(results[:num_carry]), (tuple(results[num_carry:]), recorded)

        options = {name: eqn.params[name] for name in ("length", "reverse", "unroll")}
        xs = tuple(operands[num_shared + num_carry :])
        carry, (ys, recorded) = jax.lax.scan(body, tuple(init), (xs, taps), **options)
        return [*carry, *ys], recorded
