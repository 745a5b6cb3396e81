"""Frozen parameters: they are named by patterns, stay as they were drawn, and cost nothing."""

from collections.abc import Sequence
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from ..dpsgd.groups import takes

Params = dict[str, Any]  # nested


def split(params: Params, patterns: Sequence[str]) -> tuple[Params, Params]:
    """Splits nested parameters: `(trainable, frozen)`.

    Args:
      params: nested dicts of arrays.
      patterns: patterns over paths such as "Conv_0/kernel", where `*` stands for any text. A
        pattern also takes everything below it.

    Raises:
      ValueError: for a pattern that takes nothing, or if nothing is left to train.
    """
    leaves = flatten_dict(params)
    names = {path: "/".join(path) for path in leaves}
    for pattern in patterns:
        if not any(takes(pattern, name) for name in names.values()):
            raise ValueError(
                f"training.frozen has {pattern!r}, which no parameter matches: they are "
                + ", ".join(names.values())
            )
    frozen = {
        path: leaves[path]
        for path, name in names.items()
        if any(takes(pattern, name) for pattern in patterns)
    }
    trainable = {path: leaf for path, leaf in leaves.items() if path not in frozen}
    if not trainable:
        raise ValueError(f"training.frozen is {tuple(patterns)}: nothing is left to train")
    return unflatten_dict(trainable), unflatten_dict(frozen)


def merge(trainable: Params, frozen: Params) -> Params:
    """Puts the two parts from `split` together again."""
    return unflatten_dict(flatten_dict(trainable) | flatten_dict(frozen))
