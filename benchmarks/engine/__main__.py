"""Measures private training against plain: `python -m benchmarks.engine --suite quick|full|long`.

What is timed is a whole clipped gradient (norms, clipping, weighted sum; no noise) against
`jax.grad` of the mean loss, and a whole step (with noise, release and Adam) against a plain one.
Methods take turns within one process, and medians over the rounds are compared, so that other work
on the machine slows all of them alike. A method is timed only if its clipped gradient agrees with
that of vmap(grad). A method that can't be imported, fails, or needs more memory than the machine
has is a row that says so.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
from collections.abc import Sequence
from typing import Any

import jax

from ..hardware import hardware
from . import methods
from .measuring import measure
from .problems import PROBLEMS, SUITES
from .table import lines

RESULTS = pathlib.Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--suite", choices=SUITES, default="quick")
    parser.add_argument("--only", help="one problem, or several with commas between")
    parser.add_argument("--methods", help="with commas between; default all")
    parser.add_argument("--rounds", type=int, default=9, help="with two cores, 3 are quick")
    parser.add_argument("--date", default=datetime.date.today().isoformat())
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS, help="where files lie")
    parser.add_argument("--no-write", action="store_true", help="print only")
    args = parser.parse_args(arguments)
    known = list(methods.available())
    names = args.only.split(",") if args.only else SUITES[args.suite]
    chosen = args.methods.split(",") if args.methods else known
    if unknown := [n for n in names if n not in PROBLEMS] + [m for m in chosen if m not in known]:
        parser.error(f"unknown: {unknown}; choose from {list(PROBLEMS)} and {known}")
    if "plain" not in chosen:
        parser.error(f"--methods is {args.methods}: add plain, which the others are compared with")
    if args.rounds < 1:
        parser.error(f"--rounds is {args.rounds}: give at least 1")
    machine = hardware()
    print(f"{machine}, JAX {jax.__version__}, Python {platform.python_version()}")
    # Equal precision for plain and private. On GPUs the default is TF32 for the plain gradient
    # alone: plain_default measures that as well.
    jax.config.update("jax_default_matmul_precision", "highest")
    stem = "-".join(machine.lower().replace("/", " ").split())
    path = args.results / f"{stem}-jax{jax.__version__}-{args.date}.json"
    report: dict[str, Any] = {"hardware": machine, "jax": jax.__version__, "date": args.date}
    report["rivals"] = methods.rivals()
    report["problems"] = json.loads(path.read_text())["problems"] if path.exists() else {}
    for name in names:
        problem = PROBLEMS[name]()
        results = measure(problem, chosen, args.rounds)
        print("\n" + lines(name, results), flush=True)
        report["problems"][name] = {
            "title": problem.title,
            "load": os.getloadavg()[0],
            "rounds": args.rounds,
            "methods": results,
        }
        jax.clear_caches()
        if not args.no_write:  # after every problem: a long run may be cut off
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
