"""The table of privacy rules in docs/design.md: every file and every test in it exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "design.md"
ROW = re.compile(r"^\| (\d+) \|(.+)\|(.+)\|(.+)\|$", re.MULTILINE)
CITATION = re.compile(r"privacy rules? (\d+)(?:(?:, | and |-)(\d+))*")


def rules():
    """(number, files, tests) of every row."""
    found = []
    for number, _, files, tests in ROW.findall(PAGE.read_text()):
        found.append((int(number), *(re.findall(r"`([^`]+)`", cell) for cell in (files, tests))))
    return found


def missing(files, tests, root=ROOT):
    """Which of them do not exist."""
    wrong = [file for file in files if not (root / file).is_file()]
    for test in tests:
        file, _, name = test.partition("::")
        path = root / file
        names = set()
        if path.is_file():
            names = {n.name for n in ast.walk(ast.parse(path.read_text())) if hasattr(n, "name")}
        if not name.startswith("test_") or name not in names:
            wrong.append(test)
    return wrong


def is_slow(test):
    """Whether the default run leaves a test out."""
    file, _, name = test.partition("::")
    (found,) = (
        node
        for node in ast.walk(ast.parse((ROOT / file).read_text()))
        if isinstance(node, ast.FunctionDef) and node.name == name
    )
    return "pytest.mark.slow" in map(ast.unparse, found.decorator_list)


def test_rules_are_numbered_without_gaps():
    assert [number for number, _, _ in rules()] == list(range(1, 47))


@pytest.mark.parametrize(("number", "files", "tests"), rules())
def test_every_rule_has_a_place_and_a_test(number, files, tests):
    assert files
    assert tests
    assert missing(files, tests) == []
    assert not all(map(is_slow, tests)), "the default run has no test of this rule"


def test_what_does_not_exist_is_found():
    assert missing(["jaxdp/nowhere.py"], []) == ["jaxdp/nowhere.py"]
    gone = ["tests/test_design.py::test_x", "tests/nowhere.py::test_x", "tests/test_design.py"]
    assert missing(["jaxdp/types.py"], gone) == gone


def test_comments_cite_rules_that_there_are():
    known = {number for number, _, _ in rules()}
    cited = set()
    for folder in ("jaxdp", "tests", "benchmarks", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            text = " ".join(path.read_text().split())
            assert "DESIGN rule" not in text or path == Path(__file__), path
            for match in CITATION.finditer(text):
                cited |= {(path, int(number)) for number in re.findall(r"\d+", match[0])}
    assert cited, "nothing cites a rule: is the pattern right?"
    assert [place for place in cited if place[1] not in known] == []
