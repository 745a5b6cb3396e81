"""Measures how far norms are raised above the gradients, so that they are upper bounds.

python -m benchmarks.inflation [--suite quick|full|long] [--only NAME ...] [--rows N]

A gradient that is clipped is shorter by this factor. A table has a row for each problem of `python
-m benchmarks.engine`: the median and the 99th percentile over examples of its batch, with norms as
CPUs take them, and of factors in bfloat16, as TPUs and NVIDIA's GPUs do. The latter are computed on
this machine: their products are exact on any, and what tensor cores may add is in the norms.
"""

import argparse
from collections.abc import Sequence

import jax
import numpy as np

import jaxdp

from ..engine.problems import PROBLEMS, SUITES, Problem
from ..lowered.platforms import traced_for

PLATFORMS = {"CPU": "cpu", "accelerator": "tpu"}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=SUITES, default="quick")
    parser.add_argument("--only", nargs="+", choices=PROBLEMS, help="these problems instead")
    parser.add_argument("--rows", type=int, default=16, help="how many examples")
    options = parser.parse_args(arguments)
    print(f"Norm used / norm, {options.rows} examples: median, 99th percentile")
    print(" ".join([f"{'problem':30s}", *(f"{name:>17s}" for name in PLATFORMS)]))
    for name in options.only or SUITES[options.suite]:
        problem = PROBLEMS[name]()
        cells = [
            cell(inflation(problem, platform, options.rows)) for platform in PLATFORMS.values()
        ]
        print(" ".join([f"{name:30s}", *(f"{text:>17s}" for text in cells)]), flush=True)
        jax.clear_caches()


def inflation(problem: Problem, platform: str, rows: int) -> np.ndarray:
    """Returns norm used / norm of so many examples of a problem's batch."""
    batch = jax.tree.map(lambda x: x[:rows], problem.batch)
    grads = jaxdp.per_example_grads(problem.loss, microbatch_size=4)

    @jax.jit
    def look(params: object, batch: tuple) -> jax.Array:
        return grads(params, batch, jaxdp.all_rows(rows)).inflation()

    with traced_for(platform):
        return np.asarray(look(problem.params, batch))


def cell(factors: np.ndarray) -> str:
    return f"{np.median(factors):.4f}, {np.quantile(factors, 0.99):.4f}"


if __name__ == "__main__":
    main()
