"""Models of `flax.nnx`: the instance is split, and never changed."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import errors, nnx

from ..types import PyTree
from ._batch_units import statistics_of, statistics_parts, unit_loss_of
from ._network import (
    Function,
    Network,
    add_batch_axis,
    arguments,
    check_params,
    copied,
    draws_in_evaluation,
    drop_batch_axis,
    flags_of,
    is_required,
    no_batch_norm,
    refuse_batch_norm,
    refuse_state,
    said,
)
from .task import Inputs


def nnx_network(model: nnx.Module, batch_norm: bool) -> Network:
    """Returns the model as functions of the pure nested dict of its parameters."""
    flags = flags_of(model.__call__, given=("rngs",))
    graph, *states = nnx.split(model, nnx.Param, nnx.RngState, nnx.BatchStat, ...)
    params, random, statistics, others = states
    own_params = nnx.to_pure_dict(params)
    check_params(own_params)
    _check_state(statistics, others, batch_norm)
    streams, structure = jax.tree.flatten(random)
    rngs_argument = arguments(model.__call__).get("rngs")

    def init(key: jax.Array, inputs: Inputs) -> PyTree:
        return copied(own_params)

    def train(params: PyTree, inputs: Inputs, key: jax.Array) -> PyTree:
        keys = _streams_of_record(streams, key)
        copy = nnx.merge(graph, params, jax.tree.unflatten(structure, keys), statistics, others)
        copy.train()
        more: dict[str, Any] = {}
        if rngs_argument is not None:
            more["rngs"] = nnx.Rngs(jax.random.fold_in(key, len(streams)))
        try:
            return drop_batch_axis(copy(add_batch_axis(inputs), **flags.training, **more))
        except errors.TraceContextError as error:
            raise ValueError(
                f"the model changes state that is not its own ({said(error)}), such as random "
                "state of another model. Make every layer an attribute of the model, with rngs of "
                "its own"
            ) from error

    def evaluate(variables: PyTree, inputs: Inputs) -> PyTree:
        params, found = statistics_parts(variables) if batch_norm else (variables, statistics)
        copy = nnx.merge(graph, params, jax.tree.unflatten(structure, streams), found, others)
        copy.eval()
        more = {}
        if rngs_argument is not None and is_required(rngs_argument):
            more["rngs"] = nnx.Rngs(0)
        outputs = copy(add_batch_axis(inputs), **flags.evaluation, **more)
        after = jax.tree.leaves(nnx.state(copy, nnx.RngState))
        if any(new is not old for new, old in zip(after, streams, strict=True)):
            raise draws_in_evaluation("from an nnx.RngStream")
        return drop_batch_axis(outputs)

    if not batch_norm:
        return Network(init, train, evaluate)

    def statistics_from(prepare: Function) -> Function:
        found = statistics_of(model, flags, prepare)
        return lambda params, inputs: nnx.to_pure_dict(found(params, inputs))

    return Network(
        init, train, evaluate, lambda losses: unit_loss_of(model, flags, losses), statistics_from
    )


def _streams_of_record(streams: list[jax.Array], key: jax.Array) -> list[jax.Array]:
    """Random state of one record at one step: keys that follow from its key, and counts of 0."""
    return [
        jax.random.split(jax.random.fold_in(key, i), leaf.shape)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else jnp.zeros_like(leaf)
        for i, leaf in enumerate(streams)
    ]


def _check_state(statistics: nnx.State, others: nnx.State, batch_norm: bool) -> None:
    """Refuses all variables but parameters and random state. Plain arrays are constants."""
    layers = {path[:-1]: "/".join(map(str, path[:-1])) or "(top)" for path in _paths(statistics)}
    if layers and not batch_norm:
        refuse_batch_norm(list(layers.values()), "nnx.GroupNorm")
    if _paths(others):
        refuse_state(["/".join(map(str, path)) for path in _paths(others)])
    if batch_norm and not layers:
        raise no_batch_norm()


def _paths(state: nnx.State) -> list[tuple]:
    """The places of the variables in a state."""
    return [path for path, leaf in nnx.to_flat_state(state) if isinstance(leaf, nnx.Variable)]
