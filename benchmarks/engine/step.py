"""Measures whole training steps: `python -m benchmarks.engine.step`.

A step is the gradient of a batch, the release, and Adam, in one compiled program that takes over
the memory of parameters and state. The private step clips and adds jaxdp's noise; beside it, the
same with `std·jax.random.normal` for noise; the plain one takes the gradient of the mean loss.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxdp

from ..hardware import hardware
from .problems import PROBLEMS, Problem

DEFAULT = ("small_cnn", "mlp_wide", "transformer_d256_t64", "vit_d256")
Step = Callable[[Any, Any], tuple[Any, Any]]


def steps_of(problem: Problem) -> dict[str, tuple[Step, Any]]:
    """The three steps `(params, state) -> (params, state)`, each with its first state."""
    rows = len(problem.batch[0])

    def clipped(noise_multiplier: float) -> Any:
        plan = jaxdp.Plan(
            num_examples=100 * rows,
            expected_batch_size=rows,
            steps=1000,  # more than are measured
            noise_multiplier=noise_multiplier,
            clipping=jaxdp.clip_individual(1.0),
        )
        return jaxdp.privatize(plan)

    grads = jaxdp.per_example_grads(problem.loss, microbatch_size=problem.microbatch_size)
    plain = optax.adam(1e-3)
    private = optax.chain(clipped(1.0), plain)
    usual = optax.chain(clipped(0.0), _normal_noise(1.0 / rows, jaxdp.secret_key()), plain)

    def mean_loss(params: Any) -> jax.Array:
        return jnp.mean(jax.vmap(problem.loss, (None, 0, 0))(params, *problem.batch))

    def step(optimizer: Any, gradient: Callable[[Any], Any]) -> tuple[Step, Any]:
        def run(params: Any, state: Any) -> tuple[Any, Any]:
            updates, state = optimizer.update(gradient(params), state, params)
            return optax.apply_updates(params, updates), state

        return run, optimizer.init(problem.params)

    lazily = lambda params: grads(params, problem.batch, jaxdp.all_rows(rows))
    return {
        "plain": step(plain, jax.grad(mean_loss)),
        "jaxdp": step(private, lazily),
        "normal": step(usual, lazily),
    }


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
    """Seconds of every step, which take turns; the first turn is not counted."""
    runs = {}
    for name, (step, state) in steps_of(problem).items():
        params = jax.tree.map(jnp.copy, problem.params)
        compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state).compile()
        runs[name] = (compiled, params, state)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, (compiled, params, state) in runs.items():
            start = time.perf_counter()
            params, state = jax.block_until_ready(compiled(params, state))
            runs[name] = (compiled, params, state)
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def line(name: str, times: dict[str, list[float]]) -> str:
    """Returns a row of the table: milliseconds, and medians over the rounds of ratios to plain."""
    ms = {kind: statistics.median(each) * 1e3 for kind, each in times.items()}
    ratio = lambda kind: statistics.median(
        [own / plain for own, plain in zip(times[kind], times["plain"], strict=True)]
    )
    return (
        f"| {name} | {ms['plain']:.1f} | {ms['jaxdp']:.1f} | {ms['normal']:.1f} "
        f"| {ratio('jaxdp'):.2f} | {ratio('normal'):.2f} |"
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
