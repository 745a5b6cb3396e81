"""Describes the device of a run, for people and for the fingerprint of a computation."""

import os
import platform
from pathlib import Path

import jax

from .._distribution import DISTRIBUTION

CPU_INFO = Path("/proc/cpuinfo")
MEMORY_INFO = Path("/proc/meminfo")

# Of a container, by both versions of cgroups: files with the most memory that it may take and with
# what it takes now, and the name of that part of it which is files in memory that nobody needs.
CONTAINERS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (
        Path("/sys/fs/cgroup/memory"),
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)

# Of this file, on x86 and on Arm.
PROCESSOR_FACTS = (
    *("vendor_id", "cpu family", "model", "stepping", "cache size", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features"),
)


def check_device() -> None:
    """Finds JAX's devices.

    Raises:
      ValueError: in one line, if JAX has none, as with JAX_PLATFORMS=cuda where there is no GPU.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        reason = str(error).partition("\n")[0] or "none is installed"
        raise ValueError(
            f"JAX_PLATFORMS is {asked!r}, and JAX finds no such device ({reason}): unset it, or "
            f"set it to cpu; for a GPU install '{DISTRIBUTION}[cuda13]'"
        ) from None


def describe_device() -> str:
    """Kind and number of the devices. For a CPU also its model: it decides the order of sums."""
    device, count = jax.devices()[0], jax.device_count()
    if device.platform != "cpu":
        return f"{count} x {device.device_kind}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    divided = f", as {count} devices" if count > 1 else ""
    return f"CPU with {cores} cores ({platform.machine()} {processor()}){divided}"


def describe_processor() -> str | None:
    """All that decides the instructions and the blocks of a CPU's programs; None on other devices.

    The names of virtual CPUs, such as "AMD EPYC", say too little.
    """
    if jax.devices()[0].platform != "cpu" or not CPU_INFO.exists():
        return None
    first = CPU_INFO.read_text().partition("\n\n")[0]
    parts = [line.partition(":") for line in first.splitlines()]
    facts = {name.strip(): value.strip() for name, _, value in parts}
    return "; ".join(facts[name] for name in PROCESSOR_FACTS if name in facts)


def free_memory() -> int | None:
    """The bytes that are free: on the first device, or for a CPU on the machine; None: not known.

    In a container with a limit of its own, that counts.
    """
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        limit = stats.get("bytes_limit")
        return None if limit is None else int(limit) - int(stats.get("bytes_in_use", 0))
    if not MEMORY_INFO.exists():
        return None
    facts = dict(line.split(":", 1) for line in MEMORY_INFO.read_text().splitlines())
    free = [int(facts["MemAvailable"].split()[0]) * 1024]
    for folder, most, taken, unused in CONTAINERS:
        if (folder / most).exists() and (allowed := (folder / most).read_text().strip()) != "max":
            parts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            needed = int((folder / taken).read_text()) - int(parts.get(unused, 0))
            free.append(int(allowed) - needed)
    return max(0, min(free))


def processor() -> str:
    """The model of the CPU."""
    if CPU_INFO.exists():
        for line in CPU_INFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
