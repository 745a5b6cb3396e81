"""Parameters that are not trained: frozen ones have names and cost nothing."""

from collections.abc import Collection, Sequence

import jax

from ..dpsgd.groups import path_name, takes
from ..types import PyTree


def split(params: PyTree, patterns: Sequence[str]) -> tuple[PyTree, PyTree]:
    """Splits parameters: `(trainable, frozen)`, each with None where the other has an array.

    Args:
      params: pytree of arrays.
      patterns: patterns over paths such as "Conv_0/kernel", where `*` stands for any text. A
        pattern also takes everything below it.

    Raises:
      ValueError: for a pattern that takes nothing, or if nothing is left to train.
    """
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in patterns:
        if not any(takes(pattern, name) for name in names):
            raise ValueError(
                f"frozen has {pattern!r}, which no parameter matches: they are " + ", ".join(names)
            )
    fixed = [any(takes(pattern, name) for pattern in patterns) for name in names]
    if all(fixed):
        raise ValueError(f"frozen is {tuple(patterns)}: nothing is left to train")
    return _parts(params, fixed)


def take_out(params: PyTree, paths: Collection[str]) -> tuple[PyTree, PyTree]:
    """Splits parameters as `split` does, by their paths: `(all others, those with a path)`."""
    named = jax.tree_util.tree_leaves_with_path(params)
    return _parts(params, [path_name(path) in paths for path, _ in named])


def _parts(params: PyTree, fixed: Sequence[bool]) -> tuple[PyTree, PyTree]:
    leaves, structure = jax.tree.flatten(params)
    pick = lambda which: jax.tree.unflatten(
        structure,
        [leaf if is_fixed == which else None for leaf, is_fixed in zip(leaves, fixed, strict=True)],
    )
    return pick(False), pick(True)


def merge(*parts: PyTree) -> PyTree:
    """Puts the parts from `split` together again. A part that is None has no array."""
    return jax.tree.map(
        lambda *leaves: next((leaf for leaf in leaves if leaf is not None), None),
        *(part for part in parts if part is not None),
        is_leaf=lambda leaf: leaf is None,
    )
