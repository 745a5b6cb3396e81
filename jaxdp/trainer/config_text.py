"""A configuration as the text of a config file."""

import dataclasses
from typing import Any

from .config import Config
from .config_file import load_own

NOT_REPEATED = ("output", "resume", "dry_run", "config_only", "distributed")


def as_python(config: Config) -> str:
    """Returns a config file that repeats a run with the same options."""
    own = load_own(config.own)
    left_out = {*NOT_REPEATED, *(["model"] if own.task else []), *(["data"] if own.data else [])}
    fields = {name: v for name, v in vars(config).items() if name not in left_out}
    sections = sorted({type(part).__name__ for part in fields.values() if _is_section(part)})
    lines = [
        f"# python -m jaxdp.train FILE.py, with this in FILE.py, repeats the run {config.name}.",
        f"from jaxdp.trainer import {', '.join(['Config', *sections])}",
        "",
        f"config = {_call(config, fields, '')}",
        "",
    ]
    if config.own is not None:
        lines.insert(1, f"# What it lacks is in {config.own}.")
    return "\n".join(lines)


def _call(section: Any, fields: dict[str, Any], indent: str) -> str:
    lines = []
    for name, value in fields.items():
        text = _call(value, vars(value), indent + "    ") if _is_section(value) else repr(value)
        lines.append(f"{indent}    {name}={text},")
    return "\n".join([f"{type(section).__name__}(", *lines, f"{indent})"])


def _is_section(value: Any) -> bool:
    return dataclasses.is_dataclass(value)
