"""The cures for losses that are not the loss of one example, for every place that notices."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp

NO_BATCH_NORM = (
    "BatchNorm mixes the examples of a batch, so no gradient belongs to one example. Use GroupNorm "
    "or LayerNorm; or clip batch units, with jaxdp.models.batchnorm.unit_loss and params alone "
    "(docs/guides/batchnorm.md)"
)

KEYS_BY_RECORD = (
    "Give every example a key of its own, as a leaf of the batch, that follows from its record's "
    "number and never from its place in the batch: "
    'step_key = jaxdp.dpsgd.jax_key(dropout_key, "dropout", step), '
    "keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, indices), where dropout_key = "
    "jaxdp.secret_key() is for nothing else (docs/guides/noise.md)"
)


@contextmanager
def tell_the_cure(example: tuple) -> Iterator[None]:
    """Around the first trace of a loss: turns what BatchNorm and nnx.Dropout raise into a cure.

    All other errors stay as they are. Those that a wrong shape may cause get a note.

    Args:
      example: what the loss is traced with, after the parameters.

    Raises:
      ValueError: with the cure, from the error of JAX or Flax.
    """
    try:
        yield
    except Exception as error:
        told = _cure(error)
        if told is not None:
            raise ValueError(told) from error
        if isinstance(error, TypeError | ValueError | IndexError):
            error.add_note(
                f"jaxdp called the loss with {shapes(example)}. Layers that want a batch axis get "
                "x[None]"
            )
        raise


def shapes(example: tuple) -> str:
    """The shapes of one example's arrays, in words."""
    each = ", ".join(str(jnp.shape(leaf)) for leaf in jax.tree.leaves(example))
    return f"arguments of shapes {each}, without a batch axis"


def _cure(error: Exception) -> str | None:
    text = str(error).partition(" (https://")[0]
    axis = re.search(r"unbound axis name: (\w+)", text)
    if isinstance(error, NameError) and axis:
        return (
            f"the loss communicates over the axis {axis[1]!r}, and there is none inside the loss "
            f"of one example. {NO_BATCH_NORM}. What else is added up over examples is added up "
            "outside the loss, after clipping"
        )
    if not type(error).__module__.startswith("flax."):
        return None
    said = f"({type(error).__name__}: {text})"
    if "batch_stats" in text or "BatchStat" in text:
        return f"a layer of the loss keeps statistics of its batch {said}. {NO_BATCH_NORM}"
    if re.search(r"Cannot mutate Rng", text):
        return (
            f"the loss draws from random state that it closes over {said}: every example would get "
            f"the same numbers. {KEYS_BY_RECORD}. nnx.Dropout takes one: dropout(x, rngs=key)"
        )
    return None
