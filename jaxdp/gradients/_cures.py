"""The cures for losses that are not the loss of one example, for every place that notices."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

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
def tell_the_cure() -> Iterator[None]:
    """Around the first trace of a loss: turns what BatchNorm and nnx.Dropout raise into a cure.

    Raises:
      ValueError: with the cure, from the error of JAX or Flax. All other errors stay as they are.
    """
    try:
        yield
    except Exception as error:
        told = _cure(error)
        if told is None:
            raise
        raise ValueError(told) from error


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
