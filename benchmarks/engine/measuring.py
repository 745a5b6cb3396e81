"""Time, memory and compile time of the methods on one problem."""

import statistics
import time
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import methods
from .problems import Problem

AGREEMENT = 1e-4  # of clipped sums, relative
NEEDS_NO_DENSE = ("plain", "plain_default", "auto", "factored")


def measure(problem: Problem, names: list[str], rounds: int) -> dict[str, dict[str, Any]]:
    """Measures the named methods, which take turns; a round is one turn of each.

    Returns:
      For each method `compile_s`, `temp_mb` (None where the device does not say) and `error`, the
      distance from the result of vmap(grad). If that is small also `ms` (the median), its
      `ms_quartiles`, and `ratio`, the median over the rounds of its time over that of "plain".
    """
    builders, runs, results = methods.available(), {}, {}
    exact = problem if problem.dense_fits else replace(problem, microbatch_size=8)
    reference = jax.jit(builders["vmap"](exact))(problem.params, problem.batch)
    if not problem.dense_fits:
        names = [name for name in names if name in NEEDS_NO_DENSE]
    for name in names:
        start = time.perf_counter()
        compiled = jax.jit(builders[name](problem)).lower(problem.params, problem.batch).compile()
        compile_s = time.perf_counter() - start
        gradient = jax.block_until_ready(compiled(problem.params, problem.batch))
        # The plain gradient is not clipped: only the others can agree.
        error = 0.0 if name.startswith("plain") else distance(gradient, reference)
        memory = compiled.memory_analysis()
        results[name] = {
            "compile_s": compile_s,
            "temp_mb": memory.temp_size_in_bytes / 1e6 if memory else None,
            "error": error,
        }
        if error > AGREEMENT:
            print(f"  {name} disagrees with vmap(grad) by {error:.1e}: not timed")
        else:
            runs[name] = compiled
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            # Not timed: after a method that took and gave back gigabytes, the next would pay.
            jax.block_until_ready(run(problem.params, problem.batch))
            start = time.perf_counter()
            jax.block_until_ready(run(problem.params, problem.batch))
            times[name].append(time.perf_counter() - start)
    for name, each in times.items():
        ratios = [t / p for t, p in zip(each, times["plain"], strict=True)]
        low, median, high = np.quantile(each, [0.25, 0.5, 0.75]) * 1e3
        results[name] |= {
            "ms": median,
            "ms_quartiles": [low, high],
            "ratio": statistics.median(ratios),
        }
    return results


def distance(a: Any, b: Any) -> float:
    """Returns the relative distance of two gradients, each scaled to norm 1: some are means."""
    a, b = (jax.tree.map(lambda leaf: leaf / optax.tree.norm(tree), tree) for tree in (a, b))
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, a, b))
    return float(difference)


def table(name: str, results: dict[str, dict[str, Any]]) -> str:
    """Returns the results of one problem as lines, a method each."""
    base = results["plain"]
    lines = [
        name,
        "  method           ms  (quartiles)        × plain   temp MB  × plain   compile s  × plain",
    ]
    for method, r in results.items():
        if "ms" not in r:
            continue
        low, high = r["ms_quartiles"]
        lines.append(
            f"  {method:14s} {r['ms']:7.1f}  ({low:7.1f} {high:7.1f})   {r['ratio']:7.2f}   "
            f"{r['temp_mb']:7.1f}  {r['temp_mb'] / max(base['temp_mb'], 1e-9):7.2f}   "
            f"{r['compile_s']:9.2f}  {r['compile_s'] / base['compile_s']:7.2f}"
        )
    return "\n".join(lines)
