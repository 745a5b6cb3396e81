"""The suite is tested: privacy bugs are planted, and must be found (`python -m tests.mutants`)."""

import re
from pathlib import Path

import pytest
from mutants import ALL, SUBJECTS, __main__, planting
from mutants.mutant import Mutant
from mutants.planting import Found, Result

PAGE = Path(__file__).parent.parent / "docs" / "design.md"

# One of most subjects, whose tests take hardly longer than the start of Python.
ALWAYS = (
    "a-batch-unit-moves-by-one-clipping-norm",
    "layers-that-are-clipped-apart-add-up-to-one",
    "a-masked-row-contributes",
    "a-secret-key-has-32-bits",
    "fewer-rounds-of-threefry",
    "the-first-records-are-sampled-more-often",
    "a-record-s-unit-follows-from-its-place",
    "a-printed-number-is-rounded-down",
    "zero-is-drawn-twice-as-often",
    "uses-may-overlap",
)


def test_every_bug_has_its_place():
    """Where the code has moved, the bug is planted anew: its old text is there exactly once."""
    wrong = [planting.missing_place(mutant) for mutant in ALL]
    assert [line for line in wrong if line] == []


def test_every_bug_changes_something():
    assert [mutant.name for mutant in ALL if mutant.old == mutant.new] == []


def test_every_named_test_is_there():
    wrong = [planting.missing_test(test) for mutant in ALL for test in mutant.tests]
    assert [line for line in wrong if line] == []
    assert {len(mutant.tests) for mutant in ALL} <= {1, 2}


def test_there_are_bugs_of_every_subject_and_rule():
    names = [mutant.name for mutant in ALL]
    assert len(names) >= 80
    assert len(set(names)) == len(names)
    assert all(SUBJECTS.values())
    numbers = {int(number) for number in re.findall(r"^\| (\d+) \|", PAGE.read_text(), re.M)}
    assert {mutant.rule for mutant in ALL if mutant.rule is not None} == numbers


def test_ten_bugs_are_caught():
    """Together, to start Python once. Their tests pass without them: they are in this very run."""
    results = planting.plant_together(__main__.named(",".join(ALWAYS)))
    told = [(name, result.why) for name, result in zip(ALWAYS, results, strict=True)]
    assert told == [(name, "caught") for name in ALWAYS]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALWAYS)
def test_none_of_the_ten_is_caught_for_another(name):
    (mutant,) = __main__.named(name)
    others = __main__.named(",".join(other for other in ALWAYS if other != name))
    *_, result = planting.plant_together([*others, mutant._replace(new=mutant.old)])
    assert result.why == f"survived: {mutant.tests[0]} passed"


@pytest.mark.slow
def test_all_bugs_are_caught(capsys):
    assert __main__.main([]) == 0, capsys.readouterr().out


HARMLESS = Mutant(
    "a-comment-is-missing",
    "jaxdp/accounting/rounding.py",
    "    # The digits that Python prints are rounded: the float 1e-5 is a little above 1e-5, and "
    "stays.\n",
    "",
    ("tests/accounting/test_rounding.py::test_rounding_is_up",),
)


@pytest.mark.slow
def test_what_breaks_nothing_or_all_is_not_caught(capsys):
    broken = HARMLESS._replace(name="a-module-is-missing", new="    import decimals\n")
    assert not __main__.all_caught([HARMLESS, broken], 2)
    said = capsys.readouterr().out
    assert f"a-comment-is-missing: survived: {HARMLESS.tests[0]} passed" in said
    assert "a-module-is-missing: survived" in said
    assert "did not run, or not as far as its checks" in said


def test_a_place_that_has_moved_is_told():
    moved = HARMLESS._replace(old="no such line")
    assert "is 0 times in jaxdp/accounting/rounding.py" in planting.missing_place(moved)
    assert "is 0 times" in planting.missing_place(moved._replace(file="jaxdp/nowhere.py"))
    often = HARMLESS._replace(old="Example:")
    assert "is 2 times" in planting.missing_place(often)
    assert planting.plant(often) == Result(False, planting.missing_place(often))


def test_tests_that_are_missing_or_slow_are_told():
    file = "tests/test_mutants.py"
    assert planting.missing_test(f"{file}::test_ten_bugs_are_caught") is None
    assert "there is no test" in planting.missing_test(f"{file}::test_nothing")
    assert "there is no test" in planting.missing_test("tests/nowhere.py::test_nothing")
    assert "is slow" in planting.missing_test(f"{file}::test_all_bugs_are_caught[case]")


REPORT = """<testsuites><testsuite>
<testcase classname="tests.a.test_b" name="test_green"/>
<testcase classname="tests.a.test_b" name="test_case[1]"/>
<testcase classname="tests.a.test_b" name="test_case[2]"><failure message="assert 0"/></testcase>
<testcase classname="tests.a.test_b" name="test_name"><failure message="NameError: x"/></testcase>
<testcase classname="tests.a.test_b" name="test_fixture"><error message="on setup"/></testcase>
<testcase classname="tests.a.test_b" name="test_left_out"><skipped message="no extra"/></testcase>
</testsuite></testsuites>"""


@pytest.mark.parametrize(
    ("test", "found"),
    [
        ("test_green", Found.PASSED),
        ("test_case", Found.FAILED),
        ("test_case[1]", Found.PASSED),
        ("test_case[2]", Found.FAILED),
        ("test_name", Found.NOTHING),
        ("test_fixture", Found.NOTHING),
        ("test_left_out", Found.NOTHING),
        ("test_cas", Found.NOTHING),
    ],
)
def test_red_is_what_fails_by_its_checks(test, found):
    name = f"tests/a/test_b.py::{test}"
    assert planting.read_report(REPORT, [name]) == {name: found}


def test_a_test_that_fails_without_the_bug_finds_nothing():
    caught, (test,) = Result(True, "caught"), HARMLESS.tests
    assert __main__.judged(HARMLESS, caught, {test: Found.PASSED}) == caught
    for ended in (Found.FAILED, Found.NOTHING):
        told = __main__.judged(HARMLESS, caught, {test: ended})
        assert not told.caught
        assert told.why.startswith("not judged: without it")


def test_names_and_subjects_are_chosen(capsys):
    assert __main__.main(["--list", "--only", "seal,half-the-noise"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == len(SUBJECTS["seal"]) + 1
    assert listed[-1] == "half-the-noise  jaxdp/dpsgd/noise.py"
    assert __main__.main(["--only", "half-the-nois"]) == 2
    assert "there is no mutant or subject 'half-the-nois'" in capsys.readouterr().err
