"""Frozen parameters: those that patterns name stay as they were drawn, and cost nothing."""

from collections.abc import Sequence
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from ..dpsgd.groups import takes

Params = dict[str, Any]  # nested


def split(params: Params, patterns: Sequence[str]) -> tuple[Params, Params]:
    """Takes nested parameters apart: `(trainable, frozen)`.

    Args:
      params: nested dicts of arrays.
      patterns: over paths such as "Conv_0/kernel", where `*` stands for any text; a pattern also
        takes all that lies below it.

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
    """Puts together what `split` took apart."""
    return unflatten_dict(flatten_dict(trainable) | flatten_dict(frozen))
