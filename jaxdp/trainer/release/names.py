"""The names of the arrays in a release."""

from typing import Any

import jax

from ...dpsgd.groups import path_name
from ...types import PyTree


def named_leaves(tree: PyTree, alone: str = "params") -> dict[str, Any]:
    """The arrays of a tree by their paths, as `Conv_0/kernel`; `alone` names a tree of one array.

    Raises:
      ValueError: if two have the same name, or one is named like a folder of another.
    """
    found: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = path_name(path) if path else alone
        if name in found or any(not part for part in name.split("/")):
            raise ValueError(f"two parameters are named {name!r}, or one has no name: rename them")
        found[name] = leaf
    for name in found:
        folders = name.split("/")[:-1]
        for i in range(1, len(folders) + 1):
            if "/".join(folders[:i]) in found:
                raise ValueError(
                    f"the parameters {'/'.join(folders[:i])!r} and {name!r} can't both be "
                    "released: rename one"
                )
    return found
