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
from .convolution import SUBSTITUTES
from .engine import in_factors
from .held import Allowed, sum_of_kept
from .jax_internals import one_example, vary, varying_axes
from .program import Program, run_equation, trace
from .representations import accumulation_dtype
from .site_sums import Account, Site, Weight, identity, product
from .uses import Use

CONTRIBUTION_TWO_PASS = 1e-3  # a contribution is at most C·(1 + this): the passes differ that far

_ROWS: Any = 0  # the axis of the examples
_OF_EXAMPLES = Weight(_ROWS, _ROWS, None)

Where = Literal["nowhere", "site", "leaf", "tap"]


@dataclass(frozen=True)
class Place:
    """Where the gradients of one leaf are measured and summed.

    At a "site", the leaf's only use, by slices of it if they are in loops. Elsewhere an example has
    several terms, whose squared norms don't add up: those are measured at the "leaf" as an array,
    or of all their factors together, which are held during a pass (a "tap").
    """

    where: Where
    choice: Choice  # of a site as if the surrounding loops were not there

    @property
    def use(self) -> Use:
        return self.choice.use

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
    apart = [[_without_loops(use) for use in choice.uses] for choice in whole]
    inside = choose(replace(program, uses=apart), thrifty=False)
    sizes = [math.prod(var.aval.shape) for var in program.jaxpr.invars[: len(whole)]]
    return [_place(*leaf) for leaf in zip(whole, inside, sizes, strict=True)]


def _place(whole: Choice, inside: Choice, size: int) -> Place:
    if whole.form == "zero":
        return Place("nowhere", whole)
    if len(whole.uses) == 1 and all(own for _, own in whole.use.view.loops) and whole.use.operands:
        return Place("site", replace(inside, uses=whole.uses))
    if whole.shape is not None and _factor_numbers(whole) < size:
        return Place("tap", whole)
    reason = whole.reason if whole.shape is None else "shared by the iterations of a loop"
    return Place("leaf", replace(whole, form="dense", reason=reason, shape=None))


def _without_loops(use: Use) -> Use:
    """The use as it is in one iteration; its view leads to the operand, no further."""
    return replace(use, view=replace(use.view, steps=(), loops=()))


def _factor_numbers(choice: Choice) -> int:
    """How many numbers one example's factors are."""
    assert choice.shape is not None
    *positions, d, p = choice.shape.sizes
    if len(positions) == 0:  # a look-up, of t and p
        return d * (p + 1)
    return math.prod(positions) * (d + p)


def two_pass_engine(
    loss_fn: Callable[..., jax.Array], params: Any, batch: tuple
) -> tuple[jax.Array, "TwoPass"]:
    """Losses `[b]`, and the gradients, computed again whenever they are asked for."""
    gradients = TwoPass(loss_fn, params, batch)
    return gradients.values, gradients


class TwoPass:
    """The gradients of b rows as a computation (`Gradients`)."""

    excess: ClassVar[float] = CONTRIBUTION_TWO_PASS

    def __init__(self, loss_fn: Callable[..., jax.Array], params: Any, batch: tuple) -> None:
        self._axes = varying_axes((params, batch))
        params = vary(params, self._axes)
        self._gradient = jax.grad(loss_fn)
        self._params, self._batch = params, batch
        self._program = trace(loss_fn, params, one_example(batch))
        self._leaves = jax.tree.leaves(params)
        self._places = places(self._program)
        self._size = jax.tree.leaves(batch)[0].shape[0]

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
        grads = jax.vmap(self._gradient, (None, *[0] * len(self._batch)))(
            self._params, *self._batch
        )
        rows = lambda g: jnp.where(valid.reshape(-1, *[1] * (g.ndim - 1)), g, 0)
        return [rows(g) for g in jax.tree.leaves(grads)]

    @cached_property
    def _first(self) -> tuple[jax.Array, list[jax.Array], list[jax.Array]]:
        return self._run(None)

    def _run(
        self, weights: list[Weight] | None
    ) -> tuple[jax.Array, list[jax.Array], list[jax.Array]]:
        """One pass: the losses, for every leaf the squared norms, and with weights the sums."""
        ledger = _Ledger(self._places, self._leaves, self._axes, weights is not None)

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
                eqn: Any, operands: Sequence[Any], sites: tuple[Site, ...], zeros: dict[int, Any]
            ) -> tuple[Sequence[Any], dict[int, Any]]:
                return _at_site(
                    eqn,
                    list(operands),
                    [s for s in sites if s.leaf in slots],
                    [account(s.leaf, zeros.get(s.operand)) for s in sites if s.leaf in slots],
                    {s.operand: zeros[s.operand] for s in sites if s.leaf not in slots},
                )

            (value, *_), recorded = self._program.replay(
                [*inputs, *example], ledger.sites, taps, at_site
            )
            return value, (value, recorded)

        cotangents, (values, recorded) = jax.vmap(
            jax.grad(loss, has_aux=True),
            in_axes=(None, 0, None if weights is None else [_OF_EXAMPLES] * len(weights)),
            out_axes=((0, None, ledger.tap_axes), 0),
        )(ledger.zeros, jax.tree.leaves(self._batch), weights)
        squared, totals = [], []
        for i, leaf in enumerate(self._leaves):
            norms, total = self._of_leaf(i, cotangents, recorded, weights)
            squared.append(norms)
            totals.append(total.astype(accumulation_dtype(leaf.dtype)))
        return values, squared, totals

    def _of_leaf(
        self, i: int, cotangents: Any, recorded: Any, weights: list[Weight] | None
    ) -> tuple[jax.Array, jax.Array]:
        """Squared norms `[b]` and weighted sum of one leaf, after a pass; no weights: no sum."""
        place, leaf = self._places[i], self._leaves[i]
        nothing = jnp.zeros(leaf.shape, accumulation_dtype(leaf.dtype))
        if place.where == "nowhere":
            return jnp.zeros(self._size, nothing.dtype), nothing
        slots, sinks, taps = cotangents
        if place.where == "leaf":
            return slots[i], sinks[i] if weights else nothing
        use = place.use
        for index in use.path:
            taps, recorded = taps[index], recorded[index]
        if place.where == "tap":
            held = in_factors(place.choice, recorded[use.operand], taps[use.operand])
            return held.squared_norms(), sum_of_kept(held, *weights[i]) if weights else nothing
        # Each iteration's was added to those before it.
        terms = math.prod(length for length, _ in use.view.loops)
        squared = slots[i] * (1 + terms * float(jnp.finfo(slots[i].dtype).eps))
        return squared, use.view.restore(taps[use.operand], 0) if weights else nothing


def _at_site(
    eqn: Any,
    operands: list[Any],
    sites: list[Site],
    accounts: list[Account],
    taps: dict[int, jax.Array],
) -> tuple[list[Any], dict[int, Any]]:
    """Runs an equation with sites and taps at some of its operands; records what taps need."""
    recorded = {operand: operands[1 - operand] for operand in taps}
    settled = list(zip(sites, accounts, strict=True))
    for site, account in settled:
        if not site.in_factors:
            operands[site.operand] = identity(operands[site.operand], account)
    products = [(site, account) for site, account in settled if site.in_factors]
    if not products:
        result, *more = run_equation(eqn, operands, SUBSTITUTES if taps else {})
        assert not more
    else:
        result = product(eqn, operands, *zip(*products, strict=True))
    for tap in taps.values():
        result = result + tap
    return [result], recorded


class _Ledger:
    """The sites, and zeros whose cotangents a pass asks for: slots, sinks and taps."""

    def __init__(
        self, places: list[Place], leaves: list[jax.Array], axes: frozenset, sums: bool
    ) -> None:
        self.sites: dict[int, Any] = {}
        self.tap_axes: dict[int, Any] = {}  # of the examples; None: one sum of them all
        slots: dict[int, jax.Array] = {}
        sinks: dict[int, jax.Array] = {}
        taps: dict[int, Any] = {}
        for i, (place, leaf) in enumerate(zip(places, leaves, strict=True)):
            dtype = accumulation_dtype(leaf.dtype)
            if place.where == "leaf":
                slots[i] = jnp.zeros([], dtype)
                if sums:
                    sinks[i] = jnp.zeros(leaf.shape, dtype)
            if place.where not in ("site", "tap"):
                continue
            use = place.use
            loops = tuple(length for length, _ in use.view.loops)
            dtype = accumulation_dtype(jnp.promote_types(leaf.dtype, use.result.dtype))
            *_, end = use.path
            sites, zeros, tap_axes = (
                _inside(tree, use.path[:-1]) for tree in (self.sites, taps, self.tap_axes)
            )
            sites[end] = (*sites.get(end, ()), Site(i, use.operand, place.choice))
            zeros, tap_axes = zeros.setdefault(end, {}), tap_axes.setdefault(end, {})
            if place.where == "tap":
                zeros[use.operand] = jnp.zeros(loops + use.result.shape, use.result.dtype)
                tap_axes[use.operand] = 0
                continue
            slots[i] = jnp.zeros([], dtype)
            if sums:
                zeros[use.operand] = jnp.zeros(loops + use.operands[use.operand].shape, dtype)
                tap_axes[use.operand] = None
        self.zeros = vary((slots, sinks, taps), axes)


def _inside(tree: dict[int, Any], way: Sequence[int]) -> dict[int, Any]:
    """The tree inside a tree, made where there is none."""
    for index in way:
        tree = tree.setdefault(index, {})
    return tree
