"""Equinox modules as networks: they take one record, without a batch axis."""

import inspect
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..types import PyTree
from .networks import Network, no_state


def equinox_network(model: eqx.Module) -> Network:
    """Wraps an Equinox module. Its parameters are its floating-point arrays, in its own tree.

    `init` returns the module's own parameters.
    """
    is_index = lambda leaf: isinstance(leaf, eqx.nn.StateIndex)
    if any(map(is_index, jax.tree.leaves(model, is_leaf=is_index))):
        raise no_state("an eqx.nn.StateIndex, as eqx.nn.BatchNorm has")
    params, trains = eqx.partition(model, eqx.is_inexact_array)
    _, evaluates = eqx.partition(eqx.nn.inference_mode(model), eqx.is_inexact_array)
    takes_key = "key" in inspect.signature(type(model).__call__).parameters

    def init(key: jax.Array, inputs: PyTree) -> PyTree:
        return jax.tree.map(jnp.array, params)

    def train(values: PyTree, inputs: PyTree, key: jax.Array) -> Any:
        module: Any = eqx.combine(values, trains)
        return module(inputs, key=key) if takes_key else module(inputs)

    def evaluate(values: PyTree, inputs: PyTree) -> Any:
        module: Any = eqx.combine(values, evaluates)
        return module(inputs)

    return Network(init, train, evaluate)
