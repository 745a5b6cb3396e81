"""Takes the rows of a batch from arrays of all records."""

from typing import Any

import jax
import numpy as np

from ..types import PyTree


def take_rows(arrays: PyTree, indices: np.ndarray, num_examples: int) -> PyTree:
    """Returns the rows of arrays with N rows; zeros for the index N, which stands for padding.

    Raises:
      ValueError: for arrays with another number of rows, or indices that are out of range.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        if isinstance(leaf, bool | int | float):
            raise ValueError(
                f"{jax.tree_util.keystr(path) or 'the rows'} is {leaf!r}, a number of a list: a "
                "list is a tree to JAX. Give arrays, np.asarray(rows)"
            )
        if not np.shape(leaf) or len(leaf) != num_examples:
            raise ValueError(
                f"the array {jax.tree_util.keystr(path) or 'given'} has shape {np.shape(leaf)},"
                f" and the plan is for {num_examples} records: give one row for each"
            )
    indices = np.asarray(indices)
    if not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(f"indices have dtype {indices.dtype}: give the indices of plan.batches()")
    if np.any((indices < 0) | (indices > num_examples)):
        raise ValueError(
            f"indices go from {indices.min()} to {indices.max()}: records are counted from 0 "
            f"to {num_examples - 1}, and {num_examples} stands for padding"
        )
    padding = indices == num_examples
    drawn = np.sort(indices[~padding])
    if np.any(drawn[1:] == drawn[:-1]):
        twice = drawn[1:][drawn[1:] == drawn[:-1]][0]
        raise ValueError(f"record {twice} is in indices twice: a step takes a record once at most")
    rows = np.where(padding, 0, indices)
    return jax.tree.map(lambda array: _taken(array, rows, padding), arrays)


def _taken(array: Any, rows: np.ndarray, padding: np.ndarray) -> Any:
    """Rows of an array; zeros for padding: a wrong mask then lets no record count twice."""
    taken = array[rows]
    if jax.numpy.issubdtype(taken.dtype, jax.dtypes.extended):
        return taken  # keys have no zero
    if isinstance(taken, np.ndarray):
        taken[padding] = np.zeros((), taken.dtype)
        return taken
    return taken.at[padding].set(0)
