"""Flax linen modules as networks."""

from typing import Any

import flax.linen as nn
import jax

from ..models import batchnorm
from ..types import PyTree
from .networks import Network, as_batch, flags, no_batch_norm, no_state, only
from .task import WithStatistics


def linen_network(model: nn.Module, batch_norm: bool) -> Network:
    """Wraps a linen module. Its parameters are the collection "params"."""
    trains: dict[str, Any] = flags(type(model).__call__, training=True)
    evaluates: dict[str, Any] = flags(type(model).__call__, training=False)

    def init(key: jax.Array, inputs: PyTree) -> PyTree:
        keys = {"params": key, "dropout": jax.random.fold_in(key, 1)}
        make = lambda keys, inputs: model.init(keys, inputs, **evaluates)
        state = dict(jax.eval_shape(make, keys, as_batch(inputs)))
        state.pop("params", None)
        statistics = state.pop("batch_stats", {})
        names = ", ".join(map(repr, batchnorm.layer_names(statistics))) if statistics else ""
        if statistics and not batch_norm:
            raise no_batch_norm(names)
        if batch_norm and not statistics:
            raise ValueError("batch_norm is True, and the model has no BatchNorm: leave it out")
        if state:
            raise no_state(", ".join(map(repr, state)))
        params: PyTree = jax.jit(make)(keys, as_batch(inputs)).get("params", {})
        return params

    def train(params: PyTree, inputs: PyTree, key: jax.Array) -> Any:
        rngs = {"dropout": key}
        return only(model.apply({"params": params}, as_batch(inputs), **trains, rngs=rngs))

    def evaluate(variables: PyTree, inputs: PyTree) -> Any:
        collections = {"params": variables}
        if isinstance(variables, WithStatistics):
            collections = {"params": variables.params, "batch_stats": variables.statistics}
        return only(model.apply(collections, as_batch(inputs), **evaluates))

    return Network(init, train, evaluate, model, lambda module, x: module(x, **trains))
