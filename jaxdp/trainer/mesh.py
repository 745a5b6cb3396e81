"""The devices of a run: all that JAX has, unless the options say otherwise."""

import jax
from jax.sharding import AxisType

from ..dpsgd import processes
from ..dpsgd.devices import Layout, split_rule
from .config import MeshConfig


def make_layout(config: MeshConfig) -> Layout | None:
    """How a step is shared out to the devices of all processes; None if there is one device.

    Raises:
      ValueError: if the options ask for more devices than there are, or leave some out.
    """
    count = jax.device_count()
    shared = config.fsdp * config.model
    data = count // shared if config.data == -1 else config.data
    if data * shared != count:
        asked = "the devices that are left" if config.data == -1 else str(config.data)
        raise ValueError(
            f"mesh.data is {asked}, mesh.fsdp is {config.fsdp} and mesh.model is {config.model}, "
            f"and JAX has {count} devices: their product must be that number "
            "(CUDA_VISIBLE_DEVICES chooses among GPUs)"
        )
    if count == 1:
        return None
    sizes = {"data": data, "fsdp": config.fsdp}
    if config.model > 1:
        sizes["model"] = config.model
    auto = (AxisType.Auto,) * len(sizes)
    mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=auto)
    by = {axis: size for axis, size in sizes.items() if axis != "data"}
    return Layout(mesh, ("data", "fsdp"), split_rule(by))


def describe(layout: Layout) -> str:
    """A line for the console."""
    shape = layout.mesh.shape
    model = shape.get("model", 1)
    line = f"{layout.parts} devices "
    if model > 1:
        line = f"{layout.parts} times {model} devices "
    if processes.several():
        line += f"of {jax.process_count()} processes "
    line += "share the records of each step"
    return line + (f", and {shape['fsdp']} the parameters." if shape["fsdp"] > 1 else ".")
