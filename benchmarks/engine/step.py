"""Measures whole steps beside those with normal noise: `python -m benchmarks.engine.step`.

A step is the gradient of a batch, the release, and Adam, in one compiled program that takes over
the memory of parameters and state. The private step clips and adds jaxdp's noise; beside it, the
same with `std·jax.random.normal` for noise; the plain one takes the gradient of the mean loss.
`python -m benchmarks.engine` measures the steps of all methods.
"""

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxdp

from ..hardware import hardware
from .measuring import step_run
from .methods import CLIPPING_NORM, NOISE_MULTIPLIER, available, of_jaxdp, privatized
from .problems import PROBLEMS, Problem
from .timing import ratio, take_turns

DEFAULT = ("small_cnn", "mlp_wide", "transformer_d256_t64", "vit_d256")


def _normal_release(problem: Problem) -> optax.GradientTransformation:
    std = CLIPPING_NORM * NOISE_MULTIPLIER / problem.rows
    noise = _normal_noise(std, jaxdp.secret_key())
    return optax.chain(privatized(problem, 0.0), noise)


def _normal_noise(std: float, key: jax.Array) -> optax.GradientTransformation:
    """Adds Gaussian noise in float32, as other libraries do."""

    def update(updates: Any, state: jax.Array, params: Any = None) -> tuple[Any, jax.Array]:
        del params
        leaves, structure = jax.tree.flatten(updates)
        keys = jax.random.split(jax.random.fold_in(key, state), len(leaves))
        noised = [
            leaf + std * jax.random.normal(k, leaf.shape)
            for k, leaf in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, noised), state + 1

    return optax.GradientTransformation(lambda params: jnp.int32(0), update)


def measure(problem: Problem, rounds: int) -> dict[str, list[float]]:
    """Seconds of every step, which take turns."""
    methods = {
        "plain": available()["plain"],
        "jaxdp": of_jaxdp("auto"),
        "normal": of_jaxdp("auto", _normal_release),
    }
    runs = {name: step_run(problem, method)[1] for name, method in methods.items()}
    return take_turns(runs, rounds)


def line(name: str, times: dict[str, list[float]]) -> str:
    """Returns a row of the table: milliseconds, and medians over the rounds of ratios to plain."""
    ms = {kind: statistics.median(each) * 1e3 for kind, each in times.items()}
    return (
        f"| {name} | {ms['plain']:.1f} | {ms['jaxdp']:.1f} | {ms['normal']:.1f} "
        f"| {ratio(times, 'jaxdp', 'plain'):.2f} | {ratio(times, 'normal', 'plain'):.2f} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", help="one problem, or several with commas between")
    args = parser.parse_args(arguments)
    names = args.only.split(",") if args.only else DEFAULT
    if unknown := [name for name in names if name not in PROBLEMS]:
        parser.error(f"unknown: {unknown}; choose from {list(PROBLEMS)}")
    print(f"{hardware()}, JAX {jax.__version__}, {args.rounds} rounds\n")
    print("| step of | plain, ms | jaxdp, ms | normal, ms | jaxdp / plain | normal / plain |")
    print("|---|---|---|---|---|---|")
    for name in names:
        print(line(name, measure(PROBLEMS[name](), args.rounds)), flush=True)
        jax.clear_caches()


if __name__ == "__main__":
    main()
