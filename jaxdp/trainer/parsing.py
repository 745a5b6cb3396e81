"""Reads a configuration: from a file, the command line, or the files of a run."""

import dataclasses
import difflib
import itertools
import json
import re
import runpy
import traceback
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ..datasets.config import DataConfig
from ..models.config import ModelConfig
from .config import CheckpointConfig, ClippingConfig, Config, PlanConfig, TrainingConfig


def parse(args: Sequence[str], load_saved: Callable[[str], Config] | None = None) -> Config:
    """Reads the command line `[CONFIG.py] [OPTIONS]`; the options overrule the file.

    Args:
      args: the command line; the file may also stand between the options.
      load_saved: loads the settings of the run that `--resume RUN` names. If there is a config file
        too, its settings are taken instead.

    Raises:
      ValueError: for a config file or a run that is missing or wrong.
      SystemExit: for --help, and for wrong options, after a message with the nearest right one.
    """
    import tyro

    default = Config()
    place = _config_file(args)
    if place is not None:
        default, args = load_config(args[place]), [*args[:place], *args[place + 1 :]]
    elif load_saved is not None and (resumed := _resumed(args)) is not None:
        default = load_saved(resumed)
    return tyro.cli(
        Config,
        prog="python -m jaxdp.train [CONFIG.py]",
        description="Trains a private classifier. CONFIG.py sets other defaults for these options.",
        args=args,
        default=default,
    )


def _config_file(args: Sequence[str]) -> int | None:
    """Place of the config file: the first argument, or one with .py that is no option's value."""
    if args and not args[0].startswith("-"):
        return 0
    flags = _flags(Config)
    for i, (before, arg) in enumerate(itertools.pairwise(args), 1):
        is_value = before.startswith("--") and "=" not in before and before not in flags
        if arg.endswith(".py") and not arg.startswith("-") and not is_value:
            return i
    return None


def _flags(section: Any, prefix: str = "") -> set[str]:
    """The options that take no value."""
    flags: set[str] = set()
    for name, hint in get_type_hints(section).items():
        option = f"{prefix}{name}".replace("_", "-")
        if dataclasses.is_dataclass(hint):
            flags |= _flags(hint, f"{option}.")
        elif hint is bool:
            start, dot, end = option.rpartition(".")
            flags |= {f"--{option}", f"--{start}{dot}no-{end}"}
    return flags


def _resumed(args: Sequence[str]) -> str | None:
    """The folder that --resume names; all other options are read later."""
    for i, arg in enumerate(args):
        if arg.startswith("--resume="):
            return arg.partition("=")[2]
        if arg == "--resume" and i + 1 < len(args):
            return args[i + 1]
    return None


def load_config(path: str) -> Config:
    """Runs a config file, a Python program that sets `config = Config(...)`.

    Raises:
      ValueError: if there is no such file, it fails, or it sets no `config`.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no config file {path}: {_nearest_file(path)}")
    try:
        config = runpy.run_path(path).get("config")
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        where = f"{path}, line {lines[-1]}" if lines else path
        raise ValueError(f"{where}: {error}{_nearest_field(str(error))}") from error
    if not isinstance(config, Config):
        raise ValueError(
            f"{path} sets config to {config!r}: it must set `config = Config(...)`, with Config "
            "from jaxdp.trainer"
        )
    check_types("", config)
    return config


Section = TypeVar("Section")


def from_json(section: type[Section], fact: dict[str, Any]) -> Section:
    """Makes a configuration, or a section of it, from the JSON of its `asdict`.

    Raises:
      ValueError: for fields that this version does not know, or values that make no sense.
    """
    hints = get_type_hints(section)
    values: dict[str, Any] = {}
    for name, value in fact.items():
        if name not in hints:
            raise ValueError(f"the configuration has a field {name} that this version lacks")
        if dataclasses.is_dataclass(hints[name]):
            value = from_json(hints[name], value)
        values[name] = tuple(value) if isinstance(value, list) else value
    made = section(**values)
    check_types("", made)
    return made


def read_config(path: Path) -> Config:
    """Reads the settings that a run has saved.

    Raises:
      OSError: if there is no such file, or it can't be read.
      ValueError: if the file is damaged, or of another version.
    """
    text = path.read_text()
    try:
        return from_json(Config, json.loads(text))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): put back an undamaged copy") from None


def check_types(prefix: str, section: Any) -> None:
    """Checks the values that a config file sets, as tyro checks those of the command line."""
    for name, hint in get_type_hints(type(section)).items():
        value = getattr(section, name)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            if type(value) is not hint:
                raise ValueError(f"{prefix}{name} is {value!r}: give a {hint.__name__}(...)")
            check_types(f"{prefix}{name}.", value)
        elif not _fits(value, hint):
            if get_origin(hint) is Literal:
                near = difflib.get_close_matches(str(value), get_args(hint), n=1)
                cure = f"did you mean {near[0]!r}?" if near else f"give one of {get_args(hint)}"
            else:
                cure = f"give a value of type {getattr(hint, '__name__', hint)}"
            raise ValueError(f"{prefix}{name} is {value!r}: {cure}")


def _fits(value: object, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(v, get_args(hint)[0]) for v in value)
    if get_origin(hint) is dict:
        key, kind = get_args(hint)
        return isinstance(value, dict) and all(
            _fits(k, key) and _fits(v, kind) for k, v in value.items()
        )
    if get_origin(hint) is types.UnionType:
        return any(_fits(value, option) for option in get_args(hint))
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if hint is float else hint)


def _nearest_file(path: str) -> str:
    folders = {Path(path).parent, Path("configs")}
    files = {file.name: str(file) for folder in folders for file in folder.glob("*.py")}
    near = difflib.get_close_matches(Path(path).with_suffix(".py").name, files, n=1)
    if near:
        return f"did you mean {files[near[0]]}?"
    found = ", ".join(sorted(file for file in files.values() if file.startswith("configs")))
    return f"there are {found}" if found else "leave it out to run with the defaults"


def _nearest_field(message: str) -> str:
    """Completes Python's message about an unknown field with the nearest right name."""
    match = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", message)
    sections: list[Any] = [Config, DataConfig, ModelConfig, ClippingConfig, PlanConfig]
    sections += [TrainingConfig, CheckpointConfig]
    section = {cls.__name__: cls for cls in sections}.get(match[1]) if match else None
    if not match or section is None:
        return ""
    names = [f.name for f in dataclasses.fields(section)]
    near = difflib.get_close_matches(match[2], names, n=1)
    return f": did you mean {near[0]!r}?" if near else f": its fields are {', '.join(names)}"
