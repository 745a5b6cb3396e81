"""Models of Equinox. They take one record, without a batch axis."""

from typing import Any

import equinox as eqx
import jax

from ..types import PyTree
from ._network import (
    Network,
    arguments,
    check_params,
    copied,
    flags_of,
    is_required,
)
from .task import Inputs


def equinox_network(model: Any) -> Network:
    """Returns the model as functions of its inexact arrays, a module without all else."""
    _refuse_state(model)
    flags = flags_of(model.__call__, given=("key",))
    key_argument = arguments(model.__call__).get("key")
    params, in_training = eqx.partition(
        eqx.nn.inference_mode(model, value=False), eqx.is_inexact_array
    )
    _, in_evaluation = eqx.partition(eqx.nn.inference_mode(model), eqx.is_inexact_array)
    check_params(params)

    def init(key: jax.Array, inputs: Inputs) -> PyTree:
        return copied(params)

    def train(params: PyTree, inputs: Inputs, key: jax.Array) -> PyTree:
        keys = {} if key_argument is None else {"key": key}
        try:
            return eqx.combine(params, in_training)(inputs, **keys, **flags.training)
        except RuntimeError as error:
            if "requires a key" not in str(error):
                raise
            raise ValueError(
                "a layer of the model needs a key, as eqx.nn.Dropout does: give the model's call "
                "an argument `key`, and pass it on"
            ) from error

    def evaluate(variables: PyTree, inputs: Inputs) -> PyTree:
        # Layers don't draw in inference mode, but a call may split the key that it needs.
        needed = key_argument is not None and is_required(key_argument)
        keys = {"key": jax.random.key(0)} if needed else {}
        return eqx.combine(variables, in_evaluation)(inputs, **keys, **flags.evaluation)

    return Network(init, train, evaluate)


def _refuse_state(model: Any) -> None:
    """Raises a ValueError for layers that keep state, BatchNorm among them."""
    is_stateful = lambda node: isinstance(node, eqx.nn.BatchNorm | eqx.nn.StateIndex)
    for path, node in jax.tree_util.tree_leaves_with_path(model, is_leaf=is_stateful):
        name = jax.tree_util.keystr(path) or "(top)"
        if isinstance(node, eqx.nn.BatchNorm):
            raise ValueError(
                f"the model has BatchNorm in {name}: it mixes the examples of a batch, so that no "
                "example has a gradient of its own to clip. Use eqx.nn.GroupNorm or LayerNorm "
                "instead"
            )
        if is_stateful(node):
            raise ValueError(
                f"the model keeps state beside its parameters, in {name}: "
                "it would carry private data past the noise. Use layers "
                "without such state"
            )
