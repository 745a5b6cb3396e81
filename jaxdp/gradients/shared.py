"""What all examples share: frozen weights and large tables, held once and never differentiated."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax

from ..types import PyTree


def with_shared(loss_fn: Callable[..., Any], shared: PyTree) -> Callable[..., Any]:
    """The loss of `(params, *example)`, with what all examples share filled in.

    Closed over, it gets no axis of examples from `vmap`, and no gradient.

    Raises:
      TypeError: if the loss has no parameter `shared`; or if it wants one, and `shared` is None.
    """
    try:
        parameters = dict(inspect.signature(loss_fn).parameters)
    except (TypeError, ValueError):  # a callable that does not tell: Python's own error must do
        parameters = {}
    own = parameters.get("shared")
    if shared is None:
        if own is not None and own.kind is own.KEYWORD_ONLY and own.default is own.empty:
            raise TypeError(
                "the loss has a parameter shared, and shared is None: call "
                "per_example_grads(loss)(params, batch, mask, shared=...)"
            )
        return loss_fn
    if parameters and own is None and all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
        raise TypeError(
            f"shared is given, and the loss takes ({', '.join(parameters)}), without shared: write "
            "it as loss(params, *example, shared)"
        )
    return functools.partial(loss_fn, shared=shared)


def shared_last(
    loss_fn: Callable[..., Any], shared: PyTree
) -> tuple[Callable[..., Any], list[Any]]:
    """A loss of `(params, *example, arrays)`, and the arrays (or shapes) in `shared`.

    What is no array stays inside: the activation functions of an Equinox module, say.
    """
    leaves, structure = jax.tree.leaves(shared), jax.tree.structure(shared)
    places = [
        i for i, leaf in enumerate(leaves) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")
    ]

    def loss(params: PyTree, *example_and_arrays: Any) -> Any:
        *example, arrays = example_and_arrays
        filled = list(leaves)
        for place, array in zip(places, arrays, strict=True):
            filled[place] = array
        return with_shared(loss_fn, jax.tree.unflatten(structure, filled))(params, *example)

    return loss, [leaves[i] for i in places]
