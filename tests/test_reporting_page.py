"""The page on reports names fields that there are, and shows what the command prints."""

import re
from pathlib import Path

import pytest

pytest.importorskip("safetensors")
from helpers.statements import make_plan, statement_of

import jaxdp
from jaxdp.trainer.release import typed_json, verification
from jaxdp.trainer.release.statement import Statement

PAGE = Path(jaxdp.__file__).parents[1].joinpath("docs/guides/reporting.md").read_text("utf-8")
ROWS = re.findall(r"(?m)^\| \*?\*?.* \| (.*) \| .*\|$", PAGE.split("|---|---|---|\n")[1])


def has_field(name):
    schema = typed_json.schema(Statement)
    place = schema
    for part in name.split("."):
        place = place["properties"][part.removesuffix("[]")]
        choices = [place, *place.get("anyOf", ()), place.get("items", {})]
        found = [schema["$defs"][c["$ref"].rpartition("/")[2]] for c in choices if "$ref" in c]
        place = found[0] if found else place
    return True


def test_the_fields_exist_and_none_is_left_out():
    named = [name for row in ROWS for name in re.findall(r"`([a-z_\[\].]+)`", row)]
    assert len(ROWS) > 15
    assert all(map(has_field, named))
    tops = {re.match(r"\w+", name)[0] for name in named}
    known = set(typed_json.schema(Statement)["properties"])
    assert known - tops == {"format", "earlier_data"}


def test_the_example_has_the_checks_of_the_command():
    shown = re.findall(r"(?m)^      ok     (\S.*?)  +\S", PAGE)
    plan = make_plan(noise_multiplier=None, epsilon=0.3)
    made = [check.name for check in verification.checks(statement_of(plan, plan.steps))]
    assert shown == [*made, "PRIVACY.md"]
    assert f"holds: {len(shown)} checks" in PAGE
    example = re.search(r"(?ms)^    \$ python -m jaxdp.verify.*?\n\n", PAGE)[0]
    assert max(map(len, example.splitlines())) <= 84
