"""Clipping: Optax transformations over `PerExampleGrads` that bound what one record can do."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .accounting import Adjacency, Unit
from .gradients import Microbatch, PerExampleGrads
from .groups import (
    SMALLEST_BOUND,
    Bound,
    Groups,
    Layer,
    bound_values,
    check_bound,
    group_leaves,
    is_bound,
)

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


def clip_individual(bound: Bound) -> Clipping:
    """Clips every example's gradient to norm `bound`: g·min(1, bound/‖g‖).

    One record moves the sum of the clipped gradients by at most `bound` when it is added, removed
    or zeroed out, and by twice that when it is replaced. Norms are upper bounds that include
    rounding, so this holds for the computed sums too.

    Args:
      bound: the clipping norm C, at least 1e-12, or a schedule `step -> C`. `inf` leaves the
        gradients whole: good for plain training, but no noise hides such a sum.

    Raises:
      ValueError, TypeError: for a bound that is no positive Python number.

    References:
      Abadi et al. 2016, Deep Learning with Differential Privacy (arXiv 1607.00133).
    """
    check_bound(bound)
    return Clipping(f"clip_individual({_text(bound)})", bound, unit="example", scale=_shorten)


def clip_batch(bound: Bound) -> Clipping:
    """Clips the *mean* gradient of every batch unit to norm `bound`, as one.

    For models whose loss couples the examples of a batch. One record can turn its unit's clipped
    mean from one direction to the opposite one: the sensitivity is 2·bound under every adjacency,
    whatever the number of examples in the unit.

    Args:
      bound: the clipping norm C of a unit's mean gradient, or a schedule `step -> C`.

    References:
      Nguyen et al. 2023, Batch Clipping and Adaptive Layerwise Clipping (arXiv 2307.11939).
    """
    check_bound(bound)
    return Clipping(f"clip_batch({_text(bound)})", bound, unit="batch", scale=_shorten)


def clip_layerwise(bounds: Any, *, layer: Layer | None = None, unit: Unit = "example") -> Clipping:
    """Clips every layer's gradient to a bound of its own.

    The sensitivity is √(Σ bound²) over the layers, doubled as for one bound.

    Args:
      bounds: one number for every layer; `{pattern: bound}` over parameter paths such as
        `{"Conv_*": 0.5, "Dense_0": 1.0}`, where each pattern, or tuple of patterns, is one group
        that is clipped together; or a prefix pytree of the parameters. A bound of 0 freezes its
        group: no gradient and no noise. Bounds may be schedules `step -> C`.
      layer: only with one number: a layer is every "tensor" (so None, too) or every "module".
      unit: "example" or "batch", as in `clip_individual` and `clip_batch`.

    References:
      Nguyen et al. 2023 (arXiv 2307.11939), where a layer is a tensor; McMahan et al. 2018
      (arXiv 1710.06963).
    """
    return _clip_groups("clip_layerwise", bounds, layer, unit, joint=False)


def clip_multiplied(bounds: Any, *, layer: Layer | None = None, unit: Unit = "example") -> Clipping:
    """Clips the whole gradient with layers measured in bounds: g·min(1, (Σ (‖g_h‖/C_h)²)^(-1/2)).

    The paper's multiplication factor: layer h is multiplied by m_h = C/C_h, the whole gradient is
    clipped to C, noise is added, and layer h is divided by m_h again. C cancels. One coefficient
    for all layers keeps the gradient's direction, and the noise on layer h has standard deviation
    z·C_h (doubled as for one bound), without the √L of `clip_layerwise`: its bounds times √L need
    the same noise here, and leave whole whatever it does.

    Args:
      bounds: as in `clip_layerwise`: how long layer h may be where all others are zero.
      layer: as in `clip_layerwise`.
      unit: as in `clip_layerwise`.

    References:
      Nguyen et al. 2023 (arXiv 2307.11939), future work.
    """
    return _clip_groups("clip_multiplied", bounds, layer, unit, joint=True)


def _clip_groups(
    name: str, bounds: Any, layer: Layer | None, unit: Unit, *, joint: bool
) -> Clipping:
    for bound in bound_values(bounds):
        check_bound(bound, zero_freezes=True)
    if is_bound(bounds) and layer is None:
        layer = "tensor"
    return Clipping(
        f"{name}({_text(bounds)}{f', layer={layer!r}' if layer else ''}, unit={unit!r})",
        bounds,
        unit=unit,
        layer=layer,
        scale=_shorten,
        joint=joint,
    )


def clip_normalised(
    bound: Bound = 1.0, *, stability: float = 0.01, unit: Unit = "example"
) -> Clipping:
    """Scales every gradient to nearly the same norm: g·bound/(‖g‖ + stability).

    "Automatic clipping": the bound only scales the learning rate, so there is none to tune.

    Args:
      bound: an upper bound on every scaled norm.
      stability: γ, at least 1e-12, in the gradient's units: gradients much shorter stay short.
      unit: "example" or "batch".

    References:
      Bu et al. 2023, Automatic Clipping (arXiv 2206.07136).
    """
    check_bound(bound)
    if not (math.isfinite(stability) and stability >= SMALLEST_BOUND):
        raise ValueError(
            f"stability is {stability}: give a number of at least {SMALLEST_BOUND} (0.01 is usual)"
        )
    return Clipping(
        f"clip_normalised({_text(bound)}, stability={stability:g}, unit={unit!r})",
        bound,
        unit=unit,
        scale=lambda norms, bounds: bounds / (norms + stability),
    )


def clip_quantile(
    initial_bound: Any = 1.0,
    *,
    target: float = 0.5,
    learning_rate: float = 0.2,
    count_std: float | None = None,
    layer: Layer | None = None,
    unit: Unit = "example",
) -> Clipping:
    """Clips to a bound that follows a quantile of the norms, found privately.

    Every step counts the gradients within the bound, adds noise to the count, and moves the next
    step's bound: C ← C·exp(−learning_rate·(b̄ − target)). The counts are paid out of the plan's
    noise multiplier: the gradient's noise grows a little, the accounted number stays.

    Args:
      initial_bound: C at the first step: a number, or per group as in `clip_layerwise`.
      target: the fraction of gradients that shall be within the bound, 0 to 1.
      learning_rate: of the bound, in log space.
      count_std: standard deviation of the noise on each count, in records (units). None takes a
        twentieth of the expected batch size (of the number of units). Must be large enough for the
        plan's noise multiplier.
      layer: only with one number: None for one bound for the whole gradient; "tensor" or "module"
        for one per layer.
      unit: "example" or "batch".

    References:
      Andrew et al. 2021, Differentially Private Learning with Adaptive Clipping (arXiv 1905.03871).
    """
    for bound in jax.tree.leaves(initial_bound):
        check_bound(bound)
        if callable(bound) or not math.isfinite(bound):
            raise ValueError(f"initial_bound is {bound}: give a finite number to start from")
    if not 0 <= target <= 1:
        raise ValueError(f"target is {target}: it is a fraction of the gradients, between 0 and 1")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"learning_rate is {learning_rate}: give a number above 0 (0.2 is usual)")
    if count_std is not None and not (math.isfinite(count_std) and count_std > 0):
        raise ValueError(f"count_std is {count_std}: give a number above 0, or None")
    return Clipping(
        f"clip_quantile({_text(initial_bound)}, target={target:g}, "
        f"learning_rate={learning_rate:g}, count_std={count_std}, layer={layer!r}, unit={unit!r})",
        initial_bound,
        unit=unit,
        layer=layer,
        scale=_shorten,
        quantile=Quantile(target, learning_rate, count_std),
    )


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


def _shorten(norms: Array, bounds: Array) -> Array:
    return jnp.minimum(1, bounds / norms)


def _at(bound: Bound, step: int) -> float:
    return float(bound(step) if callable(bound) else bound)


def _text(bounds: Any) -> str:
    if callable(bounds):
        return "schedule"
    return f"{bounds:g}" if isinstance(bounds, int | float) else repr(bounds)
