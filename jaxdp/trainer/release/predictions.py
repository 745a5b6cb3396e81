"""The options of `python -m jaxdp.predict`, inputs from files, and predictions as CSV."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np

from ...datasets import tables
from ...datasets.config import COMMA_ENDINGS, DataConfig
from ...types import PyTree
from .. import command_line
from .evaluation import data_options
from .model import Model
from .names import named_leaves
from .parameters import Release

COMMAND = "python -m jaxdp.predict"


OF_TABLES = {
    *("data.schema", "data.label", "data.columns", "data.split_by"),
    *("data.tokens", "data.vocabulary", "data.length"),
}
TABLES = (".tsv", ".parquet", *COMMA_ENDINGS)


@dataclass(frozen=True)
class Options:
    """The options of `python -m jaxdp.predict`."""

    data: DataConfig
    output: Path | None = None


class Request(NamedTuple):
    """What is asked for.

    Attributes:
      release: the folder of a release.
      inputs: the file of inputs.
      output: where to write; None: to the terminal.
      given: the options of the data, by the dotted names of their fields.
    """

    release: str
    inputs: str
    output: Path | None
    given: dict[str, Any]


def read_options(args: Sequence[str]) -> Request:
    """Reads the command line `RELEASE FILE [--output CSV]`.

    Raises:
      ValueError: unless one release and one file are given, or for an option that does not exist.
    """
    values, given = command_line.read(args, Options, COMMAND)
    if len(given) != 2:
        told = f"{' '.join(given)!r} is given" if given else "nothing is given"
        raise ValueError(
            f"{told}: give a release and a file, as {COMMAND} runs/NAME-TIME images.npy"
        )
    path = given[1]
    data = {name: value for name, value in values.items() if name != "output"}
    for name in data:
        if not path.endswith(TABLES) or name not in OF_TABLES:
            raise ValueError(
                f"{command_line.shown(name)} is {data[name]}, but it says nothing about the inputs "
                f"of {path}: leave it out"
            )
    return Request(*given, values.get("output"), data)


def read_inputs(request: Request, release: Release) -> PyTree:
    """Reads the inputs of a release from a table, or from what `read_arrays` takes.

    Raises:
      ValueError: for a file that is missing, damaged or of another form.
    """
    path = request.inputs
    if not path.endswith(TABLES):
        return read_arrays(path, release.model)
    data = data_options(request.release, release.statement)
    changes = {**request.given, "data.file": path, "data.test_from": None}
    return tables.read_inputs(command_line.replaced(Options(data), changes).data)


def read_arrays(path: str, model: Model) -> PyTree:
    """Reads the inputs of a model from a .npy, or a .npz with an array for each.

    Raises:
      ValueError: for a file that is missing, damaged or lacks an array.
    """
    arrays = _arrays(path)
    names = list(named_leaves(model.inputs))
    if len(names) == len(arrays) == 1:
        found = list(arrays.values())
    elif set(names) == set(arrays):
        found = [arrays[name] for name in names]
    else:
        raise ValueError(
            f"{path} holds {', '.join(arrays) or 'nothing'}: the model takes {', '.join(names)}"
        )
    return jax.tree.unflatten(jax.tree.structure(model.inputs), found)


def _arrays(path: str) -> dict[str, np.ndarray]:
    """The arrays of a file by their names; a .npy has one without a name of its own."""
    try:
        with open(path, "rb") as file:
            kept = np.load(file, allow_pickle=False)
            return {"params": kept} if isinstance(kept, np.ndarray) else dict(kept)
    except OSError as error:
        reason = (error.strerror or "it is damaged").lower()
    except Exception:  # NumPy and zipfile raise errors of many kinds
        # Its own words may advise to trust the file, which would let it run any program.
        reason = "it is damaged, or holds other things than numbers"
    raise ValueError(f"{path} can't be read ({reason}): give a .npy or .npz file of numbers")


def write_csv(predictions: PyTree, file: TextIO) -> None:
    """Writes a line for every record, with a column for every number that is predicted."""
    columns: dict[str, np.ndarray] = {}
    for name, array in named_leaves(predictions, alone="prediction").items():
        flat = array.reshape(len(array), -1)
        for i in range(flat.shape[1]):
            columns[name if array.ndim == 1 else f"{name}_{i}"] = flat[:, i]
    writer = csv.writer(file)
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow([f"{value:.9g}" if value.dtype.kind == "f" else value for value in row])
