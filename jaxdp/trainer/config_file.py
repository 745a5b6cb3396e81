"""Config files: Python programs that set a configuration, and may define parts of their own."""

import importlib.util
import sys
import traceback
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import optax

from ..datasets.dataset import Dataset
from ..tasks.task import Task
from .job import PARTS


@dataclass(frozen=True)
class Own:
    """What a config file defines beside its configuration.

    Attributes:
      task: what is learnt; None: the model of the options is.
      data: the records; None: those of the options.
      optimizer: uses the private gradient; None: that of the options.
    """

    task: Task | None = None
    data: Dataset | None = None
    optimizer: optax.GradientTransformation | None = None


def load_file(path: str) -> ModuleType:
    """Imports a Python file as a module, once in a process.

    Raises:
      ValueError: in one line, with the line of the file, if it fails.
    """
    return _imported(str(Path(path).resolve()), path)


def load_own(path: str | None) -> Own:
    """What a config file defines beside its configuration; nothing for None.

    Raises:
      ValueError: if the file is missing or fails, or defines something of a wrong type.
    """
    if path is None:
        return Own()
    if not Path(path).is_file():
        raise ValueError(
            f"there is no file {path}, which defines the task or the data of the run: put it back, "
            "or name its new place, as --own FILE.py"
        )
    parts = parts_in(vars(load_file(path)))
    for name, part in parts.items():
        kind, cure = PARTS[name]
        if not isinstance(part, kind):
            raise ValueError(f"{path} sets {name} to a {type(part).__name__}: give {cure}")
    if "data" in parts and "task" not in parts:
        raise ValueError(
            f"{path} defines data, and no task for them: give a task too, as "
            "task = jaxdp.tasks.classifier(model)"
        )
    return Own(**parts)


def parts_in(found: dict[str, Any]) -> dict[str, Any]:
    """The parts among the names that a file defines. A module that it imports is none."""
    return {
        name: found[name]
        for name in PARTS
        if name in found and not isinstance(found[name], ModuleType)
    }


def defines(path: str | None, name: str) -> bool:
    """Whether a config file defines a part."""
    return getattr(load_own(path), name) is not None


@cache
def _imported(path: str, shown: str) -> ModuleType:
    name = Path(path).stem
    if name in sys.modules:
        name = f"jaxdp config file {path}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None  # it ends with .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(Path(path).parent)
    if folder not in sys.path:
        sys.path.append(folder)  # it may import its neighbours
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == path]
        where = f"{shown}, line {lines[-1]}" if lines else shown
        raise FileFailed(where, error) from error
    return module


class FileFailed(ValueError):
    """A config file raised an error. `where` is its place."""

    def __init__(self, where: str, error: BaseException) -> None:
        super().__init__(f"{where}: {error}")
        self.where = where
        self.error = error
