"""Time, memory and compile time of the methods on one problem: the gradient and the step."""

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxdp

from .methods import Method, available, of_jaxdp
from .problems import Problem
from .timing import Program, Run, compile_program, machine_gb, summary, take_turns

NEEDS_NO_DENSE = ("plain", "plain_default", "auto", "factored", "two_pass", "layerwise")
SHARE = 0.8  # of the machine's memory that a program may take


class NotRun(Exception):
    """Says in a few words why a method is not timed."""


def measure(problem: Problem, names: list[str], rounds: int) -> dict[str, dict[str, Any]]:
    """Measures the named methods, "plain" among them; a round is one turn of each.

    Returns:
      For each method `compile_s`, `temp_mb` (None where the device does not say) and `error`, the
      distance of its gradient from that of vmap(grad); `ms` (the median), its `ms_quartiles`, and
      `ratio`, the median over the rounds of its time over that of "plain". `step` holds the same
      of the whole step, but for `error`. Where there are no times, `why` says the reason.

    Raises:
      Exception: whatever the plain gradient raises. For other methods that is a `why`.
    """
    methods = available()
    references: dict[jaxdp.Clipping, Any] = {}
    results: dict[str, dict[str, Any]] = {name: {} for name in names}
    gradients: dict[str, Run] = {}
    steps: dict[str, Run] = {}
    for name in names:
        facts = results[name]
        runs = problem.dense_fits or name in NEEDS_NO_DENSE
        try:
            expected = None
            if not name.startswith("plain"):  # which is not clipped: only the others can agree
                clipping = methods[name].clipping
                expected = references.get(clipping) or _reference(problem, clipping)
                references[clipping] = expected
            gradients[name] = _gradient(problem, methods[name], expected, runs, facts)
            facts["step"] = facts = {}
            steps[name] = _step(problem, methods[name], runs, facts)
        except Exception as error:  # a rival that fails must not stop the others
            if name == "plain":
                raise
            facts["why"] = reason(error)
    for name, times in _times(gradients, rounds).items():
        results[name] |= times
    for name, times in _times(steps, rounds).items():
        results[name]["step"] |= times
    return results


def _times(runs: dict[str, Run], rounds: int) -> dict[str, dict[str, Any]]:
    times = take_turns(runs, rounds)
    return {name: summary(times, name) for name in times}


def _reference(problem: Problem, clipping: jaxdp.Clipping) -> Any:
    """Returns the clipped sum by vmap(grad), of a few examples at a time if all would not fit."""
    if not problem.dense_fits:
        problem = replace(problem, microbatch_size=math.gcd(8, problem.rows))
    gradient = of_jaxdp("vmap", clipping=clipping).gradient(problem)
    return jax.jit(gradient)(problem.params, problem.batch)


def _gradient(
    problem: Problem, method: Method, expected: Any, runs: bool, facts: dict[str, Any]
) -> Run:
    """Compiles and checks the gradient, writes its `facts`, and returns its run."""
    args = (problem.params, problem.batch)
    program = compile_program(method.gradient(problem), *args)
    facts |= program.facts
    _refuse_too_large(program, runs)
    run = lambda: jax.block_until_ready(program.compiled(*args))
    gradient = run()
    facts["error"] = 0.0 if expected is None else distance(gradient, expected)
    if not facts["error"] <= problem.agreement:
        raise NotRun(f"disagrees with vmap(grad) by {facts['error']:.1e}")
    return run


def _step(problem: Problem, method: Method, runs: bool, facts: dict[str, Any]) -> Run:
    """Compiles the step, writes its `facts`, and returns its run, which goes on and on."""
    program, run = step_run(problem, method)
    facts |= program.facts
    _refuse_too_large(program, runs)
    run()
    return run


def step_run(problem: Problem, method: Method) -> tuple[Program, Run]:
    """Compiles the step of a method, which takes over the memory of parameters and state."""
    step, state = method.step(problem)
    params = jax.tree.map(jnp.copy, problem.params)  # those of the problem are read again
    program = compile_program(step, params, state, problem.batch, donated=(0, 1))
    now = [params, state]

    def run() -> None:
        now[:] = jax.block_until_ready(program.compiled(*now, problem.batch))

    return program, run


def _refuse_too_large(program: Program, runs: bool) -> None:
    if program.needed_gb is not None and (not runs or program.needed_gb > SHARE * machine_gb()):
        raise NotRun(f"needs {program.needed_gb:.0f} GB")


def reason(error: Exception) -> str:
    """Returns in a few words why a method was not timed."""
    if isinstance(error, NotRun):
        return str(error)
    if isinstance(error, ImportError):
        return f"can't be imported: {error}"
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"fails: {type(error).__name__}: {first}"[:120]


def distance(a: Any, b: Any) -> float:
    """Returns the relative distance of two gradients, each scaled to norm 1: some are means."""
    a, b = (jax.tree.map(lambda leaf: leaf / optax.tree.norm(tree), tree) for tree in (a, b))
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, a, b))
    return float(difference)
