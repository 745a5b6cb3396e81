"""Traces a loss, and replays it with taps.

A *tap* is an array that is added to the result of a chosen equation: the gradient with respect to
the tap is the cotangent of that result. The replay also records one operand of each such equation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from .jax_internals import Literal, bind, open_jaxpr, scan_counts
from .jax_internals import primitives as p
from .uses import Use, find_uses

# By an equation's index: what `AtSite` is told about it, if it is a site (never a dict); the Sites
# inside it, if it is a call or a loop on the way to one.
Sites = Mapping[int, Any]

# Runs a site, given its equation, operands, what Sites has for it, and its taps. Returns results,
# and what is to be recorded.
AtSite = Callable[[Any, Sequence[Any], Any, Any], tuple[Sequence[Any], Any]]

# By a primitive: a function of an equation's operands, then its params, to be run in its place.
Substitutes = Mapping[Any, Callable[..., Any]]


@dataclass(frozen=True)
class Program:
    """A traced function of leaves: the parameters' leaves first, then those of one example."""

    jaxpr: Any
    consts: Sequence[Any]
    uses: list[list[Use]]  # for each parameter leaf

    def replay(
        self, leaves: Sequence[Any], sites: Sites, taps: Any, at_site: AtSite
    ) -> tuple[list[Any], dict[int, Any]]:
        """Runs the program, its sites by `at_site`; returns its results and what they record.

        Args:
          leaves: the program's arguments.
          sites: the equations that are not run as they are.
          taps: a tree like `sites` of arrays that `at_site` gets. Inside a loop they have a leading
            axis of its iterations, as what is recorded has.
          at_site: runs them.
        """
        return _Replay(at_site).run(self.jaxpr, self.consts, leaves, sites, taps)


def trace(loss_fn: Callable[..., Any], params: Any, example: tuple) -> Program:
    """Traces `loss_fn` on one example and finds every use of every parameter leaf."""
    closed = jax.make_jaxpr(loss_fn)(params, *example)
    jaxpr, consts = open_jaxpr(closed)
    return Program(jaxpr, consts, find_uses(jaxpr, len(jax.tree.leaves(params))))


def run_equation(eqn: Any, operands: Sequence[Any], substitutes: Substitutes) -> Sequence[Any]:
    """Runs one equation, or its substitute."""
    substitute = substitutes.get(eqn.primitive)
    if substitute is None:
        return bind(eqn, operands)
    with eqn.ctx.manager:
        return [substitute(*operands, eqn.params)]


def with_taps(substitutes: Substitutes) -> AtSite:
    """Adds a tap to the result of every site, which names the operands to record."""

    def at_site(
        eqn: Any, operands: Sequence[Any], site: tuple[int, ...], tap: jax.Array
    ) -> tuple[Sequence[Any], tuple[Any, ...]]:
        (result,) = run_equation(eqn, operands, substitutes)
        return [result + tap], tuple(operands[i] for i in site)

    return at_site


@dataclass(frozen=True)
class _Replay:
    at_site: AtSite

    def run(
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
            elif isinstance(site, dict):
                results, recorded[index] = self.run_inside(eqn, operands, site, taps[index])
            else:
                results, recorded[index] = self.at_site(eqn, operands, site, taps[index])
            values.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars], recorded

    def run_inside(
        self, eqn: Any, operands: Sequence[Any], sites: Sites, taps: Any
    ) -> tuple[Sequence[Any], dict[int, Any]]:
        """Replays a call or a loop that has sites inside."""
        inner, consts = open_jaxpr(eqn.params["jaxpr"])

        def call(operands: Sequence[Any], taps: Any) -> tuple[list[Any], dict[int, Any]]:
            return self.run(inner, consts, operands, sites, taps)

        if eqn.primitive is p.scan_p:
            return _scan(eqn, call, operands, taps)
        if eqn.primitive is p.remat_p:
            call = jax.checkpoint(
                call, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"]
            )
        return call(operands, taps)


def _scan(
    eqn: Any, call: Callable[..., Any], operands: Sequence[Any], taps: Any
) -> tuple[Sequence[Any], dict[int, Any]]:
    """Runs a scan whose body is `call(inputs, taps)`; stacks what its iterations record."""
    num_shared, num_carry = scan_counts(eqn)
    shared, init = operands[:num_shared], operands[num_shared : num_shared + num_carry]

    def body(carry: Any, slices: Any) -> tuple[Any, Any]:
        xs, tap = slices
        results, recorded = call([*shared, *carry, *xs], tap)
        return tuple(results[:num_carry]), (tuple(results[num_carry:]), recorded)

    options = {name: eqn.params[name] for name in ("length", "reverse", "unroll")}
    xs = tuple(operands[num_shared + num_carry :])
    carry, (ys, recorded) = jax.lax.scan(body, tuple(init), (xs, taps), **options)
    return [*carry, *ys], recorded
