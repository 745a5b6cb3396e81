"""Counts what each of 1, 2, 4 and 8 devices does, holds and sends in a private step.

python -m benchmarks.scaling [--only NAME ...]

The devices are parts of one CPU, so nothing is timed. The step is compiled by XLA, and counted in
its program: floating-point operations, the memory of arguments and of temporary arrays, and the
numbers that operations between devices give each of them, in float32. "data": every device has the
parameters. "fsdp": each has a part of every large one, and of the optimizer's state. "model": each
has such parts, and all have the same records and share the products. The batch is the same for any
number of devices.
"""

import argparse
import os

if __name__ == "__main__":  # before JAX looks for devices
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    os.environ["JAX_PLATFORMS"] = "cpu"

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import AxisType

import jaxdp

from ..engine.problems import PROBLEMS, Problem
from .collectives import collectives

COUNTS = (1, 2, 4, 8)
CHOSEN = ("mlp_wide", "transformer_d256_t64")


class Counted(NamedTuple):
    """Of one device: operations, bytes held before a step and besides, and bytes it is sent."""

    operations: float
    arguments: int
    temporary: int
    sent: int


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PROBLEMS, default=CHOSEN)
    options = parser.parse_args(arguments)
    print(f"JAX {jax.__version__}. Each device, and its share of what one does and holds alone:")
    print(
        f"{'problem':22s} {'layout':>8s}    Gflop        arguments, MB    temporary, MB  sent, MB"
    )
    for name in options.only:
        problem = PROBLEMS[name]()
        alone = counted(problem, layout_of("data", 1))
        print(row(name, "1", alone, alone))
        for kind in ("data", "fsdp", "model"):
            for count in COUNTS[1:]:
                print(row(name, f"{kind} {count}", counted(problem, layout_of(kind, count)), alone))


def layout_of(kind: str, count: int) -> jaxdp.Layout:
    """Returns a layout of so many devices."""
    devices = jax.devices()[:count]
    axes = {"data": 1, kind: count}
    mesh = jax.make_mesh(
        tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes), devices=devices
    )
    rows = ("data",) if kind == "model" else (kind,)
    return jaxdp.Layout(mesh, rows, None if kind == "data" else jaxdp.fsdp_rule(kind, count))


def counted(problem: Problem, layout: jaxdp.Layout) -> Counted:
    """Counts a step of Adam on a problem's batch."""
    plan = jaxdp.Plan(
        num_examples=100_000,
        expected_batch_size=problem.rows,
        steps=100,
        clipping=jaxdp.clip_individual(1.0),
        noise_multiplier=1.0,
        delta=1e-6,
    )
    privatizer, optimizer = jaxdp.privatize(plan, key=jax.random.key(0)), optax.adam(1e-3)
    sums = layout.sums(privatizer, jaxdp.per_example_grads(problem.loss))

    def step(params: Any, state: tuple, batch: Any, mask: jax.Array) -> tuple:
        private, moments = state
        found = sums(params, batch, mask, private)
        mean, private = privatizer.release(found, private, params)
        updates, moments = optimizer.update(mean, moments, params)
        return optax.apply_updates(params, updates), (private, moments)

    params = layout.place(problem.params)
    state = layout.spread((privatizer.init(params), optimizer.init(params)))
    batch, mask = layout.deal(problem.batch, np.ones(problem.rows, bool))
    jitted = jax.jit(step, donate_argnums=(0, 1))
    program = jitted.lower(params, state, batch, mask).compile()
    memory, found = program.memory_analysis(), collectives(program.as_text())
    return Counted(
        operations=float(program.cost_analysis()["flops"]),
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        sent=4 * sum(each.numbers for each in found) if layout.mesh.size > 1 else 0,
    )


def row(name: str, layout: str, own: Counted, alone: Counted) -> str:
    """Returns a line of the table."""
    share = lambda x, of, unit: f"{x / unit:9.2f} ({x / of:4.2f})"
    return (
        f"{name:22s} {layout:>7s} {share(own.operations, alone.operations, 1e9)}"
        f"{share(own.arguments, alone.arguments, 1e6)}"
        f"{share(own.temporary, alone.temporary, 1e6)}{own.sent / 1e6:10.2f}"
    )


if __name__ == "__main__":
    main()
