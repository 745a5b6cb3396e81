"""From the options to a clipping."""

from ..dpsgd import clipping, clippings
from ..dpsgd.plan import Plan
from ..types import Unit
from . import config as configs


def units_at_a_time(config: configs.Config, plan: Plan) -> int:
    """How many examples, or batch units with as many records, are differentiated at a time."""
    records = config.training.microbatch_size
    return records if plan.clipping.unit == "example" else max(1, records // plan.capacity)


def unit_of(config: configs.ClippingConfig) -> Unit:
    """Whose gradient is clipped: that of an example, or of a batch unit."""
    return "batch" if config.kind == "batch" else config.unit


def make_clipping(
    config: configs.ClippingConfig, bounds: dict[tuple[str, ...], float] | None = None
) -> clipping.Clipping:
    """Builds the clipping that the config describes, with bounds for layers if they were found."""
    unit, layer = unit_of(config), None if config.layer == "model" else config.layer
    if bounds is not None:
        joint = config.kind == "multiplied"
        clip = clippings.clip_multiplied if joint else clippings.clip_layerwise
        return clip(bounds, unit=unit)
    if config.kind == "normalised":
        return clippings.clip_normalised(config.norm, stability=config.stability, unit=unit)
    if config.kind == "quantile":
        return clippings.clip_quantile(
            config.norm,
            target=config.quantile,
            learning_rate=config.quantile_rate,
            count_std=config.count_std,
            layer=layer,
            unit=unit,
        )
    if config.kind == "layerwise" and layer is not None:
        return clippings.clip_layerwise(config.norm, layer=layer, unit=unit)
    # With one norm for all layers, "multiplied" is what it is for the whole gradient.
    clip_whole = clippings.clip_batch if unit == "batch" else clippings.clip_individual
    return clip_whole(config.norm)
