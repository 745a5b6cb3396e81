"""Makes the clipping that the options describe."""

from ..dpsgd.clipping import Clipping
from ..dpsgd.clippings import (
    clip_batch,
    clip_individual,
    clip_layerwise,
    clip_multiplied,
    clip_normalised,
    clip_quantile,
)
from ..dpsgd.plan import Plan
from .config import ClippingConfig

NormsOfLayers = dict[tuple[str, ...], float]  # paths of the parameters that are clipped as one


def make_clipping(config: ClippingConfig, norms: NormsOfLayers | None = None) -> Clipping:
    """Builds the clipping of the options.

    Args:
      config: the clipping section of a configuration.
      norms: clipping norms of the layers, if they were measured on public records.
    """
    unit, layer = config.clipped_unit, None if config.layer == "model" else config.layer
    if norms is not None:
        clip = clip_multiplied if config.kind == "multiplied" else clip_layerwise
        return clip(norms, unit=unit)
    if config.kind == "normalised":
        return clip_normalised(config.norm, stability=config.stability, unit=unit)
    if config.kind == "quantile":
        return clip_quantile(
            config.norm,
            target=config.quantile,
            learning_rate=config.quantile_rate,
            count_std=config.count_std,
            layer=layer,
            unit=unit,
        )
    if config.kind == "layerwise" and layer is not None:
        return clip_layerwise(config.norm, layer=layer, unit=unit)
    # With one norm for all layers, "multiplied" clips the whole gradient.
    return (clip_batch if unit == "batch" else clip_individual)(config.norm)


def units_at_a_time(records: int, plan: Plan) -> int:
    """How many examples (or batch units) are differentiated at a time, as so many records."""
    return records if plan.clipping.unit == "example" else max(1, records // plan.capacity)
