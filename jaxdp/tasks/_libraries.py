"""Finds out which library a model is of, without loading any other."""

from typing import Any

from ._network import OWN_TASK, Network

LINEN, NNX, EQUINOX, HAIKU = "flax.linen", "flax.nnx", "equinox", "haiku"
WANTED = "a Flax module (linen or nnx), an Equinox module, or a function transformed by Haiku"


def network_of(model: Any, batch_norm: bool) -> Network:
    """Returns a model as pure functions.

    Raises:
      TypeError: for something else than a model of the four libraries.
      ValueError: for a model that can't be trained privately, or for BatchNorm of a library whose
        BatchNorm can't.
    """
    if isinstance(model, type):
        raise TypeError(f"model is the class {model.__name__}: give an instance of it")
    library = _library(model)
    if library is None:
        raise TypeError(f"model is {model!r}: give {WANTED}; {OWN_TASK}")
    if library != HAIKU and not callable(model):
        raise TypeError(f"the model {type(model).__name__} has no __call__: give it one")
    if library == LINEN:
        from ._linen import linen_network

        return linen_network(model, batch_norm)
    if library == NNX:
        from ._nnx import nnx_network

        return nnx_network(model, batch_norm)
    if batch_norm:
        raise ValueError(
            f"batch_norm is True, and the model is of {library.capitalize()}: only the BatchNorm "
            "of Flax can be trained. Use GroupNorm or LayerNorm, and leave batch_norm out"
        )
    if library == EQUINOX:
        from ._equinox import equinox_network

        return equinox_network(model)
    from ._haiku import haiku_network

    return haiku_network(model)


def _library(model: Any) -> str | None:
    for base in type(model).__mro__:
        name = base.__name__
        if name == "Module":
            for library in (LINEN, NNX, EQUINOX):
                if f"{base.__module__}.".startswith(f"{library}."):
                    return library
        if base.__module__.startswith("haiku.") and name in ("Transformed", "TransformedWithState"):
            return HAIKU
    return None
