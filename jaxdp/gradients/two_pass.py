"""Clipped sums in the memory of plain training: norms in one backward pass, the sum in another.

Nothing is held between the passes but the norms. Rounding may differ between them, so the second
pass measures the norms too, and a row that would then contribute too much is left out.

Where every group that is clipped has one place at which its gradient arises, its coefficient is
known there, and one pass is enough.

References:
  Lee & Kifer 2021, Scaling up Differentially Private Deep Learning with Fast Per-Example Gradient
  Clipping (arXiv 2009.03106).
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .clip import Clip, Rows
from .engine import Found, auto_engine, factored_engine
from .held import Gradients, Held
from .isolation import mixes_rows
from .jax_internals import one_example, vary, varying_axes
from .places import Place, places, scattered
from .program import Recorded, Sites, trace, with_taps
from .representations import Representation, accumulation_dtype
from .site_sums import Account, Site, Weight, identity, product
from .tapped import SUBSTITUTES, add_taps, tree_at

CONTRIBUTION_TWO_PASS = 1e-3  # a contribution is at most C·(1 + this): the passes differ that far


def two_pass_engine(
    loss_fn: Callable[..., jax.Array],
    params: Any,
    batch: tuple,
    constant_time: bool = False,
    convolves: bool = True,
    narrow: bool = False,
) -> Gradients:
    """The gradients, computed again whenever they are asked for.

    Where a row that is not finite might make others so, gradients are held instead.
    """
    gradients = TwoPass(loss_fn, params, batch, narrow)
    norms = lambda batch: TwoPass(loss_fn, params, batch, narrow).squared_norms()
    if convolves and mixes_rows(norms, batch):
        return Held(*auto_engine(loss_fn, params, batch, constant_time, narrow=narrow))
    return gradients


class _Pass(NamedTuple):
    """What one backward pass found.

    Attributes:
      values: the losses `[b]`.
      squared: for every leaf the squared norms `[b]`.
      totals: for every leaf the sum; zeros where there was no weight for it.
      held: the gradients of the leaves that are held until the end, by number: not in `totals`.
    """

    values: jax.Array
    squared: list[jax.Array]
    totals: list[jax.Array]
    held: dict[int, Representation]

    def with_held(self, weights: Sequence[Weight]) -> "_Pass":
        """With the sums of the held gradients, too."""
        totals = list(self.totals)
        for i, leaf in self.held.items():
            totals[i] = weights[i].sum(leaf, self.squared[i]).astype(totals[i].dtype)
        return self._replace(totals=totals, held={})


class TwoPass:
    """The gradients of b rows as a computation (`Gradients`)."""

    def __init__(
        self, loss_fn: Callable[..., jax.Array], params: Any, batch: tuple, narrow: bool = False
    ) -> None:
        self._axes = varying_axes((params, batch))
        params = vary(params, self._axes)
        self._loss_fn = loss_fn
        self._params, self._batch = params, batch
        self._program = trace(loss_fn, params, one_example(batch), narrow=narrow)
        self._leaves = jax.tree.leaves(params)
        self._places = places(self._program)
        self._size = jax.tree.leaves(batch)[0].shape[0]

    @property
    def values(self) -> jax.Array:
        return self._first.values

    @property
    def one_term(self) -> bool:
        return all(place.choice.one_term for place in self._places)

    def squared_norms(self) -> list[jax.Array]:
        return self._first.squared

    def clipped_sum(
        self, clip: Clip, mask: jax.Array, constant_time: bool
    ) -> tuple[list[jax.Array], Rows]:
        if clip.coefficient is not None and not scattered(self._places, clip.group_of):
            return self._in_one_pass(clip, clip.coefficient, mask, constant_time)
        rows = Rows(self.values, self.squared_norms(), mask)
        coefficients, longest = clip.coefficients(rows.squared_norms), 1 + CONTRIBUTION_TWO_PASS
        if clip.strict:  # room for gradients that get longer
            coefficients, longest = [c / longest for c in coefficients], 1.0
        allowed = lambda squared: clip.fits(coefficients, squared, longest)
        return self.weighted_sum(coefficients, rows.valid, allowed, constant_time), rows

    def weighted_sum(
        self,
        coefficients: Sequence[jax.Array],
        valid: jax.Array,
        allowed: Callable[[Sequence[jax.Array]], jax.Array],
        constant_time: bool,
    ) -> list[jax.Array]:
        """Σ_b c_b·g_b for every leaf, given its coefficients `[b]`; invalid rows count as zero.

        `allowed` tells which rows may contribute, given their squared norms in this very pass.
        """

        def take(kept: jax.Array) -> tuple[jax.Array, _Pass]:
            all_kept = None if constant_time else jnp.all(kept)
            weights = [Weight(c, kept, all_kept) for c in coefficients]
            found = self._run(weights).with_held(weights)
            return allowed(found.squared), found

        return self._without_bad_rows(take, valid, constant_time).totals

    def _in_one_pass(
        self,
        clip: Clip,
        coefficient: Callable[[jax.Array, jax.Array], jax.Array],
        mask: jax.Array,
        constant_time: bool,
    ) -> tuple[list[jax.Array], Rows]:
        """The clipped sum where no group is scattered.

        Norm and sum are of the same numbers there, so that no contribution exceeds its clipping
        norm by more than rule 9's 1e-5. A row that is not finite in one leaf is out in all of them:
        if there is any, the pass is made once more without it, and its sums are not used.
        """
        each = jnp.ones(self._size)

        def take(kept: jax.Array) -> tuple[jax.Array, _Pass]:
            all_kept = None if constant_time else jnp.all(kept)
            found = self._run(
                [
                    None
                    if group is None
                    else Weight(clip.clipping_norms[group] * each, kept, all_kept, coefficient)
                    for group in clip.group_of
                ]
            )
            # A group that is held until the end may have several leaves.
            weights = [Weight(c, kept, all_kept) for c in clip.coefficients(found.squared)]
            return jnp.isfinite(sum(found.squared)), found.with_held(weights)

        found = self._without_bad_rows(take, mask, constant_time)
        return found.totals, Rows(found.values, found.squared, mask)

    def _without_bad_rows(
        self,
        take: Callable[[jax.Array], tuple[jax.Array, _Pass]],
        kept: jax.Array,
        constant_time: bool,
    ) -> _Pass:
        """A pass over the rows `kept [b]`, without those that it finds to be bad.

        Args:
          take: makes a pass with the rows that are kept, and tells which rows are good.
          kept: False for the rows that are out from the beginning.
          constant_time: two passes are made in any case. The second one is the first one again,
            with the same roundings, so that it finds no more bad rows. If it did, the sum would be
            NaN.
        """

        def once_more(state: tuple) -> tuple:
            kept, _, _ = state
            good, found = take(kept)
            found = found._replace(values=found.values.astype(nothing.values.dtype))
            return vary((kept & good, found, jnp.all(good | ~kept)), self._axes)

        wide = [accumulation_dtype(leaf.dtype) for leaf in self._leaves]
        nothing = _Pass(
            jnp.zeros(self._size, self._program.jaxpr.outvars[0].aval.dtype),
            [jnp.zeros(self._size, d) for d in wide],
            [jnp.zeros(leaf.shape, d) for leaf, d in zip(self._leaves, wide, strict=True)],
            {},
        )
        start = vary((kept, nothing, jnp.zeros([], bool)), self._axes)
        if constant_time:
            _, found, done = jax.lax.fori_loop(0, 2, lambda _, state: once_more(state), start)
            return found._replace(totals=[jnp.where(done, x, jnp.nan) for x in found.totals])
        return jax.lax.while_loop(lambda state: ~state[2], once_more, start)[1]

    def materialize(self, valid: jax.Array) -> list[jax.Array]:
        _, leaves = factored_engine(
            self._loss_fn, self._params, self._batch, narrow=self._program.narrow
        )
        return [leaf.keep(valid).materialize() for leaf in leaves]

    @cached_property
    def _first(self) -> _Pass:
        return self._run([None] * len(self._places))

    def _run(self, weights: Sequence[Weight | None]) -> _Pass:
        """One pass, with the sums of the leaves that have a weight."""
        summed = [weight is not None for weight in weights]
        ledger = _Ledger(self._places, self._leaves, self._axes, summed)
        tapped = with_taps(SUBSTITUTES)

        def loss(zeros: Any, example: list[Any], weights: Any) -> Any:
            slots, sinks, taps = zeros
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
        axes = [w if w is None else w.map(lambda _: 0, lambda _: None) for w in weights]
        cotangents, (values, recorded) = jax.vmap(
            jax.grad(loss, has_aux=True), in_axes=(None, 0, axes), out_axes=outputs
        )(ledger.zeros, jax.tree.leaves(self._batch), list(weights))
        slots, sinks, taps = cotangents
        found = Found(self._program, self._leaves, ledger.sites, taps, recorded)
        squared, totals = [], []
        held: dict[int, Representation] = {}
        for i, (place, leaf) in enumerate(zip(self._places, self._leaves, strict=True)):
            dtype = accumulation_dtype(leaf.dtype)
            norms, total = jnp.zeros(self._size, dtype), jnp.zeros(leaf.shape, dtype)
            if place.where == "tap":
                held[i] = found.represent(place.choice)
                norms = held[i].squared_norms()
            elif place.where == "leaf":
                norms, total = slots[i], sinks.get(i, total)
            elif place.where == "site":
                view = place.use.view
                # Each iteration's was added to those before it.
                terms = math.prod(length for length, _ in view.loops)
                norms = slots[i] * (1 + terms * float(jnp.finfo(slots[i].dtype).eps))
                *way, last = place.use.path
                sink = tree_at(taps, way)[last]
                total = view.restore(sink, 0) if summed[i] else total
            squared.append(norms.astype(dtype))
            totals.append(total.astype(dtype))
        return _Pass(values, squared, totals, held)


class _Ledger:
    """The sites, and zeros whose cotangents a pass asks for: slots, sinks and taps."""

    def __init__(
        self, places: list[Place], leaves: list[jax.Array], axes: frozenset, summed: list[bool]
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
                if summed[i]:
                    sinks[i] = jnp.zeros(leaf.shape, dtype)
            elif place.where == "site":
                use = place.use
                dtype = accumulation_dtype(jnp.promote_types(leaf.dtype, use.result.dtype))
                slots[i] = jnp.zeros([], dtype)
                loops = tuple(length for length, _ in use.view.loops)
                shape = loops + use.operands[use.operand].shape
                *way, last = use.path
                self.sites.at(tuple(way)).taps[last] = Site(i, use.operand, place.choice)
                tree_at(taps, way)[last] = jnp.zeros(shape, dtype) if summed[i] else None
                tree_at(self.tap_axes, way)[last] = None
        self.zeros = vary((slots, sinks, taps), axes)
