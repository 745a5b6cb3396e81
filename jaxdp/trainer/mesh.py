"""The devices of a run: all that JAX has, unless the options say otherwise."""

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from ..dpsgd import processes
from ..dpsgd.devices import SMALL, Layout, split_rule
from ..types import PyTree
from .config import MeshConfig


def make_layout(config: MeshConfig) -> Layout | None:
    """How a step is shared out to the devices of all processes; None if there is one device.

    Raises:
      ValueError: if the options ask for more devices than there are, or leave some out.
    """
    count = jax.device_count()
    shared = config.fsdp * config.model
    if count % shared:
        raise ValueError(
            f"mesh.fsdp is {config.fsdp} and mesh.model is {config.model}, and JAX has {count} "
            "devices: give numbers whose product divides that"
        )
    if config.data not in (-1, count // shared):
        raise ValueError(
            f"mesh.data is {config.data}, mesh.fsdp is {config.fsdp} and mesh.model is "
            f"{config.model}, and JAX has {count} devices: their product must be that number. To "
            "leave devices out, hide them from JAX (CUDA_VISIBLE_DEVICES=0,1)"
        )
    if count == 1:
        return None
    sizes = {"data": count // shared, "fsdp": config.fsdp}
    if config.model > 1:
        sizes["model"] = config.model
    auto = (AxisType.Auto,) * len(sizes)
    mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=auto)
    by = {axis: size for axis, size in sizes.items() if axis != "data"}
    return Layout(mesh, ("data", "fsdp"), split_rule(by))


def describe(layout: Layout, params: PyTree) -> str:
    """A line for the console: what the devices share."""
    model = layout.mesh.shape.get("model", 1)
    line = f"{layout.mesh.size} devices"
    if processes.several():
        line += f" of {jax.process_count()} processes"
    line += (
        " share the records of each step"
        if model == 1
        else f" share each step, {layout.parts} by its records and {model} by its products"
    )
    if layout.mesh.shape["fsdp"] == model == 1:
        return f"{line}."
    specs = jax.tree.leaves(layout.specs(params), is_leaf=lambda spec: isinstance(spec, P))
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    split = sum(size for size, spec in zip(sizes, specs, strict=True) if any(spec))
    if split == 0:
        return (
            f"{line}. No parameter is large enough to be split ({SMALL:,} numbers, along a "
            "dimension that the devices divide): mesh.fsdp and mesh.model change nothing."
        )
    return f"{line}, and {split / sum(sizes):.0%} of the parameters are split."
