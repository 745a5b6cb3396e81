"""A task: what is learnt, as pure functions of one record."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from ..types import PyTree

Record = Any  # a pytree of arrays, those of one record
Records = Any  # the same pytree, every array with an axis of records in front
Inputs = Any  # the part of a record that a model sees


@dataclass(frozen=True)
class Task:
    """What is learnt, as pure functions of *one* record. A record is any pytree of arrays.

    Attributes:
      init: `(key, record) -> params`. The record holds zeros: only its shapes and dtypes matter.
      loss: `(params, record, key) -> scalar`, the loss of one record, without a batch axis. `key`
        is a typed key of JAX, of this record at this step: for dropout and augmentation. None if
        `unit_loss` is given and a record has no loss of its own, as with BatchNorm.
      scores: `(variables, record) -> {name: scalar}`. They are averaged over the test records.
      predict: `(variables, inputs) -> outputs`, of one record: `inputs` is `inputs_of(record)`.
      unit_loss: `(params, records, keys, mask) -> scalar`, the mean loss of a batch unit of n
        records: all arrays are `[n, ...]`, keys and mask `[n]`, and records count where `mask` is
        True. None: the mean of `loss`.
      statistics: `(params, public records [n, ...]) -> statistics`, which evaluation needs beside
        the parameters (those of BatchNorm). They must not come from private records.
      name: what it is, in a word or two, for the privacy statement.
      check: `(records [n, ...], prediction) -> WrongRecord or None`, called before anything is
        spent, for some records at a time: NumPy arrays, and the shapes of what `predict` returns.
        It finds a record that can't be learnt.
      measured: `(record) -> {path: numbers}`, which the first step of a run takes the private mean
        of, over its batch: instead of an update, it puts the means in the place of the parameters
        with these paths (as "mean", or "layer/mean"), which are not trained. So a model can
        subtract a mean of its inputs. It costs that step and no more ε. A record's numbers, those
        of all paths together, are scaled down to a root mean square of 1 if they exceed it. The
        clipping must be individual. No loss is shown for that step.

    `variables` are the parameters; or `WithStatistics`, if `statistics` is given.

    Raises:
      TypeError: if something else than a function is given.
      ValueError: if there is no loss, or no name.

    Example:
      >>> task = Task(
      ...     init=lambda key, record: jnp.zeros(record[0].shape),
      ...     loss=lambda params, record, key: (params @ record[0] - record[1]) ** 2,
      ... )
      >>> params = task.init(jax.random.key(0), (jnp.zeros(3), jnp.zeros(())))
      >>> float(task.loss(params, (jnp.ones(3), 2.0), jax.random.key(1)))
      4.0
    """

    init: Callable[[jax.Array, Record], PyTree]
    loss: Callable[[PyTree, Record, jax.Array], jax.Array] | None
    scores: Callable[[PyTree, Record], dict[str, jax.Array]] | None = None
    predict: Callable[[PyTree, Inputs], PyTree] | None = None
    unit_loss: Callable[..., jax.Array] | None = None
    statistics: Callable[[PyTree, Records], PyTree] | None = None
    name: str = "custom"
    check: Callable[[Records, PyTree], "WrongRecord | None"] | None = None
    measured: Callable[[Record], dict[str, jax.Array]] | None = None

    def __post_init__(self) -> None:
        for name, arguments in SIGNATURES.items():
            value = getattr(self, name)
            if not (callable(value) or (value is None and name != "init")):
                raise TypeError(f"{name} is {value!r}: give a function {name}({arguments})")
        if self.loss is None and self.unit_loss is None:
            raise ValueError(
                "loss is None, and so is unit_loss: give loss(params, record, key), the loss of "
                "one record"
            )
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name is {self.name!r}: say what is learnt in a word or two")


SIGNATURES = {
    "init": "key, record",
    "loss": "params, record, key",
    "scores": "variables, record",
    "predict": "variables, inputs",
    "unit_loss": "params, records, keys, mask",
    "statistics": "params, records",
    "measured": "record",
    "check": "records, prediction",
}


class WrongRecord(NamedTuple):
    """A record that can't be learnt.

    Attributes:
      row: its place among those that were given.
      reason: what is wrong, and the cure; never a value of the record.
    """

    row: int
    reason: str


class WithStatistics(NamedTuple):
    """What `scores` and `predict` of a task with `statistics` get in place of the parameters."""

    params: PyTree
    statistics: PyTree


def variables_of(params: PyTree, statistics: PyTree | None) -> PyTree:
    """Returns what `scores` and `predict` get: parameters, with statistics if there are some."""
    return params if statistics is None else WithStatistics(params, statistics)


def inputs_of(record: Record) -> Inputs:
    """Returns what a model sees of a record: its first part if it is a tuple, else all of it."""
    return record[0] if isinstance(record, tuple) and record else record
