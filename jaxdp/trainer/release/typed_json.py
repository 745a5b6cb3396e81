"""Dataclasses as JSON, and back: nothing is guessed, and nothing unknown is passed over.

The types of the fields say all: what is written, what is read, and the JSON schema. Known are bool,
int, float, str, None, `Literal`, `UpperBound`, `tuple[X, ...]`, `dict[Literal, X]`, unions of them
that differ in JSON's type, and other dataclasses.
"""

import dataclasses
import inspect
import math
import re
import reprlib
import types
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Made = TypeVar("Made")

UpperBound = Annotated[float, "may be infinite"]  # JSON has no infinity: it is written as null

JSON_TYPES = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    types.NoneType: "null",
    tuple: "array",
    dict: "object",
}


LARGEST_INTEGER = 2**63 - 1


def to_json(value: Any) -> Any:
    """Turns a dataclass into objects, lists, numbers and strings for `json.dumps`."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in _fields(value)}
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return None if isinstance(value, float) and math.isinf(value) else value


def from_json(made: type[Made], fact: Any) -> Made:
    """Makes a dataclass from what `json.loads` returned.

    Raises:
      ValueError: in one line, if a field is unknown or missing, or a value is not of its type.
    """
    read: Made = _read(made, fact, "")
    return read


def schema(made: type) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a dataclass; its docstrings give the descriptions."""
    definitions: dict[str, Any] = {}
    _schema(made, definitions)
    root = definitions.pop(made.__name__)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": made.__name__}
    return {**head, **root, "$defs": dict(sorted(definitions.items()))}


def _fields(section: Any) -> tuple[Any, ...]:
    return dataclasses.fields(section)


def _read(hint: Any, fact: Any, place: str) -> Any:
    expected = _json_types(hint)
    if not any(_is(kind, fact) for kind in expected):
        raise _wrong(place, fact, " or ".join(expected))
    if hint == UpperBound:
        return math.inf if fact is None else _number(fact, place)
    if dataclasses.is_dataclass(hint):
        return _read_object(hint, fact, place)
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        if fact not in args:
            raise _wrong(place, fact, " or ".join(map(repr, args)))
        return fact
    if origin in (Union, types.UnionType):
        fitting = next(arg for arg in args if any(_is(kind, fact) for kind in _json_types(arg)))
        return _read(fitting, fact, place)
    if origin is tuple:
        return tuple(_read(args[0], item, f"{place}[{i}]") for i, item in enumerate(fact))
    if origin is dict:
        key, item = args
        return {
            _read(key, name, f"a name in {place}"): _read(item, value, f"{place}.{name}")
            for name, value in fact.items()
        }
    if hint is int and abs(fact) > LARGEST_INTEGER:
        raise _wrong(place, fact, "an integer of 64 bits")
    return _number(fact, place) if hint is float else fact


def _read_object(made: Any, fact: dict[str, Any], place: str) -> Any:
    hints = get_type_hints(made, include_extras=True)
    names = [field.name for field in _fields(made)]
    within = f"{place}." if place else ""
    for name in sorted(fact.keys() - set(names)):
        raise ValueError(f"the field {within}{name} is not known")
    for name in names:
        if name not in fact:
            raise ValueError(f"the field {within}{name} is missing")
    return made(**{name: _read(hints[name], fact[name], f"{within}{name}") for name in names})


def _number(fact: float, place: str) -> float:
    if not abs(fact) <= 1.7e308:  # NaN, or more than a float holds
        raise _wrong(place, fact, "a finite number")
    return float(fact)


def _wrong(place: str, fact: Any, expected: str) -> ValueError:
    return ValueError(f"{place or 'the whole'} is {reprlib.repr(fact)}: expected {expected}")


def _is(json_type: str, fact: Any) -> bool:
    """Whether a value is of a type of JSON: true is no number, and 1.0 no integer."""
    allowed = {"number": (int, float), "array": (list,)}
    same = [made for made, name in JSON_TYPES.items() if name == json_type]
    return type(fact) in allowed.get(json_type, same)


def _json_types(hint: Any) -> list[str]:
    if hint == UpperBound:
        return ["number", "null"]
    if dataclasses.is_dataclass(hint):
        return ["object"]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return [JSON_TYPES[type(args[0])]]
    if origin in (Union, types.UnionType):
        return [name for arg in args for name in _json_types(arg)]
    return [JSON_TYPES[hint if origin is None else origin]]


def _schema(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if dataclasses.is_dataclass(hint):
        name = getattr(hint, "__name__", "")
        if name not in definitions:
            definitions[name] = _object_schema(hint, definitions)
        return {"$ref": f"#/$defs/{name}"}
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(arg, definitions) for arg in args]}
    if origin is tuple:
        return {"type": "array", "items": _schema(args[0], definitions)}
    if origin is dict:
        key, item = args
        named = {name: _schema(item, definitions) for name in get_args(key)}
        return {"type": "object", "properties": named, "additionalProperties": False}
    names = _json_types(hint)
    return {"type": names[0] if len(names) == 1 else names}


def _object_schema(made: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(made, include_extras=True)
    summary, told = _described(made)
    properties = {}
    for field in _fields(made):
        about = {"description": told[field.name]} if field.name in told else {}
        properties[field.name] = {**about, **_schema(hints[field.name], definitions)}
    return {
        **({"description": summary} if summary else {}),
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _described(made: type) -> tuple[str, dict[str, str]]:
    """The first line of a docstring, and what its section "Attributes:" says of every field."""
    text = inspect.cleandoc(made.__doc__ or "")
    if text.startswith(f"{made.__name__}("):  # what `dataclass` makes where there is none
        return "", {}
    _, _, section = text.partition("Attributes:\n")
    found = re.findall(r"^  (\w+): (.*(?:\n    .*)*)", section, re.MULTILINE)
    return text.partition("\n")[0], {name: " ".join(about.split()) for name, about in found}
