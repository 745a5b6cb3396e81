"""The clippings to choose from."""

import math
from typing import Any

import jax

from ..types import Unit
from .clipping import Clipping, Quantile, shorten
from .groups import SMALLEST_BOUND, Bound, Layer, bound_values, check_bound, is_bound


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
    return Clipping(
        f"clip_individual({text_of_norms(bound)})", bound, unit="example", scale=shorten
    )


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
    return Clipping(f"clip_batch({text_of_norms(bound)})", bound, unit="batch", scale=shorten)


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
        f"{name}({text_of_norms(bounds)}{f', layer={layer!r}' if layer else ''}, unit={unit!r})",
        bounds,
        unit=unit,
        layer=layer,
        scale=shorten,
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
        f"clip_normalised({text_of_norms(bound)}, stability={stability:g}, unit={unit!r})",
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
        f"clip_quantile({text_of_norms(initial_bound)}, target={target:g}, "
        f"learning_rate={learning_rate:g}, count_std={count_std}, layer={layer!r}, unit={unit!r})",
        initial_bound,
        unit=unit,
        layer=layer,
        scale=shorten,
        quantile=Quantile(target, learning_rate, count_std),
    )


def text_of_norms(bounds: Any) -> str:
    if callable(bounds):
        return "schedule"
    return f"{bounds:g}" if isinstance(bounds, int | float) else repr(bounds)
