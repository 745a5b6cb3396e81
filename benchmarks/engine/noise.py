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
from jaxdp.dpsgd.noise import noise_adder

from ..hardware import hardware

DIVISOR = 256.0
Release = Callable[[jax.Array, jax.Array, list, list], list]

# Numbers in all, in how many leaves, and whether these have one shape or a shape each.
SIZES = (
    (10_000, 1, True),
    (10_000, 20, True),
    (100_000, 1, True),
    (100_000, 20, True),
    (1_000_000, 1, True),
    (1_000_000, 50, True),
    (16_777_216, 4, True),
    (16_777_216, 100, True),
    (16_777_216, 100, False),
)


def on_the_grid(key: jax.Array, step: jax.Array, stds: list, sums: list) -> list:
    """Returns the mean gradient as `privatize` releases it."""
    dtypes = tuple(leaf.dtype for leaf in sums)
    return noise_adder(22, DIVISOR, dtypes)(jax.random.key_data(key), step, stds, sums)


def as_usual(key: jax.Array, step: jax.Array, stds: list, sums: list) -> list:
    """Returns the same with Gaussian noise in float32."""
    keys = jax.random.split(jax.random.fold_in(key, step), len(sums))
    return [
        ((leaf + std * jax.random.normal(k, leaf.shape, leaf.dtype)) / DIVISOR).astype(jnp.float32)
        for k, std, leaf in zip(keys, stds, sums, strict=True)
    ]


def measure(numbers: int, leaves: int, one_shape: bool, rounds: int) -> dict[str, dict[str, Any]]:
    """Measures both releases of `numbers` numbers in `leaves` leaves.

    Returns:
      For "jaxdp" and "normal": `ms` (the median), `compile_s` and `temp_mb` (None where the device
      does not say). For "jaxdp" also `ratio`, the median over the rounds of its time over that of
      the other.
    """
    each = numbers // leaves
    sizes = [each if one_shape else each + 8 * (i - leaves // 2) for i in range(leaves)]
    sums = [jnp.linspace(-1.0, 1.0, size) for size in sizes]
    stds = [jnp.float32(1.5)] * leaves
    releases: dict[str, tuple[Release, jax.Array]] = {
        "jaxdp": (on_the_grid, secret_key()),
        "normal": (as_usual, jax.random.key(0)),
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
    for name, measured in times.items():
        results[name]["ms"] = statistics.median(measured) * 1e3
    results["jaxdp"]["ratio"] = statistics.median(
        [a / b for a, b in zip(times["jaxdp"], times["normal"], strict=True)]
    )
    return results


def line(numbers: int, leaves: int, one_shape: bool, results: dict[str, dict[str, Any]]) -> str:
    """Returns a row of the table."""
    own, normal = results["jaxdp"], results["normal"]
    temp = lambda r: "-" if r["temp_mb"] is None else f"{r['temp_mb']:.1f}"
    return (
        f"| {numbers:,} | {leaves} | {'one' if one_shape else leaves} "
        f"| {own['ms']:.2f} | {normal['ms']:.2f} | {own['ratio']:.2f} "
        f"| {own['compile_s']:.2f} | {normal['compile_s']:.2f} | {temp(own)} | {temp(normal)} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--largest", type=int, default=16_777_216, help="most numbers to measure")
    args = parser.parse_args()
    print(f"{hardware()}, JAX {jax.__version__}, {args.rounds} rounds\n")
    print(
        "| numbers | leaves | shapes | jaxdp, ms | normal, ms | ratio | jaxdp, compile s "
        "| normal, compile s | jaxdp, temp MB | normal, temp MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for size in SIZES:
        if size[0] <= args.largest:
            print(line(*size, measure(*size, args.rounds)), flush=True)


if __name__ == "__main__":
    main()
