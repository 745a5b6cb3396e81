"""Clipping: Optax transformations over `PerExampleGrads` that bound what one record can do."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..gradients.lazy import Microbatch, PerExampleGrads
from ..types import Adjacency, Unit
from .groups import SMALLEST_BOUND, Bound, Groups, Layer, bound_values, group_leaves, is_bound

Array = jax.Array


class ClippingState(NamedTuple):
    """Bounds `[groups] float32`, replaceable by `optax.tree.set(state, clipping_bounds=...)`."""

    clipping_bounds: Array


@dataclass(frozen=True)
class Quantile:
    """How bounds follow a quantile of the norms: C ← C·exp(−learning_rate·(b̄ − target))."""

    target: float
    learning_rate: float
    count_std: float | None  # of the noise on each count; None: a twentieth of the divisor


class Clipping(optax.GradientTransformation):
    """An Optax transformation from `PerExampleGrads` to their clipped sum, without noise.

    Beside `init` and `update` it answers what `privatize` asks. Made by `clip_individual`,
    `clip_batch`, `clip_layerwise`, `clip_multiplied`, `clip_normalised` and `clip_quantile`.

    Attributes:
      unit: "example" if every example's gradient is clipped, "batch" if a unit's mean gradient is.
      joint: whether all groups have one coefficient, so that Σ (‖g_h‖/C_h)² is at most 1: norms and
        noise are then measured in bounds. Otherwise every group is within its own bound.
      quantile: set where the bounds adapt to the norms.
    """

    unit: Unit
    joint: bool
    quantile: Quantile | None
    _bounds: Any
    _layer: Layer | None
    _scale: Callable[[Array, Array], Array]
    _name: str

    def __new__(
        cls,
        name: str,
        bounds: Any,
        *,
        unit: Unit,
        layer: Layer | None = None,
        scale: Callable[[Array, Array], Array],
        joint: bool = False,
        quantile: Quantile | None = None,
    ) -> "Clipping":
        if unit not in ("example", "batch"):
            raise ValueError(f"unit is {unit!r}: give 'example' or 'batch'")
        if layer not in (None, "tensor", "module"):
            raise ValueError(f"layer is {layer!r}: give 'tensor' or 'module'")
        if layer is not None and not is_bound(bounds):
            raise ValueError(
                f"layer is {layer!r}, and the bounds {bounds!r} say themselves what is clipped "
                "apart: leave layer out, or give one number for every layer"
            )

        def init(params: Any) -> ClippingState:
            return ClippingState(self._bounds_at(self.groups(params), 0))

        def update(
            updates: PerExampleGrads, state: ClippingState, params: Any = None
        ) -> tuple[Any, ClippingState]:
            del params
            self.check(updates)
            groups = self.groups(updates.like)

            def part(microbatch: Microbatch) -> list[Array]:
                return microbatch.weighted_sum(self.weigh(microbatch, groups, state)[0])

            total = updates.sum(part, sum_shapes(updates))
            return jax.tree.unflatten(jax.tree.structure(updates.like), total), state

        self = super().__new__(cls, init, update)
        self._name, self._bounds, self._layer, self._scale = name, bounds, layer, scale
        self.unit, self.joint, self.quantile = unit, joint, quantile
        return self

    def groups(self, params: Any) -> Groups:
        """The groups of parameters that are clipped separately."""
        return group_leaves(params, self._bounds, self._layer)

    def weigh(
        self, microbatch: Microbatch, groups: Groups, state: ClippingState
    ) -> tuple[list[Array], Array]:
        """Coefficients `[b]` per leaf, and per group whether the norm is within its bound `[G, b]`.

        A coefficient times its gradient is never longer than the bound: norms are upper bounds.
        With `joint` it is the whole gradient that is within or not.
        """
        bounds = safe_bounds(groups, state.clipping_bounds)[:, None]
        # Adding up the leaves may round down too.
        slack = 1 + len(microbatch.leaves) * 2.0**-23
        norms = jnp.sqrt(groups.add_up(microbatch.squared_norms) * slack)
        if self.joint:
            norms, bounds = _measured_in(bounds, norms), jnp.ones_like(bounds)
        coefficients = self._scale(norms, bounds)
        nothing = jnp.zeros(norms.shape[1:], norms.dtype)
        per_leaf = [nothing if g is None else coefficients[g] for g in groups.of_leaf]
        return per_leaf, norms <= bounds

    def record_factor(self, adjacency: Adjacency) -> int:
        """How many bounds a group's clipped sum moves when the data change by one record.

        Replacing a record removes one contribution and adds another. A record's unit goes from one
        clipped mean to any other, which may point the opposite way (DESIGN rule 1).
        """
        return 2 if adjacency == "replace_one" or self.unit == "batch" else 1

    def sensitivity(self, adjacency: Adjacency, bounds: Array | None = None) -> Any:
        """Δ: how far the clipped sum moves, in Euclidean norm, when one record changes.

        With `joint` it is that of the group with the largest bound, where the noise is largest,
        too; measured in bounds, as the noise is, it is `record_factor`.

        Args:
          adjacency: what it means that one record changes.
          bounds: `[groups]` the bounds at this step. None: those that the clipping was made with,
            where they say how many groups there are.
        """
        if bounds is not None:
            longest = jnp.max(bounds) if self.joint else jnp.sqrt(jnp.sum(jnp.square(bounds)))
            return self.record_factor(adjacency) * longest
        if self._layer is not None:
            raise ValueError(
                f"{self!r} has as many groups as the model has layers: pass the bounds of its "
                "state, clipping.init(params).clipping_bounds"
            )
        first = [_at(bound, 0) for bound in bound_values(self._bounds)]
        return self.record_factor(adjacency) * (max(first) if self.joint else math.hypot(*first))

    @property
    def bounded(self) -> bool:
        """Whether all bounds are finite, so that noise can hide what they let through."""
        return all(math.isfinite(_at(bound, 0)) for bound in bound_values(self._bounds))

    def adapt(
        self, groups: Groups, state: ClippingState, step: Array, fractions: Array
    ) -> ClippingState:
        """The bounds for the step after `step`, from noised fractions within the bound `[G]`."""
        if self.quantile is None:
            if not any(callable(bound) for bound in groups.bounds):
                return state
            return ClippingState(self._bounds_at(groups, step + 1))
        shrink = jnp.exp(-self.quantile.learning_rate * (fractions - self.quantile.target))
        bounds = jnp.clip(state.clipping_bounds * shrink, SMALLEST_BOUND, 1 / SMALLEST_BOUND)
        return ClippingState(bounds)

    def count_sensitivity(self, adjacency: Adjacency) -> float:
        """How far one group's count (within the bound: +½, above: −½) moves with one record."""
        return self.record_factor(adjacency) / 2

    def check(self, grads: object) -> None:
        """Refuses what are no gradients of this clipping's units."""
        if not isinstance(grads, PerExampleGrads):
            raise TypeError(
                f"expected PerExampleGrads, got {type(grads).__name__}: clipping needs every "
                "example's gradient, and a gradient that is already summed or averaged can't be "
                "made private. Pass jaxdp.per_example_grads(loss)(params, batch), or your own "
                "vmap(grad) through jaxdp.from_dense, and keep other transformations after the "
                "clipping"
            )
        if grads.unit != self.unit:
            raise ValueError(
                f'{self!r} clips the gradients of unit="{self.unit}" and got those of '
                f'unit="{grads.unit}": use per_example_grads(loss, unit="{self.unit}")'
            )

    def _bounds_at(self, groups: Groups, step: Any) -> Array:
        values = [bound(step) if callable(bound) else bound for bound in groups.bounds]
        return jnp.stack([jnp.asarray(value, jnp.float32) for value in values])

    def __repr__(self) -> str:
        return self._name


def safe_bounds(groups: Groups, bounds: Array) -> Array:
    """Bounds from a state, `[groups]`, where nobody checked them: raised to what norms resolve."""
    if bounds.shape != (len(groups.names),):
        raise ValueError(
            f"the state's clipping_bounds have shape {bounds.shape}: there are {len(groups.names)} "
            f"groups ({', '.join(groups.names)}), so give shape ({len(groups.names)},)"
        )
    return jnp.maximum(bounds, SMALLEST_BOUND)


def sum_shapes(grads: PerExampleGrads) -> list[jax.ShapeDtypeStruct]:
    """Shape and dtype of the sum of every leaf, float32 or wider."""
    return [
        jax.ShapeDtypeStruct(p.shape, jnp.promote_types(p.dtype, jnp.float32))
        for p in jax.tree.leaves(grads.like)
    ]


def _measured_in(bounds: Array, norms: Array) -> Array:
    """√Σ (norm/bound)² over the groups, as an upper bound: `[G, b]`, the same for every group."""
    ratios = norms / bounds
    largest = jnp.max(ratios, axis=0)
    # Divided by the largest, so that no square overflows; adding up may round down.
    squares = jnp.square(ratios / jnp.maximum(largest, SMALLEST_BOUND))
    joint = largest * jnp.sqrt(jnp.sum(squares, axis=0) * (1 + (len(ratios) + 8) * 2.0**-23))
    # Rounding up can make the norm of a finite gradient infinite: it contributes nothing then.
    joint = jnp.where(jnp.isfinite(largest), joint, jnp.inf)
    return jnp.broadcast_to(joint, norms.shape)


def shorten(norms: Array, bounds: Array) -> Array:
    return jnp.minimum(1, bounds / norms)


def _at(bound: Bound, step: int) -> float:
    return float(bound(step) if callable(bound) else bound)
