"""Prints results as tables: `python -m benchmarks.engine.table FILE`, in Markdown.

FILE is one of `results/`. A table tells of the gradients, a second one of whole steps.
"""

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

COLUMNS = {
    "auto": "jaxdp",
    "two_pass": "two passes",
    "layerwise": "layerwise, one pass if it can",
    "vmap": "`vmap(grad)`",
    "jax_privacy": "JAX-Privacy",
}
NOT_MEASURED = "–"


def lines(name: str, results: dict[str, dict[str, Any]]) -> str:
    """Returns what was measured on one problem, a line for every method, as plain text."""
    head = "ms  (quartiles)        × plain   temp MB  × plain   compile s  × plain"
    told = [name]
    for what, facts in (("gradient", results), ("step", _steps(results))):
        told.append(f"  {what:16s} {head}")
        told += [f"  {method:14s} {_line(facts[method], facts['plain'])}" for method in facts]
    return "\n".join(told)


def _steps(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns the same of the steps; of methods whose gradient was not run there is none."""
    return {method: facts["step"] for method, facts in results.items() if "step" in facts}


def _line(facts: dict[str, Any], base: dict[str, Any]) -> str:
    if "why" in facts:
        return facts["why"]
    low, high = facts["ms_quartiles"]
    memory = times_memory(facts, base)
    temporary = "-" if memory is None else f"{facts['temp_mb']:.1f}  {memory:7.2f}"
    return (
        f"{facts['ms']:7.1f}  ({low:7.1f} {high:7.1f})   {facts['ratio']:7.2f}   {temporary:>16s}"
        f"   {facts['compile_s']:9.2f}  {facts['compile_s'] / base['compile_s']:7.2f}"
    )


def times_memory(facts: dict[str, Any], base: dict[str, Any]) -> float | None:
    """Returns the temporary memory over that of the plain gradient or step, if known."""
    if facts["temp_mb"] is None or not base["temp_mb"]:
        return None
    return facts["temp_mb"] / base["temp_mb"]


def markdown(problems: dict[str, dict[str, Any]], of_steps: bool) -> str:
    """Returns a table with a row for every problem: time (memory) × plain.

    Args:
      problems: the results file's `problems`.
      of_steps: whether of whole steps or of gradients.
    """
    rows = [
        ["× plain: time (temporary memory)", "plain, ms", *COLUMNS.values()],
        ["---"] * (2 + len(COLUMNS)),
    ]
    for name, problem in problems.items():
        results = _steps(problem["methods"]) if of_steps else problem["methods"]
        if "plain" not in results:  # files of before 2026-11-28 have no steps
            continue
        plain = results["plain"]
        cells = [
            _cell(results[method], plain) if method in results else NOT_MEASURED
            for method in COLUMNS
        ]
        rows.append([problem.get("title") or name, f"{plain['ms']:.0f}", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(facts: dict[str, Any], base: dict[str, Any]) -> str:
    if "ms" not in facts:
        return facts.get("why", NOT_MEASURED).split(":")[0]
    memory = times_memory(facts, base)
    time = f"{facts['ratio']:.2f}"
    return time if memory is None else f"{time} ({memory:.2f})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=pathlib.Path)
    args = parser.parse_args(arguments)
    report = json.loads(args.file.read_text())
    rivals = "".join(f", {name} {version}" for name, version in report.get("rivals", {}).items())
    print(f"{report['hardware']}, JAX {report['jax']}{rivals}, {report['date']}")
    for what in ("gradient", "step"):
        print(f"\nThe {what}:\n\n{markdown(report['problems'], what == 'step')}")


if __name__ == "__main__":
    main()
