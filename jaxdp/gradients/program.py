"""Traces a loss, and replays it with taps.

A *tap* is an array that is added to the result of a chosen equation: the gradient with respect to
the tap is the cotangent of that result. The replay also records operands of each such equation, and
values that do not depend on the example.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from .jax_internals import (
    Literal,
    bind,
    is_plain_call,
    is_var,
    needed,
    open_jaxpr,
    scan_counts,
)
from .jax_internals import primitives as p
from .uses import Path, Use, find_uses


@dataclass(frozen=True)
class Tap:
    """A site whose result is tapped.

    Attributes:
      recorded: the positions of the operands to record; -1 stands for the result.
      whole: whether all leaves that its weight is made of are held by taps. Then nobody asks for
        the gradient of the weight itself.
    """

    recorded: tuple[int, ...]
    whole: bool


# Runs a site, given its equation, operands, what Sites has for it, and its tap. Returns results,
# and what is to be recorded.
AtSite = Callable[[Any, Sequence[Any], Any, Any], tuple[Sequence[Any], Any]]

# By a primitive: a function of an equation's operands, then its params, to be run in its place.
Substitutes = Mapping[Any, Callable[..., Any]]


@dataclass
class Sites:
    """What a replay taps and records in a jaxpr, and in the calls and loops inside.

    Attributes:
      taps: the equations to run by `AtSite`, by index, each with what that is told about it.
      inside: the calls and loops with sites inside, by index.
      known: variables whose values do not depend on the example, to record too.
    """

    taps: dict[int, Any] = field(default_factory=dict)
    inside: dict[int, "Sites"] = field(default_factory=dict)
    known: list[Any] = field(default_factory=list)

    def at(self, path: Path) -> "Sites":
        """The sites inside the call or loop at a path."""
        sites = self
        for index in path:
            sites = sites.inside.setdefault(index, Sites())
        return sites


@dataclass(frozen=True)
class Recorded:
    """What a replay recorded: trees like its sites. Inside a loop, iterations are a leading axis.

    Attributes:
      operands: by equation, what `AtSite` told to record.
      known: by path of the jaxpr, a list of arrays.
    """

    operands: dict[int, Any]
    known: dict[Path, list[Any]]


jax.tree_util.register_dataclass(Recorded, ["operands", "known"], [])


@dataclass(frozen=True)
class Program:
    """A traced function of leaves: the parameters' leaves first, then those of one example."""

    jaxpr: Any
    consts: Sequence[Any]
    uses: list[list[Use]]  # for each parameter leaf
    reads: list[bool]  # for each parameter leaf, whether its value matters
    shared: int = 0  # how many of the last arguments are the same for all examples
    narrow: bool = False  # whether norms and sums are of factors in bfloat16 (`precision.py`)

    def replay(
        self, leaves: Sequence[Any], sites: Sites, taps: Any, at_site: AtSite
    ) -> tuple[list[Any], Recorded]:
        """Runs the program, its sites by `at_site`; returns its results and what was recorded.

        Args:
          leaves: the program's arguments.
          sites: the equations that are not run as they are.
          taps: what `at_site` gets for each of them, by index, in trees like `sites`. Inside a loop
            arrays have a leading axis of its iterations, as what is recorded has.
          at_site: runs them.
        """
        replay = _Replay(at_site, flat=False)
        return replay.run(self.jaxpr, self.consts, leaves, sites, taps, ())

    def made_of(self, var: Any) -> set[int]:
        """The parameter leaves that a variable of the program itself depends on."""
        behind = self._behind(var)
        return {i for i, arg in enumerate(self.jaxpr.invars[: len(self.uses)]) if arg in behind}

    def value(self, var: Any, leaves: Sequence[Any]) -> Any:
        """Computes a variable of the program itself that depends on the first arguments alone."""
        values = dict(zip(self.jaxpr.constvars, self.consts, strict=True))
        values.update(zip(self.jaxpr.invars, leaves, strict=False))
        read = lambda atom: atom.val if isinstance(atom, Literal) else values[atom]
        behind = self._behind(var)
        for eqn in self.jaxpr.eqns:
            if not behind.isdisjoint(eqn.outvars):
                values.update(zip(eqn.outvars, bind(eqn, list(map(read, eqn.invars))), strict=True))
        return read(var)

    def _behind(self, var: Any) -> set[Any]:
        """A variable of the program itself, and all that it is computed from."""
        makers = {out: eqn for eqn in self.jaxpr.eqns for out in eqn.outvars}
        found: set[Any] = set()
        left = [var]
        while left:
            atom = left.pop()
            if is_var(atom) and atom not in found:
                found.add(atom)
                left += makers[atom].invars if atom in makers else []
        return found


def trace(
    loss_fn: Callable[..., Any],
    params: Any,
    example: tuple,
    shared: int = 0,
    narrow: bool = False,
) -> Program:
    """Traces `loss_fn` on one example and finds every use of every parameter leaf.

    Args:
      loss_fn: the loss of one example.
      params: pytree of arrays or shapes.
      example: the loss's other arguments.
      shared: how many of the last leaves of `example` are the same for all examples.
      narrow: whether norms and sums are of factors in bfloat16.
    """
    jaxpr, consts = open_jaxpr(jax.make_jaxpr(loss_fn)(params, *example))

    def flat(*leaves: Any) -> list[Any]:
        return _Replay(with_taps({}), flat=True).run(jaxpr, consts, leaves, Sites(), {}, ())[0]

    arguments = [var.aval for var in jaxpr.invars]
    jaxpr, consts = open_jaxpr(jax.make_jaxpr(flat)(*arguments))
    jaxpr = needed(jaxpr)
    count = len(jax.tree.leaves(params))
    read = set(filter(is_var, [*jaxpr.outvars, *[i for eqn in jaxpr.eqns for i in eqn.invars]]))
    reads = [var in read for var in jaxpr.invars[:count]]
    return Program(jaxpr, consts, find_uses(jaxpr, count, shared), reads, shared, narrow)


def run_equation(eqn: Any, operands: Sequence[Any], substitutes: Substitutes) -> Sequence[Any]:
    """Runs one equation, or its substitute."""
    substitute = substitutes.get(eqn.primitive)
    if substitute is None:
        return bind(eqn, operands)
    with eqn.ctx.manager:
        return [substitute(*operands, eqn.params)]


def with_taps(substitutes: Substitutes) -> AtSite:
    """Adds its tap to the result of every site, and records what the site tells.

    `substitutes` give no gradient to the weight.
    """

    def at_site(
        eqn: Any, operands: Sequence[Any], site: Tap, tap: jax.Array
    ) -> tuple[Sequence[Any], tuple[Any, ...]]:
        (result,) = run_equation(eqn, operands, substitutes if site.whole else {})
        had = [*operands, result]
        return [result + tap], tuple(had[i] for i in site.recorded)

    return at_site


@dataclass(frozen=True)
class _Replay:
    at_site: AtSite
    flat: bool  # whether calls are replaced by what they call

    def run(
        self,
        jaxpr: Any,
        consts: Sequence[Any],
        inputs: Sequence[Any],
        sites: Sites,
        taps: Any,
        path: Path,
    ) -> tuple[list[Any], Recorded]:
        values = dict(zip(jaxpr.constvars, consts, strict=True))
        values.update(zip(jaxpr.invars, inputs, strict=True))
        recorded = Recorded({}, {})
        read = lambda atom: atom.val if isinstance(atom, Literal) else values[atom]
        for index, eqn in enumerate(jaxpr.eqns):
            operands = [read(atom) for atom in eqn.invars]
            if index in sites.inside or (self.flat and _opens(eqn)):
                inner = sites.inside.get(index, Sites())
                own = taps.get(index, {})
                results, inside = self.run_inside(eqn, operands, inner, own, (*path, index))
                recorded.operands[index] = inside.operands
                recorded.known.update(inside.known)
            elif index in sites.taps:
                site, tap = sites.taps[index], taps[index]
                results, recorded.operands[index] = self.at_site(eqn, operands, site, tap)
            else:
                results = bind(eqn, operands)
            values.update(zip(eqn.outvars, results, strict=True))
        if sites.known:
            recorded.known[path] = list(map(read, sites.known))
        return [read(atom) for atom in jaxpr.outvars], recorded

    def run_inside(
        self, eqn: Any, operands: Sequence[Any], sites: Sites, taps: Any, path: Path
    ) -> tuple[Sequence[Any], Recorded]:
        """Replays a call or a loop that has sites inside."""
        inner, consts = open_jaxpr(eqn.params["jaxpr"])

        def call(operands: Sequence[Any], taps: Any) -> tuple[list[Any], Recorded]:
            return self.run(inner, consts, operands, sites, taps, path)

        if eqn.primitive is p.scan_p:
            return _scan(eqn, call, operands, taps)
        if eqn.primitive is p.remat_p:
            call = jax.checkpoint(
                call, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"]
            )
        return call(operands, taps)


def _opens(eqn: Any) -> bool:
    """Whether calls inside this equation can be replaced, too."""
    return eqn.primitive in (p.scan_p, p.remat_p) or is_plain_call(eqn)


def _scan(
    eqn: Any, call: Callable[..., Any], operands: Sequence[Any], taps: Any
) -> tuple[Sequence[Any], Recorded]:
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
