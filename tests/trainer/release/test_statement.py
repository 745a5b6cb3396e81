"""privacy.json: what is written is read again, and nothing that is not known is passed over."""

import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
from helpers.statements import make_plan, segment_of, statement_of

from jaxdp.datasets.config import DataConfig
from jaxdp.models.config import ModelConfig
from jaxdp.trainer.config import Config
from jaxdp.trainer.release import statement as statements
from jaxdp.trainer.release.statement import (
    TaskFacts,
    read_statement,
    schema_text,
    to_text,
)

SCHEMA = Path(statements.__file__).with_name("privacy.schema.json")


def many_kinds():
    """Statements with every optional part."""
    shown = statement_of()
    schedule = statement_of(make_plan(noise_multiplier=lambda step: 1.5 if step < 5 else 2.0))
    before = DataConfig(private="train[:80%]", public="train[80%:]")
    segments = statement_of(
        config=Config(data=before, model=ModelConfig(widths=(4, 8))),
        earlier=[segment_of(make_plan(), 3)],
        has_statistics=True,
    )
    gray = replace(shown.preprocessing, center=(0.1,), scale=(0.5,))
    unbounded = {"pld": math.inf, "rdp": math.inf}
    owners = replace(shown, preprocessing=None, task=TaskFacts("digits of mine", None, False))
    infinite = replace(shown, preprocessing=gray, epsilon=unbounded)
    return [shown, schedule, segments, infinite, owners]


@pytest.mark.parametrize("kind", range(5))
def test_what_is_written_comes_back(tmp_path, kind):
    made = many_kinds()[kind]
    (tmp_path / "privacy.json").write_text(to_text(made), encoding="utf-8")
    assert read_statement(tmp_path / "privacy.json") == made


def test_the_schema_in_the_project_is_that_of_the_fields():
    assert SCHEMA.read_text(encoding="utf-8") == schema_text(), (
        "the fields changed: python -c 'from jaxdp.trainer.release.statement import schema_text; "
        f'print(schema_text(), end="")\' > {SCHEMA}'
    )
    assert "$schema" in json.loads(schema_text())


@pytest.mark.skipif(importlib.util.find_spec("jsonschema") is None, reason="needs jsonschema")
@pytest.mark.parametrize("kind", range(5))
def test_statements_fit_the_schema(kind):
    import jsonschema

    jsonschema.Draft202012Validator.check_schema(json.loads(SCHEMA.read_text()))
    fact = json.loads(to_text(many_kinds()[kind]))
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(fact)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (["format"], 2, "format is 2: expected 3"),
        (["host"], "here", "the field host is not known"),
        (["data", "sha256"], "00", r"the field data\.sha256 is not known"),
        (["mechanisms", 0, "sampling", "kind"], "sobol", "sampling.kind is 'sobol': expected"),
        (["privacy_unit", "kind"], "house", "privacy_unit.kind is 'house': expected 'record'"),
        (["delta"], "small", "delta is 'small': expected number"),
        (["epsilon"], {"rdp": 1.0}, "accountant is 'pld', and an epsilon has no value by it"),
        (["task", "model", "heads"], 0, "model.heads is 0: give"),
    ],
)
def test_what_is_not_known_is_refused_in_one_line(tmp_path, path, value, says):
    fact = json.loads(to_text(statement_of()))
    inner = fact
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    file = tmp_path / "privacy.json"
    file.write_text(json.dumps(fact))
    with pytest.raises(ValueError, match=rf"privacy\.json can't be read.*{says}") as error:
        read_statement(file)
    assert len(str(error.value).splitlines()) == 1
    assert "undamaged copy, or the version of jaxdp that wrote it" in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 3}', '{"epsilon": 3}', '{"format": '])
def test_damaged_files_are_refused(tmp_path, text):
    (tmp_path / "privacy.json").write_text(text)
    with pytest.raises(ValueError, match="can't be read"):
        read_statement(tmp_path / "privacy.json")


def test_no_field_tells_of_the_machine_or_hashes_records():
    names = set()

    def collect(schema):
        for key, value in schema.items():
            if key in ("properties", "$defs"):
                names.update(value)
            if isinstance(value, dict):
                collect(value)

    collect(json.loads(schema_text()))
    assert {"epsilon", "probability", "widths"} <= names
    for word in ("path", "dir", "file", "host", "user", "time", "device", "hash", "digest", "seed"):
        assert not [name for name in names if word in name.lower().split("_")]
