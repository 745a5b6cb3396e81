"""Dataclasses as JSON: what is written comes back, and nothing unknown is passed over."""

import json
import math
from dataclasses import dataclass
from typing import Literal

import pytest

from jaxdp.trainer.release import typed_json
from jaxdp.trainer.release.typed_json import UpperBound


@dataclass(frozen=True)
class Inner:
    kind: Literal["a", "b"]
    bound: UpperBound


@dataclass(frozen=True)
class Outer:
    """An example.

    Attributes:
      number: any one,
        in two lines.
      count: whole.
    """

    number: float
    count: int
    sure: bool
    name: str | None
    numbers: float | tuple[float, ...]
    inner: tuple[Inner, ...]
    by: dict[Literal["x", "y"], UpperBound]


GOOD = Outer(1.5, 2, True, None, (1.0, 2.0), (Inner("a", math.inf),), {"x": 1.0, "y": math.inf})


def fact():
    return json.loads(json.dumps(typed_json.to_json(GOOD), allow_nan=False))


def test_what_is_written_comes_back():
    assert typed_json.from_json(Outer, fact()) == GOOD
    assert fact()["inner"] == [{"kind": "a", "bound": None}]
    assert typed_json.from_json(Outer, {**fact(), "number": 3, "numbers": 4}).number == 3.0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"more": 1}, "the field more is not known"),
        ({"count": 2.0}, "count is 2.0: expected integer"),
        ({"count": True}, "count is True: expected integer"),
        ({"number": True}, "number is True: expected number"),
        ({"number": None}, "number is None: expected number"),
        ({"number": math.nan}, "number is nan: expected a finite number"),
        ({"number": math.inf}, "number is inf: expected a finite number"),
        ({"number": 10**400}, "expected a finite number"),
        ({"sure": 1}, "sure is 1: expected boolean"),
        ({"name": 1}, "name is 1: expected string or null"),
        ({"numbers": ["x"]}, r"numbers\[0\] is 'x': expected number"),
        ({"inner": {}}, "inner is {}: expected array"),
        ({"inner": [{"kind": "a"}]}, r"the field inner\[0\].bound is missing"),
        ({"inner": [{"kind": "c", "bound": 1}]}, r"inner\[0\].kind is 'c': expected 'a' or 'b'"),
        ({"by": {"z": 1}}, "a name in by is 'z': expected 'x' or 'y'"),
        ({"by": {"x": "1"}}, "by.x is '1': expected number or null"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_field_s_name(change, says):
    with pytest.raises(ValueError, match=says) as error:
        typed_json.from_json(Outer, {**fact(), **change})
    assert len(str(error.value).splitlines()) == 1


def test_a_missing_field_and_another_whole_are_refused():
    with pytest.raises(ValueError, match="the field number is missing"):
        typed_json.from_json(Outer, {k: v for k, v in fact().items() if k != "number"})
    with pytest.raises(ValueError, match=r"the whole is \[\]: expected object"):
        typed_json.from_json(Outer, [])


def test_the_schema_follows_from_the_types():
    schema = typed_json.schema(Outer)
    assert schema["description"] == "An example."
    assert schema["required"] == list(schema["properties"])
    assert schema["additionalProperties"] is False
    assert schema["properties"]["number"] == {
        "description": "any one, in two lines.",
        "type": "number",
    }
    assert schema["properties"]["name"] == {"anyOf": [{"type": "string"}, {"type": "null"}]}
    assert schema["properties"]["inner"] == {"type": "array", "items": {"$ref": "#/$defs/Inner"}}
    inner = schema["$defs"]["Inner"]
    assert "description" not in inner
    assert inner["properties"] == {
        "kind": {"enum": ["a", "b"]},
        "bound": {"type": ["number", "null"]},
    }
