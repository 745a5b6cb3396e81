"""Fills a batch up to whole microbatches."""

import jax
import jax.numpy as jnp

from ..types import PyTree


def pad_rows(rows: PyTree, mask: jax.Array, size: int) -> tuple[PyTree, jax.Array]:
    """Pads rows and their mask to a whole number of microbatches of `size` rows."""
    extra = -mask.size % size
    # Padding repeats the last row rather than inventing one: a key of zeros may be no key.
    pad = lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[-1:], extra, axis=0)])
    rows = jax.tree.map(pad, rows) if extra else rows
    return rows, jnp.pad(mask, (0, extra))


def split_rows(rows: PyTree, size: int) -> PyTree:
    """`[k·size, ...]` to `[k, size, ...]`, for every leaf."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), rows)
