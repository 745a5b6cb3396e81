"""Models of `flax.linen`."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
from flax import errors

from ..types import PyTree
from ._batch_units import layer_names, statistics_of, statistics_parts, unit_loss_of
from ._network import (
    Function,
    Network,
    add_batch_axis,
    check_params,
    draws_in_evaluation,
    drop_batch_axis,
    flags_of,
    no_batch_norm,
    refuse_batch_norm,
    refuse_state,
    said,
)
from .task import Inputs


def linen_network(model: nn.Module, batch_norm: bool) -> Network:
    """Returns the model as functions of its collection "params"."""
    flags = flags_of(model.__call__)

    def init(key: jax.Array, inputs: Inputs) -> PyTree:
        rows = add_batch_axis(inputs)
        initialise = jax.jit(functools.partial(model.init, **flags.evaluation))
        _check_collections(dict(jax.eval_shape(initialise, key, rows)), batch_norm)
        return initialise(key, rows)["params"]

    def train(params: PyTree, inputs: Inputs, key: jax.Array) -> PyTree:
        # Streams of other names than "dropout" come from "params".
        rngs = {"dropout": key, "params": jax.random.fold_in(key, 1)}
        variables, rows = {"params": params}, add_batch_axis(inputs)
        return drop_batch_axis(model.apply(variables, rows, rngs=rngs, **flags.training))

    def evaluate(variables: PyTree, inputs: Inputs) -> PyTree:
        collections = {"params": variables}
        if batch_norm:
            collections["params"], collections["batch_stats"] = statistics_parts(variables)
        rows = add_batch_axis(inputs)
        with _told():
            return drop_batch_axis(model.apply(collections, rows, **flags.evaluation))

    if not batch_norm:
        return Network(init, train, evaluate)

    def unit_loss(losses: Function) -> Function:
        unit = unit_loss_of(model, flags, losses)

        def loss(*arguments: Any) -> jax.Array:
            try:
                return unit(*arguments)
            except errors.InvalidRngError as error:
                raise ValueError(
                    "the model has BatchNorm and draws random numbers in training, as dropout does "
                    f"({said(error)}): one of the two must go"
                ) from error

        return loss

    return Network(
        init, train, evaluate, unit_loss, lambda prepare: statistics_of(model, flags, prepare)
    )


def _check_collections(state: dict[str, Any], batch_norm: bool) -> None:
    """Refuses all collections but parameters, and statistics if they are allowed."""
    check_params(state.pop("params", {}))
    statistics = state.pop("batch_stats", {})
    if statistics and not batch_norm:
        refuse_batch_norm(layer_names(statistics), "flax.linen.GroupNorm")
    if state:
        refuse_state(list(state))
    if batch_norm and not statistics:
        raise no_batch_norm()


@contextmanager
def _told() -> Iterator[None]:
    """Turns what layers raise that don't know of evaluation into one line with the cure."""
    try:
        yield
    except errors.InvalidRngError as error:
        raise draws_in_evaluation(said(error)) from error
    except errors.ModifyScopeVariableError as error:
        raise ValueError(
            f"BatchNorm takes the statistics of its batch in evaluation ({said(error)}): give "
            "the model's call an argument `train`, and BatchNorm use_running_average=not train"
        ) from error
