"""Inputs from files, and predictions as CSV, for `python -m jaxdp.predict`."""

import csv
from typing import TextIO

import jax
import numpy as np

from ...types import PyTree
from .model import Model
from .names import named_leaves


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
    for name, array in named_leaves(predictions).items():
        name = "prediction" if name == "params" else name
        flat = array.reshape(len(array), -1)
        for i in range(flat.shape[1]):
            columns[name if array.ndim == 1 else f"{name}_{i}"] = flat[:, i]
    writer = csv.writer(file)
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow([f"{value:.9g}" if value.dtype.kind == "f" else value for value in row])
