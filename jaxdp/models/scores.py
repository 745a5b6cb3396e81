"""Scores on the test records."""

from typing import NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ..datasets.records import Dataset
from .build import ROWS_AT_A_TIME, PyTree, logits_of


class Scores(NamedTuple):
    """Means over the labels of the test records."""

    accuracy: float
    loss: float  # cross-entropy in nats: its exponential is the perplexity


class Scorer(Protocol):
    def __call__(self, params: PyTree, batch_stats: PyTree | None = None) -> Scores: ...


def make_scorer(model: nn.Module, dataset: Dataset) -> Scorer:
    """Returns what scores parameters on the test records, which compiles once.

    It takes the parameters, and BatchNorm's statistics at them, if there is a BatchNorm.
    """

    @jax.jit
    def totals(
        params: PyTree, batch_stats: PyTree | None, x: jax.Array, y: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        logits = logits_of(model, dataset, params, x, batch_stats)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return jnp.sum(jnp.argmax(logits, axis=-1) == y), jnp.sum(losses)

    def score(params: PyTree, batch_stats: PyTree | None = None) -> Scores:
        right, loss, test = 0.0, 0.0, dataset.test
        for start in range(0, len(test), ROWS_AT_A_TIME):
            rows = slice(start, start + ROWS_AT_A_TIME)
            part = totals(params, batch_stats, test.inputs[rows], test.labels[rows])
            right, loss = right + float(part[0]), loss + float(part[1])
        return Scores(right / test.labels.size, loss / test.labels.size)

    return score


def evaluate(
    model: nn.Module, dataset: Dataset, params: PyTree, batch_stats: PyTree | None = None
) -> Scores:
    """Scores a model on the test records; `batch_stats` are BatchNorm's, at these parameters."""
    return make_scorer(model, dataset)(params, batch_stats)
