"""Clipped sums in the memory of plain training: norms in one backward pass, the sum in another.

Nothing is held between the passes but the norms. Rounding may differ between them, so the second
pass measures the norms too, and a row that would then contribute too much is left out.

References:
  Lee & Kifer 2021, Scaling up Differentially Private Deep Learning with Fast Per-Example Gradient
  Clipping (arXiv 2009.03106).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from .choice import Choice, choose
from .engine import Found, auto_engine, factored_engine
from .held import Allowed, Gradients, Held, sum_of_kept
from .isolation import has_convolution, mixes_rows
from .jax_internals import one_example, vary, varying_axes
from .layout import Layout
from .program import Program, Recorded, Sites, trace, with_taps
from .representations import accumulation_dtype
from .site_sums import Account, Site, Weight, identity, product
from .tapped import SUBSTITUTES, add_taps
from .uses import Use, View

CONTRIBUTION_TWO_PASS = 1e-3  # a contribution is at most C·(1 + this): the passes differ that far

_ROWS: Any = 0  # the axis of the examples
_OF_EXAMPLES = Weight(_ROWS, _ROWS, None)

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

    @property
    def reason(self) -> str:
        """Why the norm is taken as it is."""
        return {
            "nowhere": self.choice.reason,
            "site": f"in both passes, {self.choice.reason}",
            "leaf": f"in both passes, one leaf at a time, {self.choice.reason}",
            "tap": f"factors during each pass, {self.choice.reason}",
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


def two_pass_engine(
    loss_fn: Callable[..., jax.Array], params: Any, batch: tuple, constant_time: bool = False
) -> tuple[jax.Array, Gradients]:
    """Losses `[b]`, and the gradients, computed again whenever they are asked for.

    Where a row that is not finite might make others so, gradients are held instead.
    """
    gradients = TwoPass(loss_fn, params, batch)
    if gradients.mixes_rows():
        values, leaves = auto_engine(loss_fn, params, batch, constant_time)
        return values, Held(leaves)
    return gradients.values, gradients


class TwoPass:
    """The gradients of b rows as a computation (`Gradients`)."""

    excess: ClassVar[float] = CONTRIBUTION_TWO_PASS

    def __init__(self, loss_fn: Callable[..., jax.Array], params: Any, batch: tuple) -> None:
        self._axes = varying_axes((params, batch))
        params = vary(params, self._axes)
        self._loss_fn = loss_fn
        self._params, self._batch = params, batch
        self._program = trace(loss_fn, params, one_example(batch))
        self._leaves = jax.tree.leaves(params)
        self._places = places(self._program)
        self._size = jax.tree.leaves(batch)[0].shape[0]

    def mixes_rows(self) -> bool:
        """Whether a row that is not finite might make others so."""
        norms = lambda batch: TwoPass(self._loss_fn, self._params, batch).squared_norms()
        return has_convolution(self._program.jaxpr) and mixes_rows(norms, self._batch)

    @property
    def values(self) -> jax.Array:
        """The losses `[b]`."""
        return self._first[0]

    @property
    def count(self) -> int:
        return len(self._places)

    @property
    def one_term(self) -> bool:
        return all(place.choice.one_term for place in self._places)

    def squared_norms(self) -> list[jax.Array]:
        return self._first[1]

    def weighted_sum(
        self,
        coefficients: Sequence[jax.Array],
        valid: jax.Array,
        allowed: Allowed,
        constant_time: bool,
    ) -> list[jax.Array]:
        # With constant time a second sum is always taken. It is the first one again, without the
        # rows that were too long: with the same roundings, so that a third is never needed.
        passes = 2 if constant_time else 1

        def go_on(state: tuple) -> jax.Array:
            _, _, done, count = state
            return ~done | (count < passes)

        def take(state: tuple) -> tuple:
            kept, _, _, count = state
            all_kept = None if constant_time else jnp.all(kept)
            _, squared, totals = self._run([Weight(c, kept, all_kept) for c in coefficients])
            too_long = kept & ~allowed(squared)
            state = (kept & ~too_long, totals, ~jnp.any(too_long), count + 1)
            return vary(state, self._axes)

        zeros = [jnp.zeros(p.shape, accumulation_dtype(p.dtype)) for p in self._leaves]
        start = (valid, zeros, jnp.zeros([], bool), jnp.zeros([], jnp.int32))
        return jax.lax.while_loop(go_on, take, vary(start, self._axes))[1]

    def materialize(self, valid: jax.Array) -> list[jax.Array]:
        _, leaves = factored_engine(self._loss_fn, self._params, self._batch)
        return [leaf.keep(valid).materialize() for leaf in leaves]

    @cached_property
    def _first(self) -> tuple[jax.Array, list[jax.Array], list[jax.Array]]:
        return self._run(None)

    def _run(
        self, weights: list[Weight] | None
    ) -> tuple[jax.Array, list[jax.Array], list[jax.Array]]:
        """One pass: the losses, for every leaf the squared norms, and with weights the sums."""
        ledger = _Ledger(self._places, self._leaves, self._axes, weights is not None)
        tapped = with_taps(SUBSTITUTES)

        def loss(zeros: Any, example: list[Any], weights: Any) -> Any:
            slots, sinks, taps = zeros
            if weights is None:
                weights = [None] * len(self._places)
            account = lambda i, sink: Account(slots[i], sink, weights[i])
            inputs = [
                identity(leaf, account(i, sinks.get(i))) if place.where == "leaf" else leaf
                for i, (leaf, place) in enumerate(zip(self._leaves, self._places, strict=True))
            ]

            def at_site(
                eqn: Any, operands: Sequence[Any], site: Any, tap: Any
            ) -> tuple[Sequence[Any], Any]:
                if not isinstance(site, Site):
                    return tapped(eqn, operands, site, tap)
                return [product(eqn, operands, site, account(site.leaf, tap))], ()

            (value, *_), recorded = self._program.replay(
                [*inputs, *example], ledger.sites, taps, at_site
            )
            return value, (value, recorded)

        # What is known does not depend on the example: it is held once.
        outputs = (0, None, ledger.tap_axes), (0, Recorded(0, None))  # type: ignore[arg-type]
        cotangents, (values, recorded) = jax.vmap(
            jax.grad(loss, has_aux=True),
            in_axes=(None, 0, None if weights is None else [_OF_EXAMPLES] * len(weights)),
            out_axes=outputs,
        )(ledger.zeros, jax.tree.leaves(self._batch), weights)
        slots, sinks, taps = cotangents
        found = Found(self._program, self._leaves, ledger.sites, taps, recorded)
        squared, totals = [], []
        for i, (place, leaf) in enumerate(zip(self._places, self._leaves, strict=True)):
            dtype = accumulation_dtype(leaf.dtype)
            norms, total = jnp.zeros(self._size, dtype), jnp.zeros(leaf.shape, dtype)
            if place.where == "tap":
                held = found.represent(place.choice)
                norms = held.squared_norms()
                total = sum_of_kept(held, *weights[i]) if weights else total
            elif place.where == "leaf":
                norms, total = slots[i], sinks.get(i, total)
            elif place.where == "site":
                view = place.use.view
                # Each iteration's was added to those before it.
                terms = math.prod(length for length, _ in view.loops)
                norms = slots[i] * (1 + terms * float(jnp.finfo(slots[i].dtype).eps))
                *way, last = place.use.path
                sink = _inside(taps, way)[last]
                total = view.restore(sink, 0) if weights else total
            squared.append(norms)
            totals.append(total.astype(dtype))
        return values, squared, totals


class _Ledger:
    """The sites, and zeros whose cotangents a pass asks for: slots, sinks and taps."""

    def __init__(
        self, places: list[Place], leaves: list[jax.Array], axes: frozenset, sums: bool
    ) -> None:
        self.sites = Sites()
        slots: dict[int, jax.Array] = {}
        sinks: dict[int, jax.Array] = {}
        taps: dict[int, Any] = {}  # at sites the sinks
        held = [i for i, place in enumerate(places) if place.where == "tap"]
        for i in held:
            add_taps(self.sites, taps, places[i].choice, held, axes)
        # Of the examples; None: one sum of them all.
        self.tap_axes = jax.tree.map(lambda _: 0, taps)
        for i, (place, leaf) in enumerate(zip(places, leaves, strict=True)):
            dtype = accumulation_dtype(leaf.dtype)
            if place.where == "leaf":
                slots[i] = jnp.zeros([], dtype)
                if sums:
                    sinks[i] = jnp.zeros(leaf.shape, dtype)
            elif place.where == "site":
                use = place.use
                dtype = accumulation_dtype(jnp.promote_types(leaf.dtype, use.result.dtype))
                slots[i] = jnp.zeros([], dtype)
                loops = tuple(length for length, _ in use.view.loops)
                shape = loops + use.operands[use.operand].shape
                *way, last = use.path
                self.sites.at(tuple(way)).taps[last] = Site(i, use.operand, place.choice)
                _inside(taps, way)[last] = jnp.zeros(shape, dtype) if sums else None
                _inside(self.tap_axes, way)[last] = None
        self.zeros = vary((slots, sinks, taps), axes)


def _inside(tree: dict[int, Any], way: Sequence[int]) -> dict[int, Any]:
    """The tree inside a tree, made where there is none."""
    for index in way:
        tree = tree.setdefault(index, {})
    return tree
