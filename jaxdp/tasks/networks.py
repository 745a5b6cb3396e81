"""What the model of any library is for a task: parameters, and an output for one record.

A library is known by the module of a model's class, so that nothing is imported that is not there.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ..types import PyTree


@dataclass(frozen=True)
class Network:
    """A model as pure functions of the inputs of one record.

    Attributes:
      init: `(key, inputs) -> params`.
      train: `(params, inputs, key) -> output`, with dropout.
      evaluate: `(variables, inputs) -> output`, without; the variables are the parameters, or
        `WithStatistics`.
      model: the model itself, for `batchnorm`.
      training_call: `(model, inputs [n, ...]) -> outputs`, for `batchnorm`; None: by a plain call.
    """

    init: Callable[[jax.Array, PyTree], PyTree]
    train: Callable[[PyTree, PyTree, jax.Array], Any]
    evaluate: Callable[[PyTree, PyTree], Any]
    model: Any = None
    training_call: Callable[[Any, PyTree], Any] | None = None


def make_network(model: Any, batch_norm: bool) -> Network:
    """Wraps a model of Flax linen, Flax nnx, Equinox or Haiku.

    Args:
      model: the model.
      batch_norm: whether it may have BatchNorm of Flax.

    Raises:
      TypeError: for something else.
      ValueError: for a model that mixes records, or keeps state.
    """
    modules = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    modules |= {".".join(cls.__module__.split(".")[:2]) for cls in type(model).__mro__}
    if not isinstance(model, type):
        if "flax.linen" in modules:
            from .linen import linen_network

            return linen_network(model, batch_norm)
        if "flax.nnx" in modules:
            from .nnx import nnx_network

            return nnx_network(model, batch_norm)
        if batch_norm:
            raise ValueError(
                f"batch_norm is True, and the model is a {type(model).__name__}: only BatchNorm of "
                "Flax linen and nnx can be trained in batch units"
            )
        if "equinox" in modules:
            from .equinox import equinox_network

            return equinox_network(model)
        if "haiku" in modules:
            from .haiku import haiku_network

            return haiku_network(model)
    what = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
    raise TypeError(
        f"model is {what}: give an instance of a Flax linen, nnx or Equinox module, or "
        "hk.transform(f) of Haiku; or write a jaxdp.Task of your own functions"
    )


def as_batch(inputs: PyTree) -> PyTree:
    """The inputs of one record as a batch of one."""
    return jax.tree.map(lambda x: jnp.asarray(x)[None], inputs)


def only(outputs: PyTree) -> Any:
    """The output of the one record in a batch."""
    return jax.tree.map(lambda x: x[0], outputs)


def flags(call: Callable[..., Any], training: bool) -> dict[str, bool]:
    """The arguments by which a model is told whether it is trained."""
    names = inspect.signature(call).parameters
    told = {name: training for name in ("train", "training", "is_training") if name in names}
    return told | ({"deterministic": not training} if "deterministic" in names else {})


def no_batch_norm(layers: str) -> ValueError:
    """The error about a model with BatchNorm."""
    return ValueError(
        f"the model has BatchNorm in layer {layers}: it mixes the examples of a batch, so that no "
        "example has a gradient of its own to clip. Use GroupNorm instead; or say batch_norm=True, "
        "and clip batch units (jaxdp.clip_batch), with public records for its statistics"
    )


def no_state(what: str) -> ValueError:
    """The error about a model that keeps state."""
    return ValueError(
        f"the model keeps state beside its parameters, in {what}: it would carry private data past "
        "the noise. Use layers without such state"
    )
