"""Class-wise scores and the confusion matrix of a classifier: exact, or with noise.

Of public test records, all numbers are exact. Of private ones, nothing leaves but a noisy matrix:

1. The matrix counts records by (true class, predicted class). A record's prediction is made by one
   program that sees this record alone, so that it does not depend on the others, not even by
   rounding. Classes are those of the model's shape, not those that occur. A record with a class
   outside them is in no cell. So a record that is added or removed changes one cell, by 1.
2. Every cell gets discrete Laplace noise, P(n) ~ exp(-ε·|n|), drawn exactly (`discrete_laplace`).
   For two such data sets, the probability of every noisy matrix differs by a factor of at most
   exp(ε): the evaluation is ε-differentially private, without a δ. Replacing a record costs 2ε.
3. The test records' own ledger has paid ε before the noise is drawn (`score_ledger`). ε of several
   evaluations add up, of any releases, and may be chosen after seeing earlier results.
4. All that is printed is computed from the noisy matrix and public facts, also the number of
   records and the accuracy. That costs nothing more.

The model's own guarantee is about its training records. It stays as it is, because test records
are others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import jax
import numpy as np

from ...datasets.records import Records
from ...dpsgd.discrete_laplace import discrete_laplace
from ...tasks.task import inputs_of
from ..columns import GAP
from .parameters import Release

Noise = Callable[[Fraction], int]


@dataclass(frozen=True)
class Confusion:
    """Counts of records by class.

    Attributes:
      counts: `[classes, classes] int64`: rows are true classes, columns predicted ones. With noise,
        some may be below 0.
    """

    counts: np.ndarray

    @property
    def support(self) -> np.ndarray:
        """Records of every class, `[classes]`, at least 0."""
        return np.maximum(self.counts.sum(1), 0)

    @property
    def recall(self) -> np.ndarray:
        """The share of a class that is recognised, `[classes]`; NaN for a class without records."""
        return _share(np.diag(self.counts), self.counts.sum(1))

    @property
    def precision(self) -> np.ndarray:
        """The share of the predictions of a class that are right; NaN if it is never predicted."""
        return _share(np.diag(self.counts), self.counts.sum(0))

    @property
    def accuracy(self) -> float:
        """The share of records that are recognised; NaN without records."""
        return float(_share(np.trace(self.counts), self.counts.sum()))

    def with_noise(self, epsilon: Fraction, noise: Noise = discrete_laplace) -> "Confusion":
        """The same with noise in every cell. It must be paid for before."""
        drawn = [[noise(epsilon) for _ in row] for row in self.counts]
        return Confusion(self.counts + np.array(drawn, np.int64))


def num_classes(release: Release, records: Records) -> int:
    """How many classes a classifier has, from the shapes of what it predicts.

    Raises:
      ValueError: if the release can't predict, or is no classifier of whole records.
    """
    zeros = jax.tree.map(lambda array: array[None], inputs_of(records.zero()))
    predicted = release.predict(zeros)
    one = records.form
    label = one[1] if isinstance(one, tuple) and len(one) == 2 else None
    right = (
        isinstance(predicted, dict)
        and {"class", "scores"} <= predicted.keys()
        and (np.ndim(predicted["class"]), np.ndim(predicted["scores"])) == (1, 2)
        and predicted["class"].dtype.kind in "iu"
        and label is not None
        and label.shape == ()
        and label.dtype.kind in "iu"
    )
    if not right:
        raise ValueError(
            "confusion is for classifiers: it needs a task that predicts {'class': a whole number, "
            "'scores': one for each class} and records that are pairs (input, label) with one "
            "label each. Leave the option out"
        )
    return int(predicted["scores"].shape[1])


def count(release: Release, records: Records, classes: int, *, each_alone: bool) -> Confusion:
    """Counts records by their class and the one that a release predicts.

    Args:
      release: a classifier.
      records: pairs (input, label).
      classes: how many there are; records with others are not counted.
      each_alone: whether every record is predicted by itself, so that no rounding depends on the
        other ones.
    """
    inputs, labels = records.good_fields()
    step = 1 if each_alone else len(labels)
    rows: Callable[[int], Any] = lambda i: jax.tree.map(lambda a: a[i : i + step], inputs)
    predicted = np.concatenate(
        [release.predict(rows(i))["class"] for i in range(0, len(labels), step)]
    ).astype(np.int64)
    labels = labels.astype(np.int64)
    known = (labels >= 0) & (labels < classes) & (predicted >= 0) & (predicted < classes)
    cells = labels[known] * classes + predicted[known]
    return Confusion(np.bincount(cells, minlength=classes**2).reshape(classes, classes))


def class_table(confusion: Confusion) -> list[str]:
    """Lines with support, recall and precision of every class."""
    columns = [
        ["class", *map(str, range(len(confusion.counts)))],
        ["support", *map(str, confusion.support)],
        ["recall", *map(shown, confusion.recall)],
        ["precision", *map(shown, confusion.precision)],
    ]
    return _right_aligned(columns)


def matrix_table(confusion: Confusion, width: int) -> list[str]:
    """Lines of the matrix, in blocks of columns that fit into a width; below 0 is shown as 0."""
    counts = np.maximum(confusion.counts, 0)
    classes = [str(i) for i in range(len(counts))]
    head = ["true", *classes]
    columns = [[name, *map(str, counts[:, i])] for i, name in enumerate(classes)]
    lines: list[str] = []
    block: list[list[str]] = [head]
    for column in columns:
        if len(block) > 1 and _width([*block, column]) > width:
            lines += [*_right_aligned(block), ""]
            block = [head]
        block.append(column)
    return [*lines, *_right_aligned(block)]


def shown(share: float) -> str:
    """A share in four digits; of nothing there is none."""
    return "none" if np.isnan(share) else f"{share:.4f}"


def _share(part: Any, whole: Any) -> np.ndarray:
    """Part over whole, from 0 to 1; NaN where the whole is not above 0."""
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    known = np.where(whole > 0, whole, np.nan)
    return np.clip(part / known, 0.0, 1.0)


def _width(columns: list[list[str]]) -> int:
    return sum(max(map(len, column)) for column in columns) + GAP * (len(columns) - 1)


def _right_aligned(columns: list[list[str]]) -> list[str]:
    padded = [[cell.rjust(max(map(len, column))) for cell in column] for column in columns]
    return [(" " * GAP).join(row) for row in zip(*padded, strict=True)]
