"""Plants a bug into a copy of the project, and runs the tests that must find it."""

import ast
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from .mutant import Mutant

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("jaxdp", "tests", "configs", "benchmarks", "pyproject.toml")
SECONDS = 600  # the longest that the tests of a mutant may take

# By plugins the start takes twice as long, and none is needed. Slow tests don't count: the bug must
# be found by those that everybody runs.
PYTEST = (
    *("-m", "pytest", "-q", "-p", "no:cacheprovider"),
    *("-o", "addopts=--import-mode=importlib --strict-markers -m 'not slow'"),
)

# A test that ends in one of these is red because the changed text is no sound program.
BROKEN = ("NameError", "UnboundLocalError", "ImportError", "ModuleNotFoundError", "SyntaxError")


class Found(Enum):
    """How a test, with all its cases, has ended."""

    PASSED = "passed"
    FAILED = "failed"  # some case, by what it checks
    NOTHING = "did not run, or not as far as its checks"


class Result(NamedTuple):
    """What became of a mutant. `why` says it in words."""

    caught: bool
    why: str


def missing_place(mutant: Mutant) -> str | None:
    """Says that the place of a mutant has moved; None if it is where it belongs."""
    path = ROOT / mutant.file
    count = path.read_text(encoding="utf-8").count(mutant.old) if path.is_file() else 0
    if count == 1:
        return None
    return f"{mutant.name}: its old text is {count} times in {mutant.file}, and not once"


def missing_test(test: str) -> str | None:
    """Says that there is no such test in the default run; None if there is."""
    file, _, name = test.partition("::")
    decorators = _tests_of(ROOT / file).get(name.partition("[")[0])
    if decorators is None:
        return f"there is no test {test}"
    if "pytest.mark.slow" in decorators:
        return f"{test} is slow: the default run must find the bug"
    return None


@functools.cache
def _tests_of(path: Path) -> dict[str, list[str]]:
    """The tests in a file, with their decorators."""
    body = ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []
    return {
        node.name: list(map(ast.unparse, node.decorator_list))
        for node in body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def plant(mutant: Mutant) -> Result:
    """Runs a mutant's tests on a copy of the project with the bug in it."""
    return plant_together([mutant])[0]


def plant_together(mutants: Sequence[Mutant]) -> list[Result]:
    """Runs the tests of mutants on one copy of the project with all of the bugs in it.

    A test may then be red because of a bug that is not its own.
    """
    if missing := [line for line in map(missing_place, mutants) if line is not None]:
        return [Result(False, missing[0])] * len(mutants)
    tests = [test for mutant in mutants for test in mutant.tests]
    with tempfile.TemporaryDirectory(prefix="jaxdp-mutant-") as name:
        folder = Path(name)
        copy_project(folder)
        for mutant in mutants:
            path = folder / mutant.file
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        found = run_tests(folder, tests, stop=len(tests) == 1)
    return [_result(mutant, found) for mutant in mutants]


def _result(mutant: Mutant, found: dict[str, Found]) -> Result:
    green = [test for test in mutant.tests if found[test] is not Found.FAILED]
    if not green:
        return Result(True, "caught")
    return Result(False, f"survived: {green[0]} {found[green[0]].value}")


def run_unchanged(tests: Iterable[str]) -> dict[str, Found]:
    """Runs tests on a copy of the project as it is."""
    with tempfile.TemporaryDirectory(prefix="jaxdp-unchanged-") as name:
        copy_project(Path(name))
        return run_tests(Path(name), list(tests), stop=False, seconds=None)


def copy_project(folder: Path) -> None:
    """Copies what the tests need, so that nothing can touch the project itself."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        else:
            shutil.copy2(source, folder / name)


def run_tests(
    folder: Path, tests: Sequence[str], *, stop: bool, seconds: float | None = SECONDS
) -> dict[str, Found]:
    """Runs tests in a copy of the project.

    Args:
      folder: the copy.
      tests: their names.
      stop: whether the first red case is enough.
      seconds: the longest that they may take, after which none has ended; None: for ever.
    """
    report = folder / "report.xml"
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env |= {"PYTHONPATH": str(folder), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    call = [sys.executable, *PYTEST, f"--junitxml={report}", *(["-x"] if stop else []), *tests]
    try:
        subprocess.run(call, cwd=folder, env=env, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return dict.fromkeys(tests, Found.NOTHING)
    return read_report(report.read_text() if report.is_file() else "<testsuites/>", tests)


def read_report(report: str, tests: Iterable[str]) -> dict[str, Found]:
    """How each test has ended, from a report in JUnit's XML."""
    cases = [
        (_name(case), _ended(case)) for case in ElementTree.fromstring(report).iter("testcase")
    ]
    found = {}
    for test in tests:
        ends = [end for name, end in cases if name == test or name.startswith(f"{test}[")]
        if Found.FAILED in ends:
            found[test] = Found.FAILED
        else:
            whole = ends and all(end is Found.PASSED for end in ends)
            found[test] = Found.PASSED if whole else Found.NOTHING
    return found


def _name(case: ElementTree.Element) -> str:
    return f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"


def _ended(case: ElementTree.Element) -> Found:
    """A failure is that of the test itself; what fails before and after it is an error."""
    failure = case.find("failure")
    if failure is not None:
        broken = failure.get("message", "").startswith(BROKEN)
        return Found.NOTHING if broken else Found.FAILED
    return Found.PASSED if len(case) == 0 or case[0].tag == "system-out" else Found.NOTHING
