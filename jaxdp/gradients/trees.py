"""Trees of parameters: what two of them differ in, and Flax nnx's variables around their arrays."""

import sys
from typing import Any

import jax

from ..types import PyTree

_SHOWN = 3  # names in a message


def without_variables(tree: PyTree) -> PyTree:
    """The tree with plain arrays in place of Flax nnx's variables, as `nnx.as_pure` gives it.

    `nnx.Optimizer` passes such trees to Optax; `nnx.state(model, nnx.Param)` has the variables.
    """
    nnx: Any = sys.modules.get("flax.nnx")  # Flax is an extra: without it there are no variables
    if nnx is None:
        return tree
    is_variable = lambda node: isinstance(node, nnx.Variable)

    def bare(node: Any) -> Any:
        if not is_variable(node):
            return node
        values = jax.tree.leaves(node)
        return values[0] if len(values) == 1 else values

    return jax.tree.map(bare, tree, is_leaf=is_variable)


def difference(gradients: PyTree, params: PyTree) -> str | None:
    """What the tree of gradients and that of the parameters differ in, by names; None: nothing."""
    trees = [without_variables(tree) for tree in (gradients, params)]
    structures: list[Any] = [jax.tree.structure(tree) for tree in trees]
    if structures[0] == structures[1]:
        return None
    paths = [[path for path, _ in jax.tree_util.tree_leaves_with_path(tree)] for tree in trees]
    names = [{jax.tree_util.keystr(path) or "an array alone" for path in each} for each in paths]
    only = [_some(sorted(a - b)) for a, b in (names, reversed(names))]
    if not any(only):
        kinds = " and a ".join(type(tree).__name__ for tree in trees)
        return (
            f"the gradients and the parameters have the same names, in other containers: a {kinds}"
        )
    parts = [f"the gradients have {only[0]}, and the parameters have not"] if only[0] else []
    parts += [f"the parameters have {only[1]}, and the gradients have not"] if only[1] else []
    return "; ".join(parts)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
