"""Counts the matrix work of private steps beside plain ones, on platforms that need not be here.

python -m benchmarks.lowered [--suite quick|full|long] [--platforms cpu cuda tpu]
    [--compute-dtype bfloat16] [--precision highest] [--kinds]

Every step is lowered for a platform, and not compiled. What is counted are its matrix products and
convolutions: additions and multiplications, times the trips of the loops around them, times the
passes that a platform takes for their operands' type and precision (`platforms.py`). A table has a
row for each problem of `python -m benchmarks.engine`: how many products the text of the two steps
has, how many of the private ones are asked for at HIGHEST precision, and the ratio of the work.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp

from jaxdp.types import ComputeDtype, MatrixPrecision

from ..engine.methods import available
from ..engine.problems import PROBLEMS, SUITES, Problem
from .counting import Work, weighted, work
from .platforms import PLATFORMS, passes, traced_for


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=SUITES, default="quick")
    parser.add_argument("--only", nargs="+", choices=PROBLEMS, help="these problems instead")
    parser.add_argument("--platforms", nargs="+", choices=PLATFORMS, default=PLATFORMS)
    parser.add_argument("--compute-dtype", choices=get_args(ComputeDtype), default="float32")
    parser.add_argument(
        "--precision",
        choices=get_args(MatrixPrecision),
        default="default",
        help="of norms and sums",
    )
    parser.add_argument("--kinds", action="store_true", help="also print the work by kind")
    options = parser.parse_args(arguments)
    print(
        f"JAX {jax.__version__}, models in {options.compute_dtype}. "
        "Ratios of matrix work, private / plain"
    )
    head = [f"{'problem':30s} products (at HIGHEST)", *(f"{p:>6s}" for p in options.platforms)]
    print(" ".join(head))
    for name in options.only or SUITES[options.suite]:
        problem = computing_in(options.compute_dtype, PROBLEMS[name]())
        try:
            counted = {
                method: dict(lowered_work(problem, method, options.platforms, options.precision))
                for method in ("plain", "auto")
            }
        except TypeError:
            if options.compute_dtype == "float32":
                raise
            print(f"{name:30s} not: the model mixes types of its own", flush=True)
            continue
        print(row(name, counted["plain"], counted["auto"]), flush=True)
        if options.kinds:
            print("\n".join(kinds(counted["plain"], counted["auto"])))
        jax.clear_caches()


def computing_in(dtype: ComputeDtype, problem: Problem) -> Problem:
    """Returns the problem with parameters and inputs that are rounded to a type in the loss."""
    wide = lambda leaf: leaf.dtype == jnp.float32
    narrow = lambda tree: jax.tree.map(lambda x: x.astype(dtype) if wide(x) else x, tree)
    loss = lambda params, *example: problem.loss(narrow(params), *narrow(example))
    return replace(problem, loss=loss)


def lowered_work(
    problem: Problem,
    method: str,
    platforms: Sequence[str],
    precision: MatrixPrecision = "default",
) -> Iterator[tuple[str, Work]]:
    """Yields the work of a step for each platform."""
    microbatches = problem.rows // (problem.microbatch_size or problem.rows)
    for platform in platforms:
        with traced_for("cpu" if precision == "highest" else platform):
            step, state = available()[method].step(problem)
            traced = jax.jit(step).trace(problem.params, state, problem.batch)
        module = traced.lower(lowering_platforms=(platform,)).compiler_ir("stablehlo")
        yield platform, work(module, partial(passes, platform), microbatches)


def row(name: str, plain: dict[str, Work], private: dict[str, Work]) -> str:
    """Returns a line of the table."""
    *_, one = private.values()
    *_, other = plain.values()
    exact = sum(n for kind, n in one.calls.items() if kind.precision == "HIGHEST")
    cells = f"{other.calls.total():4d} and {one.calls.total():4d} ({exact:4d})"
    return " ".join([f"{name:30s} {cells:>22s}", *(f"{r:6.2f}" for r in ratios(plain, private))])


def ratios(plain: dict[str, Work], private: dict[str, Work]) -> list[float]:
    """Returns the private work over the plain one, of each platform."""
    return [
        weighted(private[platform].flops, partial(passes, platform))
        / weighted(plain[platform].flops, partial(passes, platform))
        for platform in plain
    ]


def kinds(plain: dict[str, Work], private: dict[str, Work]) -> Iterator[str]:
    """Yields a line for each kind of operation on each platform: what the two steps take."""
    for platform in plain:
        ours, theirs = private[platform].flops, plain[platform].flops
        for kind in sorted(Counter(ours) | Counter(theirs)):
            types = "x".join(dict.fromkeys(kind.types))
            yield (
                f"  {platform:5s} {kind.operation:14s} {types:8s} {kind.precision:8s} "
                f"{theirs[kind] / 1e9:8.2f} and {ours[kind] / 1e9:8.2f} GFLOP, "
                f"{passes(platform, kind):g} passes"
            )


if __name__ == "__main__":
    main()
