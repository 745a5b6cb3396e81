"""Compiles programs, and times those that take turns."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

Run = Callable[[], Any]  # returns when its results are there


@dataclass(frozen=True)
class Program:
    """A compiled function. `temp_mb` and `needed_gb` are None where the device does not say."""

    compiled: Any
    compile_s: float  # tracing counts
    temp_mb: float | None
    needed_gb: float | None  # temporary memory, arguments and results

    @property
    def facts(self) -> dict[str, float | None]:
        return {"compile_s": self.compile_s, "temp_mb": self.temp_mb}


def compile_program(
    function: Callable[..., Any], *args: Any, donated: tuple[int, ...] = ()
) -> Program:
    """Compiles `function(*args)`, which takes over the memory of the `donated` arguments."""
    start = time.perf_counter()
    compiled = jax.jit(function, donate_argnums=donated).lower(*args).compile()
    compile_s = time.perf_counter() - start
    memory = compiled.memory_analysis()
    if memory is None:
        return Program(compiled, compile_s, None, None)
    needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    needed += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Program(compiled, compile_s, memory.temp_size_in_bytes / 1e6, needed / 1e9)


def machine_gb() -> float:
    """Returns the memory of the device; for a CPU that of the machine."""
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    return (limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / 1e9


def take_turns(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Times the runs, which take turns: other work on the machine slows all of them alike.

    Returns:
      The seconds of every run, one for each round.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            run()  # not timed: after one that took and gave back gigabytes, the next would pay
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times


def ratio(times: dict[str, list[float]], name: str, base: str) -> float:
    """Returns the median over the rounds of one run's time over another's."""
    return statistics.median(a / b for a, b in zip(times[name], times[base], strict=True))


def summary(times: dict[str, list[float]], name: str) -> dict[str, Any]:
    """Returns the median in milliseconds, the quartiles, and the ratio to "plain"."""
    low, median, high = (float(q) for q in np.quantile(times[name], [0.25, 0.5, 0.75]) * 1e3)
    return {"ms": median, "ms_quartiles": [low, high], "ratio": ratio(times, name, "plain")}
