"""Takes the rows of a batch from arrays of all records."""

import jax
import numpy as np

from ..types import PyTree


def take_rows(arrays: PyTree, indices: np.ndarray, num_examples: int) -> PyTree:
    """Returns the rows of arrays with N rows; row 0 for the index N, which stands for padding.

    Raises:
      ValueError: for arrays with another number of rows, or indices that are out of range.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        if not np.shape(leaf) or len(leaf) != num_examples:
            raise ValueError(
                f"the array {jax.tree_util.keystr(path) or 'given'} has shape {np.shape(leaf)},"
                f" and the plan is for {num_examples} records: give one row for each"
            )
    indices = np.asarray(indices)
    if np.any((indices < 0) | (indices > num_examples)):
        raise ValueError(
            f"indices go from {indices.min()} to {indices.max()}: records are counted from 0 "
            f"to {num_examples - 1}, and {num_examples} stands for padding"
        )
    rows = np.where(indices == num_examples, 0, indices)
    return jax.tree.map(lambda array: array[rows], arrays)
