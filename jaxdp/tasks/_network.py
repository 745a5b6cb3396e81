"""A model of any library as pure functions of one record's inputs, and what the makers share."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..types import PyTree

OWN_TASK = "for anything else, write a jaxdp.Task of your own functions"

# What says in a model's call whether it is trained, and the value that says so.
TRAINING_FLAGS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "inference": False,
}

Function = Callable[..., Any]


class Network(NamedTuple):
    """A model as pure functions of the inputs of one record, without a batch axis.

    Attributes:
      init: `(key, inputs) -> params`.
      train: `(params, inputs, key) -> outputs`, with dropout.
      evaluate: `(variables, inputs) -> outputs`, without. With BatchNorm, the variables are
        `WithStatistics`.
      unit_loss: of a model with BatchNorm: from `(outputs, targets) -> [n]`, the losses of n
        records, to `(params, inputs, targets, mask) -> scalar`.
      statistics: of a model with BatchNorm: from a function that prepares the inputs of n records
        to `(params, inputs) -> statistics`.
    """

    init: Function
    train: Function
    evaluate: Function
    unit_loss: Callable[[Function], Function] | None = None
    statistics: Callable[[Function], Function] | None = None


class Flags(NamedTuple):
    """The named arguments with which a model is called in training and in evaluation."""

    training: dict[str, Any]
    evaluation: dict[str, Any]


def arguments(function: Function) -> dict[str, inspect.Parameter]:
    """The arguments of a function by their names, without `*args` and `**kwargs`."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(function).parameters
    return {name: p for name, p in found.items() if p.kind not in variadic}


def is_required(argument: inspect.Parameter) -> bool:
    return argument.default is inspect.Parameter.empty


def flags_of(function: Function, given: Sequence[str] = ()) -> Flags:
    """Finds the flags that a model's call takes.

    Args:
      function: the call.
      given: names of arguments that it gets, besides the inputs.

    Raises:
      TypeError: if it needs more arguments than the inputs, flags and those given.
    """
    _, *others = [name for name in arguments(function) if name not in given] or [""]
    training = {name: TRAINING_FLAGS[name] for name in others if name in TRAINING_FLAGS}
    for name in others:
        if name not in training and is_required(arguments(function)[name]):
            raise TypeError(
                f"the model's call needs the argument {name!r}: it gets the inputs of a record, "
                f"and flags named {', '.join(TRAINING_FLAGS)}. Give {name!r} a default, or put it "
                "into the inputs as a dict or tuple"
            )
    return Flags(training, {name: not value for name, value in training.items()})


def add_batch_axis(inputs: PyTree) -> PyTree:
    """`[...]` to `[1, ...]`, for every array."""
    return jax.tree.map(lambda x: jnp.asarray(x)[None], inputs)


def drop_batch_axis(outputs: PyTree) -> PyTree:
    """`[1, ...]` to `[...]`, for every array.

    Raises:
      ValueError: if an array does not begin with an axis of length 1.
    """
    for leaf in jax.tree.leaves(outputs):
        if jnp.shape(leaf)[:1] != (1,):
            raise ValueError(
                f"the model returns shape {jnp.shape(leaf)} for a batch of one record, [1, ...]: "
                "keep the records as the first axis of what it returns"
            )
    return jax.tree.map(lambda x: x[0], outputs)


def check_params(params: PyTree) -> None:
    """Raises a ValueError unless all parameters are real floating arrays, and there are some."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError("the model has no parameters: there is nothing to train")
    for path, leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"parameter {jax.tree_util.keystr(path)} of the model has dtype {leaf.dtype}: only "
                "real floating numbers can be trained. Keep constants apart from the parameters; "
                "if it has the dtype of the inputs, make those float32 with preprocess"
            )


def copied(params: PyTree) -> PyTree:
    """A copy, so that a trainer that donates its parameters leaves the model's own as they are."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)


def refuse_batch_norm(names: Sequence[str], layer: str) -> None:
    """Raises the error about layers with statistics, where single examples are clipped."""
    raise ValueError(
        f"the model has BatchNorm in layer {', '.join(map(repr, names))}: it mixes the examples of "
        f"a batch, so that no example has a gradient of its own to clip. Use {layer} instead, or "
        "clip batch units, with batch_norm=True (docs/guides/batchnorm.md)"
    )


def refuse_state(names: Sequence[str]) -> None:
    """Raises the error about state beside the parameters."""
    raise ValueError(
        f"the model keeps state beside its parameters, in {', '.join(map(repr, names))}: it would "
        "carry private data past the noise. Use layers without such state"
    )


def no_batch_norm() -> ValueError:
    return ValueError("batch_norm is True, and the model has no BatchNorm: leave it out")


def draws_in_evaluation(error: str) -> ValueError:
    """The error of a model whose dropout does not stop in evaluation."""
    return ValueError(
        f"the model draws random numbers in evaluation ({error}): give its call an argument "
        "`train`, and draw only where it is True"
    )


def said(error: Exception) -> str:
    """What an error of Flax says, without the link to its page."""
    return str(error).partition(" (https://")[0]
