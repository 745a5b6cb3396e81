"""The clippings that a user can choose: functions that make a `Clipping`."""

import math
from typing import Any

from ..types import ClippingKind, Layer, Unit
from .clipping import Clipping, Quantile
from .groups import (
    ClippingNorm,
    all_clipping_norms,
    check_clipping_norm,
    is_clipping_norm,
)


def clip_individual(clipping_norm: ClippingNorm) -> Clipping:
    """Clips every example's gradient to norm C: g·min(1, C/‖g‖).

    One record moves the sum of the clipped gradients by at most C when it is added, removed or
    zeroed out, and by at most 2C when it is replaced. Norms are upper bounds that include rounding,
    so this holds for the computed sums too.

    Args:
      clipping_norm: C, at least 1e-12, or a schedule `step -> C`. `inf` leaves the gradients
        whole: good for plain training, but no noise can make such a sum private.

    Raises:
      ValueError, TypeError: if it is neither a Python number of at least 1e-12 nor a schedule.

    References:
      Abadi et al. 2016, Deep Learning with Differential Privacy (arXiv 1607.00133).
    """
    check_clipping_norm(clipping_norm)
    return Clipping("individual", clipping_norm)


def clip_batch(clipping_norm: ClippingNorm) -> Clipping:
    """Clips the *mean* gradient of every batch unit to norm C.

    For models whose loss couples the examples of a batch. One record can turn its unit's clipped
    mean to the opposite direction. So the sensitivity is 2C under every adjacency, however many
    examples the unit has.

    Args:
      clipping_norm: C for a unit's mean gradient, or a schedule `step -> C`.

    References:
      Nguyen et al. 2023, Batch Clipping and Adaptive Layerwise Clipping (arXiv 2307.11939).
    """
    check_clipping_norm(clipping_norm)
    return Clipping("batch", clipping_norm, unit="batch")


def clip_layerwise(
    clipping_norm: Any, *, layer: Layer | None = None, unit: Unit = "example"
) -> Clipping:
    """Clips every layer's gradient to its own clipping norm.

    The sensitivity is √(Σ C²) over the layers, doubled in the same cases as for one clipping norm.

    Args:
      clipping_norm: one number for every layer; or `{pattern: C}` over parameter paths such as
        `{"Conv_*": 0.5, "Dense_0": 1.0}`, where each pattern, or tuple of patterns, is one group
        that is clipped together; or a prefix pytree of the parameters. 0 freezes its group: it
        gets no gradient and no noise. Every C may be a schedule `step -> C`.
      layer: only with one number: what a layer is, every "tensor" (also for None) or every
        "module".
      unit: "example" or "batch", as in `clip_individual` and `clip_batch`.

    References:
      Nguyen et al. 2023 (arXiv 2307.11939): there a layer is a tensor. McMahan et al. 2018
      (arXiv 1710.06963).
    """
    return _clip_groups("layerwise", clipping_norm, layer, unit)


def clip_multiplied(
    clipping_norm: Any, *, layer: Layer | None = None, unit: Unit = "example"
) -> Clipping:
    """Clips the whole gradient by one factor: g·min(1, (Σ (‖g_h‖/C_h)²)^(-1/2)).

    The paper's multiplication factor: layer h is multiplied by m_h = C/C_h, the whole gradient is
    clipped to C, noise is added, and layer h is divided by m_h again. C cancels.

    All layers have the same coefficient, so the gradient keeps its direction. The noise on layer h
    has standard deviation z·C_h (doubled in the same cases as for one clipping norm), without the
    factor √L of `clip_layerwise`. So with clipping norms √L times as large the noise is the same as
    with `clip_layerwise`, and all gradients that `clip_layerwise` leaves whole stay whole here too.

    Args:
      clipping_norm: as in `clip_layerwise`. C_h is how long layer h may be if all others are zero.
      layer: as in `clip_layerwise`.
      unit: as in `clip_layerwise`.

    References:
      Nguyen et al. 2023 (arXiv 2307.11939), future work.
    """
    return _clip_groups("multiplied", clipping_norm, layer, unit)


def _clip_groups(
    kind: ClippingKind, clipping_norm: Any, layer: Layer | None, unit: Unit
) -> Clipping:
    for norm in all_clipping_norms(clipping_norm):
        check_clipping_norm(norm, zero_freezes=True)
    if is_clipping_norm(clipping_norm) and layer is None:
        layer = "tensor"
    return Clipping(kind, clipping_norm, unit, layer)


def clip_normalised(
    clipping_norm: ClippingNorm = 1.0, *, stability: float = 0.01, unit: Unit = "example"
) -> Clipping:
    """Scales every gradient to nearly the same norm: g·C/(‖g‖ + γ).

    This is "automatic clipping": C only scales the learning rate, so there is no C to tune.

    Args:
      clipping_norm: C, an upper bound on every scaled norm.
      stability: γ, at least 1e-12. Gradients that are much shorter than γ stay short.
      unit: "example" or "batch".

    References:
      Bu et al. 2023, Automatic Clipping (arXiv 2206.07136).
    """
    check_clipping_norm(clipping_norm)
    return Clipping("normalised", clipping_norm, unit, stability=stability)


def clip_quantile(
    initial_clipping_norm: Any = 1.0,
    *,
    target: float = 0.5,
    learning_rate: float = 0.2,
    count_std: float | None = None,
    layer: Layer | None = None,
    unit: Unit = "example",
) -> Clipping:
    """Clips to a norm that follows a quantile of the gradients' norms, found privately.

    Every step counts the gradients within C, adds noise to the count, and so finds the C of the
    next step: C ← C·exp(−learning_rate·(b̄ − target)), with b̄ the noisy fraction within C. The
    plan's noise multiplier pays for the counts too: the noise on the gradient grows a little, the
    noise multiplier that is accounted stays.

    Args:
      initial_clipping_norm: C at the first step: a number, or per group as in `clip_layerwise`.
      target: the fraction of gradients to keep within C, 0 to 1.
      learning_rate: how fast log C moves.
      count_std: standard deviation of the noise on each count, in records (in units with
        unit="batch"). None: a twentieth of the expected batch size (of the number of units). It
        must be large enough for the plan's noise multiplier.
      layer: only with one number: None for one C for the whole gradient; "tensor" or "module" for
        one C per layer.
      unit: "example" or "batch".

    References:
      Andrew et al. 2021, Differentially Private Learning with Adaptive Clipping (arXiv 1905.03871).
    """
    for norm in all_clipping_norms(initial_clipping_norm):
        check_clipping_norm(norm)
        if callable(norm) or not math.isfinite(norm):
            raise ValueError(f"initial_clipping_norm is {norm}: give a finite number to start from")
    if not 0 <= target <= 1:
        raise ValueError(f"target is {target}: it is a fraction of the gradients, between 0 and 1")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"learning_rate is {learning_rate}: give a number above 0 (0.2 is usual)")
    if count_std is not None and not (math.isfinite(count_std) and count_std > 0):
        raise ValueError(f"count_std is {count_std}: give a number above 0, or None")
    quantile = Quantile(target, learning_rate, count_std)
    return Clipping("quantile", initial_clipping_norm, unit, layer, quantile=quantile)
