"""The options of `python -m jaxdp.predict`, inputs from files, and predictions as CSV."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

import jax
import numpy as np

from ...types import PyTree
from .. import command_line
from .model import Model
from .names import named_leaves

COMMAND = "python -m jaxdp.predict"


@dataclass(frozen=True)
class Options:
    """The options of `python -m jaxdp.predict`."""

    output: Path | None = None


class Request(NamedTuple):
    """What is asked for: the folder of a release, the file of inputs, where to write (or None)."""

    release: str
    inputs: str
    output: Path | None


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
    return Request(*given, Options(**values).output)


def read_inputs(path: str, model: Model) -> PyTree:
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
