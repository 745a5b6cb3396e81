"""Haiku transforms as networks."""

from typing import Any

import jax

from ..types import PyTree
from .networks import Network, as_batch, no_state, only


def haiku_network(model: Any) -> Network:
    """Wraps `hk.transform(f)`, or `hk.transform_with_state(f)` of an f that keeps no state.

    f takes a batch of inputs, and `is_training` if it has dropout.
    """
    has_state = type(model).__name__ == "TransformedWithState"

    def run(params: PyTree, inputs: PyTree, key: jax.Array | None, training: bool) -> Any:
        args: tuple = (params, {}, key) if has_state else (params, key)
        outputs = _told(model.apply, training, *args, as_batch(inputs))
        return only(outputs[0] if has_state else outputs)

    def init(key: jax.Array, inputs: PyTree) -> PyTree:
        drawn = jax.jit(lambda k, x: _told(model.init, True, k, x))(key, as_batch(inputs))
        if not has_state:
            return drawn
        params, state = drawn
        if jax.tree.leaves(state):
            raise no_state(", ".join(map(repr, state)))
        return params

    return Network(
        init,
        lambda params, inputs, key: run(params, inputs, key, True),
        lambda params, inputs: run(params, inputs, None, False),
    )


def _told(function: Any, training: bool, *args: Any) -> Any:
    """Calls a transformed function, and tells it whether it is trained if it wants to know."""
    try:
        return function(*args, is_training=training)
    except TypeError as error:
        if "is_training" not in str(error):
            raise
    return function(*args)
