"""Measures the time that a clipping takes: `python -m benchmarks.engine.clipping_cost`.

Layerwise clipping against one norm for the whole gradient ("flat"), and batch clipping with one
unit against the plain gradient of the mean loss. The methods take turns in one process; the medians
of the rounds' ratios are printed.
"""

import argparse
from typing import Any

import jax

import jaxdp

from ..hardware import hardware
from .methods import Gradient, mean_gradient
from .problems import PROBLEMS, Problem
from .timing import Run, compile_program, ratio, take_turns

PAIRS = {"layerwise": "flat", "batch, one unit": "plain"}


def clipped(problem: Problem, clipping: jaxdp.Clipping) -> Gradient:
    """Returns the clipped sum; with batch units, the whole batch is one unit."""
    loss = problem.loss
    if clipping.unit == "batch":
        loss = jaxdp.mean_loss(loss, microbatch_size=problem.microbatch_size)
    grads = jaxdp.per_example_grads(
        loss,
        unit=clipping.unit,
        microbatch_size=problem.microbatch_size if clipping.unit == "example" else None,
    )

    def gradient(params: Any, batch: tuple) -> Any:
        if clipping.unit == "batch":
            batch = jax.tree.map(lambda leaf: leaf[None], batch)
        return clipping.update(grads(params, batch), clipping.init(params))[0]

    return gradient


def _run(gradient: Gradient, problem: Problem) -> Run:
    compiled = compile_program(gradient, problem.params, problem.batch).compiled
    return lambda: jax.block_until_ready(compiled(problem.params, problem.batch))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="small_cnn,transformer_d256_t64", help="commas between")
    parser.add_argument("--repetitions", type=int, default=15)
    args = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", "highest")
    print(f"{hardware()}, JAX {jax.__version__}, {args.repetitions} rounds")
    for name in args.only.split(","):
        problem = PROBLEMS[name]()
        methods = {
            "plain": mean_gradient(problem),
            "flat": clipped(problem, jaxdp.clip_individual(1.0)),
            "layerwise": clipped(problem, jaxdp.clip_layerwise(1.0)),
            "batch, one unit": clipped(problem, jaxdp.clip_batch(1.0)),
        }
        runs = {key: _run(method, problem) for key, method in methods.items()}
        times = take_turns(runs, args.repetitions)
        for key, base in PAIRS.items():
            took = ratio(times, key, base)
            print(f"{name}: {key} takes {took:.3f} times as long as {base}", flush=True)


if __name__ == "__main__":
    main()
