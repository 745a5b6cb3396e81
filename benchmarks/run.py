"""Measures private gradients against plain ones: `python -m benchmarks.run --suite quick|full`.

What is timed is a whole clipped gradient (norms, clipping, weighted sum; no noise) against
`jax.grad` of the mean loss. Methods take turns within one process; medians over the rounds are
compared, so that a busy machine disturbs all alike. A method's time counts only if its clipped
gradient agrees with that of vmap(grad).
"""

import argparse
import datetime
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxdp

from .problems import PROBLEMS, SUITES, Problem

CLIPPING_NORM = 1.0
AGREEMENT = 1e-4  # of clipped sums, relative
Method = Callable[[Any, tuple], Any]


def plain(problem: Problem) -> Method:
    def mean_loss(params: Any, batch: tuple) -> jax.Array:
        return jnp.mean(jax.vmap(problem.loss, (None, 0, 0))(params, *batch))

    m = problem.microbatch_size
    if m is None:
        return jax.grad(mean_loss)

    def gradient(params: Any, batch: tuple) -> Any:
        parts = jax.tree.map(lambda leaf: leaf.reshape(-1, m, *leaf.shape[1:]), batch)
        add = lambda total, part: (
            jax.tree.map(jnp.add, total, jax.grad(mean_loss)(params, part)),
            None,
        )
        total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts)
        return jax.tree.map(lambda leaf: leaf * m / len(batch[0]), total)

    return gradient


def plain_default(problem: Problem) -> Method:
    """At the device's own precision, which on GPUs is TF32: what users of plain training get."""
    gradient = plain(problem)

    def at_default(params: Any, batch: tuple) -> Any:
        with jax.default_matmul_precision("default"):
            return gradient(params, batch)

    return at_default


def private(method: Any) -> Callable[[Problem], Method]:
    def build(problem: Problem) -> Method:
        clipping = jaxdp.clip_individual(CLIPPING_NORM)
        grads = jaxdp.per_example_grads(
            problem.loss, method=method, microbatch_size=problem.microbatch_size
        )

        def gradient(params: Any, batch: tuple) -> Any:
            return clipping.update(grads(params, batch), clipping.init(params))[0]

        return gradient

    return build


def optax_contrib(problem: Problem) -> Method:
    aggregate = optax.contrib.differentially_private_aggregate(CLIPPING_NORM, 0.0, 0)

    def gradient(params: Any, batch: tuple) -> Any:
        grads = jax.vmap(jax.grad(problem.loss), (None, 0, 0))(params, *batch)
        return aggregate.update(grads, aggregate.init(params), params)[0]  # a mean

    return gradient


def jax_privacy(problem: Problem) -> Method:
    import jax_privacy  # only where it is installed

    clipped = jax_privacy.clipped_grad(
        problem.loss,
        l2_clip_norm=CLIPPING_NORM,
        batch_argnums=(1, 2),
        keep_batch_dim=False,
        microbatch_size=problem.microbatch_size,
    )

    def gradient(params: Any, batch: tuple) -> Any:
        return clipped(params, *batch)

    return gradient


FACTORED = ("auto", "factored")
METHODS: dict[str, Callable[[Problem], Method]] = {
    "plain": plain,
    "auto": private("auto"),
    "factored": private("factored"),
    "vmap": private("vmap"),
    "optax.contrib": optax_contrib,
}
if importlib.util.find_spec("jax_privacy") is not None:
    METHODS["jax_privacy"] = jax_privacy


def measure(problem: Problem, methods: list[str], repetitions: int) -> dict[str, dict[str, Any]]:
    """Time, memory and compile time of every method on one problem."""
    runs, results = {}, {}
    exact = problem if problem.dense_fits else replace(problem, microbatch_size=8)
    reference = jax.jit(METHODS["vmap"](exact))(problem.params, problem.batch)
    if not problem.dense_fits:
        methods = [name for name in methods if name.startswith("plain") or name in FACTORED]
    for name in methods:
        start = time.perf_counter()
        compiled = jax.jit(METHODS[name](problem)).lower(problem.params, problem.batch).compile()
        compile_s = time.perf_counter() - start
        gradient = jax.block_until_ready(compiled(problem.params, problem.batch))
        # The plain gradient is no clipped one: only the others can agree.
        error = 0.0 if name.startswith("plain") else _distance(gradient, reference)
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
    for _ in range(repetitions):
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


def _distance(a: Any, b: Any) -> float:
    """Relative, but for a factor: some methods return sums, some means."""
    a, b = (jax.tree.map(lambda leaf: leaf / optax.tree.norm(tree), tree) for tree in (a, b))
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, a, b))
    return float(difference)


def show(name: str, results: dict[str, dict[str, Any]]) -> None:
    base = results["plain"]
    print(f"\n{name}")
    print(
        "  method           ms  (quartiles)        × plain   temp MB  × plain   compile s  × plain"
    )
    for method, r in results.items():
        if "ms" not in r:
            continue
        low, high = r["ms_quartiles"]
        print(
            f"  {method:14s} {r['ms']:7.1f}  ({low:7.1f} {high:7.1f})   {r['ratio']:7.2f}   "
            f"{r['temp_mb']:7.1f}  {r['temp_mb'] / max(base['temp_mb'], 1e-9):7.2f}   "
            f"{r['compile_s']:9.2f}  {r['compile_s'] / base['compile_s']:7.2f}"
        )
    sys.stdout.flush()


def hardware() -> str:
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    info = pathlib.Path("/proc/cpuinfo")
    names = []
    if info.exists():
        names = [line.split(":")[1] for line in info.open() if line.startswith("model name")]
    name = names[0].strip() if names else platform.processor() or platform.machine()
    return f"{name} {len(names)} cores" if names else name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--suite", choices=SUITES, default="quick")
    parser.add_argument("--only", help="one problem, or several with commas between")
    parser.add_argument("--methods", help="with commas between; default all")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--date", default=datetime.date.today().isoformat())
    parser.add_argument("--no-write", action="store_true", help="print only")
    args = parser.parse_args()
    if jax.default_backend() != "cpu":
        METHODS["plain_default"] = plain_default
    names = args.only.split(",") if args.only else SUITES[args.suite]
    methods = args.methods.split(",") if args.methods else list(METHODS)
    if unknown := [n for n in names if n not in PROBLEMS] + [
        m for m in methods if m not in METHODS
    ]:
        parser.error(f"unknown: {unknown}; choose from {list(PROBLEMS)} and {list(METHODS)}")
    machine = hardware()
    print(f"{machine}, JAX {jax.__version__}, Python {platform.python_version()}")
    # Equal precision for plain and private; on GPUs the default would be TF32 for plain alone, so
    # that is measured beside it.
    jax.config.update("jax_default_matmul_precision", "highest")
    stem = "-".join(machine.lower().replace("/", " ").split())
    stem += f"-jax{jax.__version__}-{args.date}"
    path = pathlib.Path(__file__).parent / "results" / f"{stem}.json"
    report: dict[str, Any] = {"hardware": machine, "jax": jax.__version__, "date": args.date}
    report["problems"] = json.loads(path.read_text())["problems"] if path.exists() else {}
    for name in names:
        results = measure(PROBLEMS[name](), methods, max(7, args.repetitions))
        show(name, results)
        report["problems"][name] = {"load": os.getloadavg()[0], "methods": results}
        jax.clear_caches()
        if not args.no_write:  # after every problem: a long run may be cut off
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
