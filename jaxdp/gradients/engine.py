"""Per-example gradients of any JAX function at nearly the cost of plain ones.

The loss of one example is traced. Every parameter leaf whose uses all have a rule (matrix product,
convolution, look-up) gets a tap at each, and one vmapped backward pass with respect to the taps
gives all cotangents. The gradients of such a leaf are then held as the factors of a product. Every
other leaf is differentiated per example, as by vmap(grad).

References:
  Bu et al. 2023, Differentially Private Optimization on Large Model at Small Cost (2210.00038).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from . import convolution, ragged
from .choice import Choice, Part, choose
from .jax_internals import Literal, one_example, vary, varying_axes
from .lookup import Lookup, LookupShape
from .matmul import Known, Matmul, MatmulShape
from .number import Number, NumberShape
from .program import Program, Recorded, Sites, trace, with_taps
from .representations import Dense, Representation, Zero, accumulation_dtype
from .several import Several
from .uses import Derived, Use

SUBSTITUTES = convolution.SUBSTITUTES | ragged.SUBSTITUTES


def factored_engine(
    loss_fn: Callable[..., jax.Array], params: Any, batch: tuple
) -> tuple[jax.Array, list[Representation]]:
    """Losses `[b]`, and every leaf's gradients, held as factors wherever there is a rule."""
    return _engine(loss_fn, params, batch, thrifty=False)


def auto_engine(
    loss_fn: Callable[..., jax.Array], params: Any, batch: tuple
) -> tuple[jax.Array, list[Representation]]:
    """Losses `[b]`, and every leaf's gradients, held in the form that its shapes make cheapest."""
    return _engine(loss_fn, params, batch, thrifty=True)


def _engine(
    loss_fn: Callable[..., jax.Array], params: Any, batch: tuple, thrifty: bool
) -> tuple[jax.Array, list[Representation]]:
    axes = varying_axes((params, batch))
    params = vary(params, axes)
    program = trace(loss_fn, params, one_example(batch))
    leaves = jax.tree.leaves(params)
    choices = choose(program, thrifty)
    size = jax.tree.leaves(batch)[0].shape[0]

    sites = Sites()
    taps: dict[int, Any] = {}
    for choice in choices:
        add_taps(sites, taps, choice, axes)
    dense = [i for i, choice in enumerate(choices) if choice.form == "dense"]
    at_site = with_taps(SUBSTITUTES)

    def tapped(taps: Any, materialised: list[jax.Array], example: list[Any]) -> Any:
        inputs = list(leaves)
        for i, leaf in zip(dense, materialised, strict=True):
            inputs[i] = leaf
        (value, *_), recorded = program.replay([*inputs, *example], sites, taps, at_site)
        return value, (value, recorded)

    def differentiate(example: list[Any]) -> Any:
        given = taps, [leaves[i] for i in dense]
        return jax.grad(tapped, argnums=(0, 1), has_aux=True)(*given, example)

    # What is known does not depend on the example: it is held once.
    outputs = ((0, 0), (0, Recorded(0, None)))  # type: ignore[arg-type]
    (cotangents, gradients), (values, recorded) = jax.vmap(differentiate, out_axes=outputs)(
        jax.tree.leaves(batch)
    )
    rows = dict(zip(dense, gradients, strict=True))
    found = Found(program, leaves, sites, cotangents, recorded)
    representations: list[Representation] = []
    for i, (choice, leaf) in enumerate(zip(choices, leaves, strict=True)):
        if choice.form == "zero":
            representations.append(Zero(size, leaf.shape, accumulation_dtype(leaf.dtype)))
        elif choice.form == "dense":
            representations.append(Dense(rows[i]))
        else:
            representations.append(found.represent(choice))
    return values, representations


def add_taps(sites: Sites, taps: dict, choice: Choice, axes: frozenset) -> None:
    """Adds all that `Found.represent` needs to the trees of sites and of zero taps."""
    for part in choice.parts:
        for use, shape in zip(part.uses, part.shapes, strict=True):
            _add_site(sites, taps, use, shape.recorded, axes)
            for step in shape.steps if isinstance(shape, MatmulShape) else ():
                _add_known(sites, step.known)


def _add_site(sites: Sites, taps: dict, use: Use, record: tuple[int, ...], axes: frozenset) -> None:
    """Adds a use to the trees of sites and of zero taps."""
    *way, last = use.path
    sites = sites.at(tuple(way))
    for index in way:
        taps = taps.setdefault(index, {})
    loops = use.outer if use.of_number else (*use.outer, *[n for n, _ in use.view.loops])
    # Made to vary: a tap that the devices of a shard_map shared would add up their cotangents.
    taps[last] = vary(jnp.zeros(loops + use.result.shape, use.result.dtype), axes)
    sites.taps[last] = tuple(sorted({*sites.taps.get(last, ()), *record}))


def _add_known(sites: Sites, known: tuple[Derived, int] | None) -> None:
    if known is not None:
        derived, position = known
        atom, own = derived.eqn.invars[position], sites.at(derived.path[:-1]).known
        if not isinstance(atom, Literal) and atom not in own:
            own.append(atom)


# The recorded operands and the cotangents of a use.
Each = tuple[tuple[jax.Array, ...], jax.Array]


@dataclass(frozen=True)
class Found:
    """What the replay of a program found at its sites."""

    program: Program
    leaves: list[jax.Array]
    sites: Sites
    cotangents: Any
    recorded: Recorded

    def represent(self, choice: Choice) -> Representation:
        parts = [self.part(part) for part in choice.parts]
        if choice.form == "product":
            return Dense(parts[0].materialize())
        return Several(tuple(parts), choice.meet) if len(parts) > 1 else parts[0]

    def part(self, part: Part) -> Any:
        each = [self.at(use, own.recorded) for use, own in zip(part.uses, part.shapes, strict=True)]
        if isinstance(part.shape, NumberShape):
            vector = self.gradient_of_number(part.shape)
            return Number.joined([cotangents for _, cotangents in each], vector)
        return in_factors(part, each, self.known)

    def at(self, use: Use, record: tuple[int, ...]) -> Each:
        """The recorded operands and the cotangent of a use."""
        operands, cotangents = self.recorded.operands, self.cotangents
        for index in use.path:
            operands, cotangents = operands[index], cotangents[index]
        *way, last = use.path
        all_recorded = self.sites.at(tuple(way)).taps[last]
        return tuple(operands[all_recorded.index(i)] for i in record), cotangents

    def known(self, derived: Derived, position: int) -> jax.Array:
        atom, path = derived.eqn.invars[position], derived.path[:-1]
        if isinstance(atom, Literal):
            return jnp.asarray(atom.val, derived.eqn.outvars[derived.result].aval.dtype)
        return self.recorded.known[path][self.sites.at(path).known.index(atom)]

    def gradient_of_number(self, shape: NumberShape) -> jax.Array:
        """The gradient of a derived number with respect to a leaf."""
        source = shape.view.source
        assert isinstance(source, Derived)
        count = len(self.leaves)

        def number(leaf: jax.Array) -> jax.Array:
            inputs = [leaf if i == shape.leaf else own for i, own in enumerate(self.leaves)]
            return self.program.value(source.eqn.outvars[source.result], inputs[:count])

        return jax.grad(number)(self.leaves[shape.leaf])


def in_factors(part: Part, each: Sequence[Each], known: Known) -> Any:
    """The gradients that uses of a leaf make, from what was found at each of them."""
    shape: Any = part.shape
    if isinstance(shape, LookupShape):
        return Lookup.joined(
            [
                own.make(x, c, part.norms)
                for own, (x, c) in zip(part.shapes, each, strict=True)
                if isinstance(own, LookupShape)
            ]
        )
    if not isinstance(shape, MatmulShape):
        ((x, c),) = each
        return shape.make(x, c, part.norms)
    factors = [
        own.factors(x, c, known)
        for own, (x, c) in zip(part.shapes, each, strict=True)
        if isinstance(own, MatmulShape)
    ]
    return Matmul.joined(factors, shape, part.norms)
