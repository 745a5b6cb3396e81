"""Reads the options of a command line into a dataclass, by its fields and their types."""

import contextlib
import dataclasses
import difflib
import types
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Section = TypeVar("Section")
TRUTHS = {"true": True, "false": False}
SWITCHES = (bool, bool | None)  # they may be given without a value
UNIONS = (types.UnionType, Union)  # with a Literal in it, `X | Y` is of the second kind


def read(
    args: Sequence[str], section: type, command: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Reads options such as `--plan.epsilon 1`. Underscores may stand for hyphens.

    Args:
      args: the command line.
      section: a dataclass. Fields that are dataclasses have options with a dot.
      command: named where its --help is the cure.

    Returns:
      The values by the dotted names of their fields, and the arguments that are no options.

    Raises:
      ValueError: for an option that does not exist, has no value, or has one of the wrong type.
    """
    hints = _hints(section)
    values: dict[str, Any] = {}
    others: list[str] = []
    rest = deque(args)
    while rest:
        arg = rest.popleft()
        if not arg.startswith("-"):
            others.append(arg)
            continue
        option, equals, value = arg.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        start, dot, end = name.rpartition(".")
        positive = f"{start}{dot}{end.removeprefix('no_')}"
        if name not in hints and hints.get(positive) in SWITCHES and not equals:
            values[positive] = False
            continue
        if name not in hints or not option.startswith("--"):
            raise ValueError(f"there is no option {option}: {_nearest(option, hints, command)}")
        hint = hints[name]
        if equals:
            given = [value]
        elif hint in SWITCHES:
            words = {*TRUTHS, *({"none"} if hint is not bool else ())}
            given = [rest.popleft()] if rest and rest[0].lower() in words else ["true"]
        else:
            given = _take(rest, several=get_origin(hint) in (tuple, dict))
        values[name] = _convert(shown(name), given, hint)
    return values, tuple(others)


def replaced(default: Section, values: dict[str, Any]) -> Section:
    """Puts values, by the dotted names of their fields, into a dataclass.

    Raises:
      ValueError: from the dataclass, for values that it does not allow.
    """
    own = {name: value for name, value in values.items() if "." not in name}
    for part in {name.partition(".")[0] for name in values if "." in name}:
        inner = {
            name.partition(".")[2]: value
            for name, value in values.items()
            if name.startswith(f"{part}.")
        }
        own[part] = replaced(getattr(default, part), inner)
    return dataclasses.replace(default, **own)  # type: ignore[type-var]


def shown(name: str) -> str:
    """A dotted name of a field as users write it: `training.learning-rate`."""
    return name.replace("_", "-")


def expected(hint: Any) -> str:
    """What to give for a type, in words."""
    if get_origin(hint) is Literal and len(get_args(hint)) == 1:
        return str(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) in UNIONS:
        return " or ".join("None" if one is type(None) else expected(one) for one in get_args(hint))
    if get_origin(hint) is tuple:
        words = {int: "whole numbers, as 16 32", float: "numbers, as 64 128"}
        return words.get(get_args(hint)[0], "some words")
    if get_origin(hint) is dict:
        return "names with numbers, as b1 0.8 b2 0.9"
    return {
        int: "a whole number, as 100",
        float: "a number, as 0.5",
        bool: "true or false",
        Path: "the name of a file",
    }.get(hint, "a text")


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that is most like a word, if there is one that may have been meant."""
    found = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.7)
    return found[0] if found else None


def _hints(section: type, prefix: str = "") -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for name, hint in get_type_hints(section).items():
        if dataclasses.is_dataclass(hint):
            hints |= _hints(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            hints[f"{prefix}{name}"] = hint
    return hints


def _take(rest: deque[str], several: bool) -> list[str]:
    """Takes the values of an option: up to the next option, or a config file after the first."""
    taken: list[str] = []
    while rest and not rest[0].startswith("--"):
        if taken and (not several or rest[0].endswith(".py")):
            break
        taken.append(rest.popleft())
    return taken


def _convert(name: str, given: list[str], hint: Any) -> Any:
    wrong = ValueError(f"{name} is {' '.join(given)!r}: give {expected(hint)}")
    if get_origin(hint) is tuple:
        return tuple(_one(name, text, get_args(hint)[0], wrong) for text in given)
    if get_origin(hint) is dict:
        if len(given) % 2:
            raise wrong
        value = get_args(hint)[1]
        return {
            k: _one(name, v, value, wrong) for k, v in zip(given[::2], given[1::2], strict=True)
        }
    if not given:
        raise ValueError(f"--{name} is given no value: give {expected(hint)}")
    return _one(name, given[0], hint, wrong)


def _one(name: str, text: str, hint: Any, wrong: ValueError) -> Any:
    if get_origin(hint) in UNIONS:
        kinds = [one for one in get_args(hint) if one is not type(None)]
        if text == "None" and len(kinds) < len(get_args(hint)):
            return None
        *others, hint = kinds  # the first that takes the text
        for other in others:
            with contextlib.suppress(ValueError):
                return _one(name, text, other, wrong)
        if others and get_origin(hint) is Literal and text not in get_args(hint):
            raise wrong
    if get_origin(hint) is Literal:
        if text not in get_args(hint):
            meant = nearest(text, get_args(hint))
            raise (
                wrong if meant is None else ValueError(f"{name} is {text!r}: did you mean {meant}?")
            )
        return text
    if hint is bool:
        if text.lower() not in TRUTHS:
            raise wrong
        return TRUTHS[text.lower()]
    try:
        return hint(text)
    except ValueError:
        raise wrong from None


def _nearest(option: str, hints: dict[str, Any], command: str) -> str:
    """Names the option that was meant, by its whole name or by what follows the dot."""
    word = option.lstrip("-").replace("-", "_")
    ends = {name.rpartition(".")[2]: name for name in reversed(hints)}
    meant = nearest(word, hints)
    if meant is None and (end := nearest(word.rpartition(".")[2], ends)) is not None:
        meant = ends[end]
    if meant is None:
        return f"`{command} --help` lists the options"
    return f"did you mean --{shown(meant)}?"
