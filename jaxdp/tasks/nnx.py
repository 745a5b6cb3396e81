"""Flax nnx modules as networks."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ..types import PyTree
from .networks import Network, as_batch, no_batch_norm, no_state, only
from .task import WithStatistics


def nnx_network(model: nnx.Module, batch_norm: bool) -> Network:
    """Wraps an nnx module. Its parameters are nested dicts of the values of `nnx.Param`.

    The module itself is not changed, and `init` returns its own parameters.
    """
    trained, evaluated = nnx.clone(model), nnx.clone(model)
    trained.train()
    evaluated.eval()
    graph, *states = nnx.split(trained, nnx.Param, nnx.RngState, nnx.BatchStat, ...)
    params, draws, statistics, rest = states
    evaluated_graph = nnx.graphdef(evaluated)
    layers = {"/".join(map(str, path[:-1])) for path, _ in nnx.to_flat_state(statistics)}
    if layers and not batch_norm:
        raise no_batch_norm(", ".join(map(repr, sorted(layers))))
    if batch_norm and not layers:
        raise ValueError("batch_norm is True, and the model has no BatchNorm: leave it out")
    if jax.tree.leaves(rest):
        names = {repr("/".join(map(str, path))) for path, _ in nnx.to_flat_state(rest)}
        raise no_state(", ".join(sorted(names)))

    def init(key: jax.Array, inputs: PyTree) -> PyTree:
        return jax.tree.map(jnp.array, nnx.to_pure_dict(params))

    def train(values: PyTree, inputs: PyTree, key: jax.Array) -> Any:
        state = (_filled(params, values), _drawn(draws, key), statistics, rest)
        return only(nnx.merge(graph, *state)(as_batch(inputs)))

    def evaluate(variables: PyTree, inputs: PyTree) -> Any:
        values, found = variables, statistics
        if isinstance(variables, WithStatistics):
            values, found = variables.params, _filled(statistics, variables.statistics)
        module = nnx.merge(evaluated_graph, _filled(params, values), draws, found, rest)
        return only(module(as_batch(inputs)))

    return Network(init, train, evaluate, trained)


def _filled(state: nnx.State, values: PyTree) -> nnx.State:
    """The state with other values, from the nested dicts of its pure form."""
    filled = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(filled, values)
    return filled


def _drawn(draws: nnx.State, key: jax.Array) -> nnx.State:
    """The random state with streams of this key: each has a key of its own, and begins at 0."""
    pure = nnx.to_pure_dict(draws)
    leaves, structure = jax.tree.flatten(pure)
    fresh = [
        jax.random.split(jax.random.fold_in(key, i), jnp.shape(leaf))
        if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
        else jnp.zeros_like(leaf)
        for i, leaf in enumerate(leaves)
    ]
    return _filled(draws, jax.tree.unflatten(structure, fresh))
