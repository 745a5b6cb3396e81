"""The name of the machine that a figure was measured on."""

import pathlib
import platform

import jax


def hardware() -> str:
    """Returns the kind of the first device; for a CPU its model and its number of cores."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    info = pathlib.Path("/proc/cpuinfo")
    names = []
    if info.exists():
        lines = info.read_text().splitlines()
        names = [line.split(":")[1] for line in lines if line.startswith("model name")]
    name = names[0].strip() if names else platform.processor() or platform.machine()
    return f"{name} {len(names)} cores" if names else name
