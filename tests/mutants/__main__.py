"""`python -m tests.mutants`: plants every bug, and says which the tests do not find."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from . import ALL, SUBJECTS
from .mutant import Mutant
from .planting import Found, Result, missing_place, missing_test, plant, run_unchanged


def main(args: Sequence[str] | None = None) -> int:
    """Returns 0 if all are caught, 1 if one survives, 2 for a name that is none."""
    parser = argparse.ArgumentParser("python -m tests.mutants", description=__doc__)
    parser.add_argument("--list", action="store_true", help="only print their names")
    parser.add_argument("--only", metavar="NAME[,NAME]", help="of mutants or subjects")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many at a time")
    options = parser.parse_args(args)
    try:
        chosen = named(options.only)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(f"{mutant.name}  {mutant.file}" for mutant in chosen))
        return 0
    return 0 if all_caught(chosen, options.jobs) else 1


def named(names: str | None) -> tuple[Mutant, ...]:
    """The mutants of these names or subjects, separated by commas; None: all."""
    if names is None:
        return ALL
    known = {**SUBJECTS, **{mutant.name: (mutant,) for mutant in ALL}}
    if unknown := [name for name in names.split(",") if name not in known]:
        raise ValueError(f"there is no mutant or subject {unknown[0]!r}: --list tells their names")
    return tuple(mutant for name in names.split(",") for mutant in known[name])


def all_caught(mutants: Sequence[Mutant], jobs: int, tell: Callable[[str], None] = print) -> bool:
    """Plants mutants, and tells of each. A test finds a bug only if it passes without it."""
    wrong = [missing_place(m) for m in mutants] + [
        missing_test(t) for m in mutants for t in m.tests
    ]
    if any(wrong):
        tell("\n".join(line for line in wrong if line))
        return False
    start = time.monotonic()
    survived: list[str] = []
    with ThreadPoolExecutor(jobs) as pool:
        tests = sorted({test for mutant in mutants for test in mutant.tests})
        tell(f"Running {len(tests)} tests without any mutant ...")
        unchanged: dict[str, Found] = {}
        # In few parts: those of a folder share what takes long to prepare.
        size = -(-len(tests) // jobs)
        for found in pool.map(run_unchanged, batched(tests, size)):
            unchanged |= found
        planted = {pool.submit(plant, mutant): mutant for mutant in mutants}
        for number, done in enumerate(as_completed(planted), 1):
            mutant = planted[done]
            result = judged(mutant, done.result(), unchanged)
            if not result.caught:
                survived.append(f"{mutant.name}: {result.why}")
            tell(f"[{number}/{len(mutants)}] {mutant.name}: {result.why}")
    seconds = time.monotonic() - start
    tell(f"{len(mutants) - len(survived)} of {len(mutants)} are caught, in {seconds:.0f} s.")
    for line in survived:
        tell(line)
    return not survived


def batched(tests: Sequence[str], size: int) -> list[Sequence[str]]:
    """The tests in parts of this size."""
    return [tests[start : start + size] for start in range(0, len(tests), size)]


def judged(mutant: Mutant, result: Result, unchanged: dict[str, Found]) -> Result:
    """The result, if the mutant's tests pass without it."""
    wrong: Iterable[str] = (t for t in mutant.tests if unchanged[t] is not Found.PASSED)
    for test in wrong:
        return Result(False, f"not judged: without it, {test} {unchanged[test].value}")
    return result


if __name__ == "__main__":
    sys.exit(main())
