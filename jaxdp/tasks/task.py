"""A task: what is learnt, as pure functions of one record."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from ..types import PyTree


class WithStatistics(NamedTuple):
    """What `scores` and `predict` of a task get in place of the parameters, if it has statistics.

    Attributes:
      params: the parameters.
      statistics: from `Task.statistics`.
    """

    params: PyTree
    statistics: PyTree


@dataclass(frozen=True)
class Task:
    """What is learnt, as pure functions of one record.

    A record is any pytree of arrays. Arguments may be traced, so the functions are written in JAX.

    Attributes:
      init: `(key, record) -> params`. The record is all zeros: only its shapes and dtypes count.
      loss: `(params, record, key) -> scalar`. The key is this record's at this step, for dropout
        and augmentation. None: the records of a unit share something, as in BatchNorm; then there
        is a `unit_loss`.
      scores: `(params, record) -> {name: scalar}`, averaged over the test records. None: there are
        no scores.
      predict: `(params, inputs) -> outputs` of one record. The inputs are the first part of a
        record that is a tuple, else the whole record. None: the release can't predict.
      unit_loss: `(params, records, keys, mask) -> scalar`, the mean loss of the n records of a
        batch unit, `[n, ...]`, where the mask `[n]` is True. None: the mean of `loss`.
      statistics: `(params, public records) -> statistics`, what evaluation and release need beside
        the parameters; `scores` and `predict` then get `WithStatistics`. None: nothing.
      name: what it is, in a word or two, for the privacy statement. It is public.

    Raises:
      TypeError: for what is no function.
      ValueError: for a task without any loss, or an empty name.
    """

    init: Callable[[jax.Array, PyTree], PyTree]
    loss: Callable[[PyTree, PyTree, jax.Array], jax.Array] | None
    scores: Callable[[PyTree, PyTree], dict[str, jax.Array]] | None = None
    predict: Callable[[PyTree, PyTree], PyTree] | None = None
    unit_loss: Callable[..., jax.Array] | None = None
    statistics: Callable[[PyTree, PyTree], PyTree] | None = None
    name: str = "custom"

    def __post_init__(self) -> None:
        for field in ("init", "loss", "scores", "predict", "unit_loss", "statistics"):
            value = getattr(self, field)
            if not callable(value) and (value is not None or field == "init"):
                raise TypeError(f"{field} is {value!r}: give a function, see jaxdp.Task")
        if self.loss is None and self.unit_loss is None:
            raise ValueError("the task has no loss: give loss, or unit_loss for batch units")
        if not (isinstance(self.name, str) and self.name.strip() and self.name.isprintable()):
            raise ValueError(f"name is {self.name!r}: give a word or two, as 'classifier'")


def inputs_of(record: PyTree) -> Any:
    """The inputs of a record: its first part if it is a tuple, else the record."""
    return record[0] if isinstance(record, tuple) else record
