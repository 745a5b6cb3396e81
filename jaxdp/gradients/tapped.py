"""The gradient of one example with respect to taps, from which its factors are made."""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from . import convolution, ragged
from .choice import Choice, inner_of
from .jax_internals import Literal, vary
from .matmul import MatmulShape
from .program import Program, Recorded, Sites, Tap, with_taps
from .uses import Derived, Use

SUBSTITUTES = convolution.SUBSTITUTES | ragged.SUBSTITUTES


class Tapped:
    """A program with a tap at every use of the leaves that are held as factors.

    Attributes:
      sites: where the taps are.
      dense: the leaves that are differentiated themselves, by number.
    """

    def __init__(self, program: Program, choices: Sequence[Choice], axes: frozenset) -> None:
        self._program = program
        self.sites = Sites()
        self._taps: dict[int, Any] = {}
        self.dense = [i for i, choice in enumerate(choices) if choice.form == "dense"]
        held = [i for i, choice in enumerate(choices) if choice.form not in ("dense", "zero")]
        for i in held:
            add_taps(self.sites, self._taps, choices[i], held, axes)

    def differentiate(self, leaves: Sequence[Any], example: Sequence[Any]) -> Any:
        """Cotangents at the taps and gradients of `dense`; then the loss and what was recorded."""
        at_site = with_taps(SUBSTITUTES)

        def tapped(taps: Any, materialised: list[jax.Array]) -> Any:
            inputs = list(leaves)
            for i, leaf in zip(self.dense, materialised, strict=True):
                inputs[i] = leaf
            (value, *_), recorded = self._program.replay(
                [*inputs, *example], self.sites, taps, at_site
            )
            return value, (value, recorded)

        given = self._taps, [leaves[i] for i in self.dense]
        return jax.grad(tapped, argnums=(0, 1), has_aux=True)(*given)


def found_at(
    sites: Sites, use: Use, record: tuple[int, ...], cotangents: Any, recorded: Recorded
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """The recorded operands and the cotangent of a use, among all that were found."""
    operands = recorded.operands
    for index in use.path:
        operands, cotangents = operands[index], cotangents[index]
    *way, last = use.path
    all_recorded = sites.at(tuple(way)).taps[last].recorded
    return tuple(operands[all_recorded.index(i)] for i in record), cotangents


def add_taps(
    sites: Sites, taps: dict, choice: Choice, held: Collection[int], axes: frozenset
) -> None:
    """Adds the uses of a leaf to the trees of sites and of zero taps.

    Args:
      sites: the tree of sites.
      taps: the tree of zero taps.
      choice: how the leaf's gradients are held.
      held: all leaves that are held by taps.
      axes: mesh axes that the taps must vary along.
    """
    for part in choice.parts:
        for use, shape in zip(part.uses, part.shapes, strict=True):
            whole = use.view.leaves <= set(held)
            _add_site(sites, taps, use, Tap(shape.recorded, whole), axes)
            inner = inner_of(shape)
            for step in inner.steps if isinstance(inner, MatmulShape) else ():
                _add_known(sites, step.known)


def _add_site(sites: Sites, taps: dict, use: Use, tap: Tap, axes: frozenset) -> None:
    *way, last = use.path
    sites, taps = sites.at(tuple(way)), tree_at(taps, way)
    loops = use.outer if use.of_number else (*use.outer, *[n for n, _ in use.view.loops])
    # Made to vary: a tap that the devices of a shard_map shared would add up their cotangents.
    taps[last] = vary(jnp.zeros(loops + use.result.shape, use.result.dtype), axes)
    before = sites.taps[last].recorded if last in sites.taps else ()
    sites.taps[last] = Tap(tuple(sorted({*before, *tap.recorded})), tap.whole)


def _add_known(sites: Sites, known: tuple[Derived, int] | None) -> None:
    if known is not None:
        derived, position = known
        atom, own = derived.eqn.invars[position], sites.at(derived.path[:-1]).known
        if not isinstance(atom, Literal) and atom not in own:
            own.append(atom)


def tree_at(tree: dict[int, Any], way: Sequence[int]) -> dict[int, Any]:
    """The tree at the end of a way through trees, made where there is none."""
    for index in way:
        tree = tree.setdefault(index, {})
    return tree
