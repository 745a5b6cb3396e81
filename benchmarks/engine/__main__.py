"""Measures private gradients against plain ones: `python -m benchmarks.engine --suite quick|full`.

What is timed is a whole clipped gradient (norms, clipping, weighted sum; no noise) against
`jax.grad` of the mean loss. Methods take turns within one process, and medians over the rounds are
compared, so that other work on the machine slows all of them alike. A method is timed only if its
clipped gradient agrees with that of vmap(grad).
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
from typing import Any

import jax

from ..hardware import hardware
from . import methods
from .measuring import measure, table
from .problems import PROBLEMS, SUITES

RESULTS = pathlib.Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--suite", choices=SUITES, default="quick")
    parser.add_argument("--only", help="one problem, or several with commas between")
    parser.add_argument("--methods", help="with commas between; default all")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--date", default=datetime.date.today().isoformat())
    parser.add_argument("--no-write", action="store_true", help="print only")
    args = parser.parse_args()
    known = list(methods.available())
    names = args.only.split(",") if args.only else SUITES[args.suite]
    chosen = args.methods.split(",") if args.methods else known
    if unknown := [n for n in names if n not in PROBLEMS] + [m for m in chosen if m not in known]:
        parser.error(f"unknown: {unknown}; choose from {list(PROBLEMS)} and {known}")
    if "plain" not in chosen:
        parser.error(f"--methods is {args.methods}: add plain, which the others are compared with")
    machine = hardware()
    print(f"{machine}, JAX {jax.__version__}, Python {platform.python_version()}")
    # Equal precision for plain and private. On GPUs the default is TF32 for the plain gradient
    # alone: plain_default measures that as well.
    jax.config.update("jax_default_matmul_precision", "highest")
    stem = "-".join(machine.lower().replace("/", " ").split())
    path = RESULTS / f"{stem}-jax{jax.__version__}-{args.date}.json"
    report: dict[str, Any] = {"hardware": machine, "jax": jax.__version__, "date": args.date}
    report["problems"] = json.loads(path.read_text())["problems"] if path.exists() else {}
    for name in names:
        results = measure(PROBLEMS[name](), chosen, max(7, args.repetitions))
        print("\n" + table(name, results), flush=True)
        report["problems"][name] = {"load": os.getloadavg()[0], "methods": results}
        jax.clear_caches()
        if not args.no_write:  # after every problem: a long run may be cut off
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
