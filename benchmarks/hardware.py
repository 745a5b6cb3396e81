"""The name of the machine that a figure was measured on."""

import os
import platform

import jax

from jaxdp.trainer.device import processor


def hardware() -> str:
    """Returns the kind of the first device; for a CPU its model and its number of cores."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    return f"{processor() or platform.machine()} {os.cpu_count()} cores"
