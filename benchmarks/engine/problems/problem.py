"""What a problem is, and the losses, parameters and random batches that most of them share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn


@dataclass(frozen=True)
class Problem:
    """A model to measure.

    Every leaf of `batch` has an axis of examples. `dense_fits` tells whether all per-example
    gradients fit into an ordinary memory (3 GB). `title` is the problem's name in a table.
    """

    loss: Callable[..., jax.Array]  # (params, x, y) of one example
    params: Any
    batch: tuple[Any, Any]
    microbatch_size: int | None = None
    dense_fits: bool = True
    title: str = ""
    # How far a clipped sum may be from that of vmap(grad), relatively. Norms that are bounds, as
    # those of standardised weights, clip a little more.
    agreement: float = 1e-4

    @property
    def rows(self) -> int:
        return len(jax.tree.leaves(self.batch)[0])


def images(rows: int, *shape: int) -> tuple[jax.Array, jax.Array]:
    """Returns random images `[rows, *shape]` and the labels, of ten classes."""
    x = jax.random.normal(jax.random.key(0), (rows, *shape))
    return x, jax.random.randint(jax.random.key(1), (rows,), 0, 10)


def texts(rows: int, length: int, vocabulary: int) -> tuple[jax.Array, jax.Array]:
    """Returns random tokens `[rows, length]` and as many to predict."""
    x = jax.random.randint(jax.random.key(0), (rows, length), 0, vocabulary)
    return x, jax.random.randint(jax.random.key(1), (rows, length), 0, vocabulary)


def cross_entropy(logits: jax.Array, y: jax.Array) -> jax.Array:
    """The mean over the positions of logits `[..., classes]` and labels `[...]`."""
    log_probabilities = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(log_probabilities, y[..., None], axis=-1))


def outputs(model: nn.Module, params: Any, x: jax.Array) -> jax.Array:
    """Returns what a Flax model without state makes of one example."""
    out = model.apply(params, x)
    assert isinstance(out, jax.Array)
    return out


def of_model(model: nn.Module, batch: tuple[jax.Array, jax.Array], title: str) -> Problem:
    """Returns the problem of a Flax model from an example to its logits."""
    params = jax.jit(model.init)(jax.random.key(2), batch[0][0])

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return cross_entropy(outputs(model, params, x), y)

    return Problem(loss, params, batch, title=title)


class Weights:
    """Draws weights for models in plain JAX, of a size that keeps the length of what they get."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(2)

    def __call__(self, *shape: int) -> np.ndarray:
        """Returns weights `[..., inputs, outputs]`."""
        drawn = self._rng.standard_normal(shape, np.float32)
        return drawn / np.sqrt(np.float32(shape[-2]))

    def table(self, *shape: int) -> np.ndarray:
        """Returns a table for look-ups."""
        return np.float32(0.02) * self._rng.standard_normal(shape, np.float32)
