"""Scores parameters on the test records."""

from typing import NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ..datasets.records import Dataset
from ..types import PyTree
from ._forward import ROWS_AT_A_TIME, logits_of


class Scores(NamedTuple):
    """Means over the labels of the test records.

    Attributes:
      accuracy: share of labels that get the largest logit.
      loss: cross-entropy in nats. Its exponential is the perplexity.
    """

    accuracy: float
    loss: float


class Scorer(Protocol):
    """A function from parameters, and BatchNorm's statistics at them, to scores."""

    def __call__(self, params: PyTree, batch_stats: PyTree | None = None) -> Scores: ...


def make_scorer(model: nn.Module, dataset: Dataset) -> Scorer:
    """Returns a function that scores parameters on the test records. It compiles once.

    Args:
      model: from `make_model`.
      dataset: the data set of the test records.
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
    """Scores parameters on the test records.

    Args:
      model: from `make_model`.
      dataset: the data set of the test records.
      params: the collection "params".
      batch_stats: the statistics of a model with BatchNorm, at these parameters.
    """
    return make_scorer(model, dataset)(params, batch_stats)
