"""Models of Haiku: a function that `hk.transform` has turned into `init` and `apply`."""

from collections.abc import Callable
from typing import Any

import haiku as hk
import jax

from ..types import PyTree
from ._network import (
    Network,
    add_batch_axis,
    arguments,
    check_params,
    draws_in_evaluation,
    drop_batch_axis,
    flags_of,
)
from .task import Inputs

NO_STATE = (
    "it would carry private data past the noise. Use layers without such state: hk.GroupNorm or "
    "hk.LayerNorm in place of hk.BatchNorm"
)


def haiku_network(model: hk.Transformed | hk.TransformedWithState) -> Network:
    """Returns the model as functions of Haiku's dict of parameters."""
    stateful = isinstance(model, hk.TransformedWithState)
    flags = flags_of(model.apply, given=("params", "state", "rng"))
    takes_rng = "rng" in arguments(model.apply)

    def initialise(key: jax.Array, rows: PyTree) -> tuple[PyTree, PyTree]:
        # In training mode, as is usual: BatchNorm has no state to start with in the other one.
        made = model.init(key, rows, **flags.training)
        return made if stateful else (made, {})

    def init(key: jax.Array, inputs: Inputs) -> PyTree:
        rows = add_batch_axis(inputs)
        compiled = jax.jit(initialise)
        params, state = _told(lambda: jax.eval_shape(compiled, key, rows))
        if jax.tree.leaves(state):
            names = ", ".join(map(repr, state))
            raise ValueError(f"the model keeps state beside its parameters, in {names}: {NO_STATE}")
        check_params(params)
        return compiled(key, rows)[0]

    def call(params: PyTree, inputs: Inputs, key: jax.Array | None, flags: dict) -> PyTree:
        given: list[Any] = [{}] if stateful else []
        given += [key] if takes_rng else []
        outputs = _told(lambda: model.apply(params, *given, add_batch_axis(inputs), **flags))
        return drop_batch_axis(outputs[0] if stateful else outputs)

    def train(params: PyTree, inputs: Inputs, key: jax.Array) -> PyTree:
        return call(params, inputs, key, flags.training)

    def evaluate(variables: PyTree, inputs: Inputs) -> PyTree:
        # A model with a flag may ask for a key that it does not use. One without must not draw.
        key = jax.random.key(0) if flags.evaluation else None
        try:
            return call(variables, inputs, key, flags.evaluation)
        except ValueError as error:
            if type(error).__name__ != "MissingRNGError":
                raise
            raise draws_in_evaluation("hk.next_rng_key") from error

    return Network(init, train, evaluate)


def _told(function: Callable[[], Any]) -> Any:
    """Calls a function, and turns Haiku's advice to keep state into the advice not to."""
    try:
        return function()
    except ValueError as error:
        if type(error).__name__ != "NonEmptyStateError":
            raise
        raise ValueError(
            f"the model keeps state beside its parameters, as hk.BatchNorm does: {NO_STATE}"
        ) from error
