"""Measures the release of a step: `python -m benchmarks.engine.noise`.

The release (scale to the grid, add noise, divide, cast) against `sum + std·jax.random.normal`, then
divide and cast, for few and many leaves. Both take turns in one process.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdp import secret_key
from jaxdp.dpsgd.keys import secret_noise_key
from jaxdp.dpsgd.noise import noise_adder

from ..hardware import hardware

DIVISOR = 256.0
Release = Callable[[jax.Array, jax.Array, list, list], list]

# Numbers in all, and in how many leaves.
SIZES = (
    (10_000, 1),
    (10_000, 20),
    (100_000, 1),
    (100_000, 20),
    (1_000_000, 1),
    (1_000_000, 50),
    (16_777_216, 4),
    (16_777_216, 100),
)


def on_the_grid(key: jax.Array, step: jax.Array, stds: list, sums: list) -> list:
    """Returns the mean gradient as `privatize` releases it."""
    noised = noise_adder(22)(jax.random.key_data(key), step, stds, sums)
    return [(leaf / DIVISOR).astype(jnp.float32) for leaf in noised]


def as_usual(key: jax.Array, step: jax.Array, stds: list, sums: list) -> list:
    """Returns the same with Gaussian noise in float32."""
    keys = jax.random.split(jax.random.fold_in(key, step), len(sums))
    return [
        ((leaf + std * jax.random.normal(k, leaf.shape, leaf.dtype)) / DIVISOR).astype(jnp.float32)
        for k, std, leaf in zip(keys, stds, sums, strict=True)
    ]


def measure(numbers: int, leaves: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Measures both releases of `numbers` numbers in `leaves` leaves.

    Returns:
      For "exact" and "normal": `ms` (the median), `compile_s` and `temp_mb` (None where the device
      does not say). For "exact" also `ratio`, the median over the rounds of its time over that of
      the other.
    """
    sums = [jnp.linspace(-1.0, 1.0, numbers // leaves) for _ in range(leaves)]
    stds = [jnp.float32(1.5)] * leaves
    releases: dict[str, tuple[Release, jax.Array]] = {
        "exact": (on_the_grid, secret_noise_key()),
        "normal": (as_usual, secret_key()),
    }
    runs, results = {}, {}
    for name, (release, key) in releases.items():
        args = (key, jnp.int32(3), stds, sums)
        start = time.perf_counter()
        compiled = jax.jit(release).lower(*args).compile()
        memory = compiled.memory_analysis()
        results[name] = {
            "compile_s": time.perf_counter() - start,
            "temp_mb": memory.temp_size_in_bytes / 1e6 if memory else None,
        }
        jax.block_until_ready(compiled(*args))
        runs[name] = (compiled, args)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, (compiled, args) in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(compiled(*args))
            times[name].append(time.perf_counter() - start)
    for name, each in times.items():
        results[name]["ms"] = statistics.median(each) * 1e3
    results["exact"]["ratio"] = statistics.median(
        [a / b for a, b in zip(times["exact"], times["normal"], strict=True)]
    )
    return results


def line(numbers: int, leaves: int, results: dict[str, dict[str, Any]]) -> str:
    """Returns a row of the table."""
    exact, normal = results["exact"], results["normal"]
    temp = lambda r: "-" if r["temp_mb"] is None else f"{r['temp_mb']:.1f}"
    return (
        f"| {numbers:,} | {leaves} | {exact['ms']:.2f} | {normal['ms']:.2f} | {exact['ratio']:.2f} "
        f"| {exact['compile_s']:.2f} | {normal['compile_s']:.2f} | {temp(exact)} | {temp(normal)} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--largest", type=int, default=16_777_216, help="most numbers to measure")
    args = parser.parse_args()
    print(f"{hardware()}, JAX {jax.__version__}, {args.rounds} rounds\n")
    print(
        "| numbers | leaves | exact, ms | normal, ms | ratio | exact, compile s "
        "| normal, compile s | exact, temp MB | normal, temp MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for numbers, leaves in SIZES:
        if numbers <= args.largest:
            print(line(numbers, leaves, measure(numbers, leaves, args.rounds)), flush=True)


if __name__ == "__main__":
    main()
