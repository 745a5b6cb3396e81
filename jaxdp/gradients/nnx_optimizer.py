"""Lets `flax.nnx.Optimizer.update(model, grads)` carry lazy gradients to Optax.

It takes gradients for a graph of variables, filters it, and passes what is inside the variables to
Optax. So nnx is told that lazy gradients are a graph: the parameters' own, with a `LeafGrads` in
place of every array. `gathered` makes the lazy gradients of them again. Nothing is computed on the
way, and nothing between the two can rescale or mix examples: a `LeafGrads` refuses all arithmetic.
"""

import sys
from typing import Any, NoReturn

import jax

from ..types import PyTree
from .lazy import NoArray, PerExampleGrads


class LeafGrads(NoArray):
    """The gradients of one leaf of the parameters, of some `PerExampleGrads`."""

    def __init__(self, grads: PerExampleGrads, number: int) -> None:
        self.grads = grads
        self.number = number  # of the leaf, in jax.tree.leaves order


def tell_nnx() -> None:
    """Makes `PerExampleGrads` a graph for Flax nnx, if that is loaded."""
    nnx: Any = sys.modules.get("flax.nnx")  # Flax is an extra
    if nnx is None or PerExampleGrads in nnx.graph.GRAPH_REGISTRY:
        return

    def flatten(grads: PerExampleGrads) -> tuple[list, None]:
        leaves, structure = jax.tree.flatten(grads.like)
        lazy = [LeafGrads(grads, number) for number in range(len(leaves))]
        variables = nnx.state(jax.tree.unflatten(structure, lazy))
        if len(jax.tree.leaves(variables)) != len(leaves):
            raise ValueError(
                "nnx.Optimizer takes the gradients of variables, and these parameters are plain "
                "arrays: give per_example_grads the parameters nnx.state(model, nnx.Param)"
            )
        return sorted(variables.items()), None

    refuse: Any = _refuse
    nnx.graph.register_graph_node_type(
        PerExampleGrads,
        flatten,
        set_key=refuse,
        pop_key=refuse,
        create_empty=refuse,
        clear=refuse,
        init=refuse,
    )


def _refuse(*_: object) -> NoReturn:
    raise ValueError(
        "PerExampleGrads are held lazily, and can't be passed into or out of nnx.jit and other "
        "transformations of Flax: make and use them inside one of them"
    )


def gathered(updates: PyTree) -> Any:
    """The lazy gradients of whose leaves a tree is made; anything else as it is.

    Raises:
      ValueError: if some leaves are missing.
    """
    leaves = jax.tree.leaves(updates)
    if not leaves or not isinstance(leaves[0], LeafGrads):
        return updates
    grads = leaves[0].grads
    count = len(jax.tree.leaves(grads.like))
    own = [leaf.number for leaf in leaves if isinstance(leaf, LeafGrads) and leaf.grads is grads]
    if own != list(range(count)) or len(leaves) != count:
        raise ValueError(
            f"{len(own)} of the {count} parameters that were differentiated reached privatize: "
            "differentiate those that the optimizer trains, nnx.state(model, wrt), with its own "
            "wrt, and put jaxdp.privatize(plan) first in the optax.chain"
        )
    return grads
