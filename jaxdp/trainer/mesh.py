"""The devices of a run: all of this machine, unless the options say otherwise."""

import jax
from jax.sharding import AxisType

from ..dpsgd.devices import Layout, fsdp_rule
from .config import MeshConfig


def make_layout(config: MeshConfig) -> Layout | None:
    """How a step is shared out to this machine's devices; None if there is one.

    Raises:
      ValueError: if the options ask for more devices than there are, or leave some out.
    """
    if jax.process_count() > 1:
        raise ValueError(
            f"JAX runs in {jax.process_count()} processes, and a run of jaxdp is in one: start one "
            "process, with all devices of a machine"
        )
    count = jax.local_device_count()
    data = count // config.fsdp if config.data == -1 else config.data
    if data * config.fsdp != count:
        asked = "the devices that are left" if config.data == -1 else str(config.data)
        raise ValueError(
            f"mesh.data is {asked} and mesh.fsdp is {config.fsdp}, and JAX has {count} devices: "
            "their product must be that number (CUDA_VISIBLE_DEVICES chooses among GPUs)"
        )
    if count == 1:
        return None
    mesh = jax.make_mesh((data, config.fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    return Layout(mesh, ("data", "fsdp"), fsdp_rule("fsdp", config.fsdp))


def describe(layout: Layout) -> str:
    """A line for the console."""
    shape = layout.mesh.shape
    line = f"{layout.parts} devices share the records of each step"
    return line + (f", and {shape['fsdp']} the parameters." if shape["fsdp"] > 1 else ".")
