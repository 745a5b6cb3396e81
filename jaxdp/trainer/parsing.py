"""Reads a configuration: from a file, the command line, or the files of a run."""

import contextlib
import dataclasses
import difflib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from . import command_line, config_file
from .config import Config, DistributedConfig
from .unused import check_used

COMMAND = "python -m jaxdp.train"

# One line of 80 columns: tyro joins lines.
HELP = "Trains a model with differential privacy. CONFIG.py sets what is not given."
EXAMPLES = """examples:
  python -m jaxdp.train                            handwritten digits, in 15 s
  python -m jaxdp.train configs/digits_linear.py --plan.epsilon 1 --dry-run
  python -m jaxdp.train --resume runs/NAME-TIME    goes on after a stop"""


def parse(
    args: Sequence[str],
    load_saved: Callable[[str], Config] | None = None,
    join: Callable[[DistributedConfig], None] = lambda config: None,
) -> Config:
    """Reads the command line `[CONFIG.py] [OPTIONS]`; the options overrule the file.

    Args:
      args: the command line; the file may also stand between the options.
      load_saved: loads the settings of the run that `--resume RUN` names. If there is a config file
        too, its settings are taken instead.
      join: joins the processes of a run, before anything else is read.

    Raises:
      ValueError: for a config file or a run that is missing or wrong, for an option that does not
        exist or has a wrong value, and for one that would do nothing.
      SystemExit: for --help.
    """
    if wants_help(args):
        _, others = command_line.read([a for a in args if not wants_help([a])], Config, COMMAND)
        default = load_config(only_config(others)) if others else Config()
        show_help(Config, f"{COMMAND} [CONFIG.py]", HELP, EXAMPLES, default)
    values, others = command_line.read(args, Config, COMMAND)
    prefix = "distributed."
    own = {
        name.removeprefix(prefix): values.pop(name) for name in [*values] if name.startswith(prefix)
    }
    join(DistributedConfig(**own))
    default, source = Config(), None
    if others:
        default, source = load_config(only_config(others)), others[0]
    elif load_saved is not None and values.get("resume") is not None:
        default, source = load_saved(values["resume"]), "the resumed run"
    config = command_line.replaced(default, values)
    check_used(config, values, source)
    return config


def wants_help(args: Sequence[str]) -> bool:
    """Whether the arguments ask for help."""
    return not {"-h", "--help"}.isdisjoint(args)


def show_help(
    section: type, usage: str, description: str, examples: str, default: Any = None
) -> NoReturn:
    """Prints the help of a command, with examples at its end.

    Raises:
      SystemExit: always, with status 0.
    """
    import tyro

    with contextlib.suppress(SystemExit):
        tyro.cli(
            section,
            prog=usage,
            description=description,
            args=["--help"],
            default=tyro.MISSING_NONPROP if default is None else default,
        )
    print(examples)
    raise SystemExit(0)


def only_config(others: Sequence[str]) -> str:
    """The config file among the arguments that are no options.

    Raises:
      ValueError: if there are more.
    """
    if len(others) > 1:
        raise ValueError(
            f"{' '.join(others)} belongs to no option: give one config file at most, every value "
            "after its option, as --plan.steps 100, and True or False after a switch"
        )
    return others[0]


def load_config(path: str) -> Config:
    """Runs a config file, a Python program that sets `config = Config(...)`.

    Args:
      path: the file, or the name of one that comes with jaxdp, as `mnist_cnn`.

    Raises:
      ValueError: if there is no such file, it fails, it sets no `config`, or one with options that
        would do nothing.
    """
    shipped = _shipped()
    if path in shipped and not Path(path).exists():
        path = str(shipped[path])
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder: give a config file, or --resume {path} for a run")
    if not Path(path).is_file():
        raise ValueError(f"there is no config file {path}: {_nearest_file(path)}")
    if not path.endswith(".py"):
        raise ValueError(f"{path} is no config file: give {_A_CONFIG}, and name it NAME.py")
    try:
        found = vars(config_file.load_file(path))
    except config_file.FileFailed as failed:
        raise ValueError(f"{failed.where}: {_mended(failed.error)}") from failed.error
    parts = config_file.parts_in(found)
    config = found.get("config", Config(name=Path(path).stem) if parts else None)
    if not isinstance(config, Config):
        wrong = f"sets config to {config!r}" if "config" in found else "sets no config"
        raise ValueError(f"{path} {wrong}: a config file is {_A_CONFIG}")
    if config.distributed != DistributedConfig():
        raise ValueError(
            f"{path} sets distributed, which is another one for every process: give "
            "--distributed.coordinator, --distributed.processes and --distributed.process"
        )
    if parts:
        config = dataclasses.replace(config, own=str(Path(path).resolve()))
    try:
        check_types("", config)
        check_used(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return config


_A_CONFIG = "a Python program that sets `config = Config(...)`, with Config from jaxdp.trainer"

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
    text = path.read_bytes()
    try:
        return from_json(Config, json.loads(text))
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): put back an undamaged copy") from None


# What people mean who put parts of their own into a configuration.
OWN_PARTS = {
    "model": "; for a model of your own set task = jaxdp.tasks.classifier(model) beside config",
    "data": "; for data of your own set data = jaxdp.Dataset(...) beside config",
}


def check_types(prefix: str, section: Any) -> None:
    """Checks the values that a config file sets, as tyro checks those of the command line."""
    for name, hint in get_type_hints(type(section)).items():
        value = getattr(section, name)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            if type(value) is not hint:
                raise ValueError(
                    f"{prefix}{name} is a {type(value).__name__}: give a {hint.__name__}(...)"
                    + OWN_PARTS.get(name, "")
                )
            check_types(f"{prefix}{name}.", value)
        elif not _fits(value, hint):
            if get_origin(hint) is Literal:
                near = difflib.get_close_matches(str(value), get_args(hint), n=1)
                cure = f"did you mean {near[0]!r}?" if near else f"give one of {get_args(hint)}"
            else:
                cure = f"give a value of type {getattr(hint, '__name__', hint)}"
                if callable(value):
                    cure += OWN_PARTS.get(prefix.partition(".")[0], "")
                    raise ValueError(f"{prefix}{name} is a {type(value).__name__}: {cure}")
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
    if get_origin(hint) in command_line.UNIONS:
        return any(_fits(value, option) for option in get_args(hint))
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if hint is float else hint)


def _shipped() -> dict[str, Path]:
    """The config files that come with jaxdp, by name."""
    package = Path(__file__).parents[1]
    # In a checkout they lie beside the package.
    folders = (package / "configs", package.parent / "configs")
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.py"))}


def _nearest_file(path: str) -> str:
    neighbours = {file.name: str(file) for file in Path(path).parent.glob("*.py")}
    near = difflib.get_close_matches(Path(path).with_suffix(".py").name, neighbours, n=1)
    if near:
        return f"did you mean {neighbours[near[0]]}?"
    shipped = _shipped()
    near = difflib.get_close_matches(Path(path).stem, shipped, n=1)
    if near:
        return f"did you mean {near[0]}, which comes with jaxdp?"
    return f"with jaxdp come {', '.join(shipped)}"


def _mended(error: BaseException) -> str:
    """What is wrong with a config file that fails, and a cure."""
    if isinstance(error, SystemExit):
        return "it exits: a config file need only set config"
    if isinstance(error, ValueError):
        return str(error)  # of a section, which names its cure
    return f"{error}: {_nearest_field(str(error)) or 'mend that line'}"


def _nearest_field(message: str) -> str:
    """The cure of Python's message about an unknown field: the nearest right name."""
    match = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", message)
    sections: list[Any] = [
        Config,
        *filter(dataclasses.is_dataclass, get_type_hints(Config).values()),
    ]
    section = {cls.__name__: cls for cls in sections}.get(match[1]) if match else None
    if not match or section is None:
        return ""
    names = [f.name for f in dataclasses.fields(section)]
    near = difflib.get_close_matches(match[2], names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"its fields are {', '.join(names)}"
