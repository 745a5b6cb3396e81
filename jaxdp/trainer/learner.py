"""What a run trains: the parameters that its task draws, and the losses that are differentiated."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ..datasets import feeding
from ..datasets.records import Records
from ..datasets.rows import shown
from ..dpsgd import keys
from ..dpsgd.devices import Layout
from ..dpsgd.groups import path_name, takes
from ..dpsgd.plan import Plan
from ..gradients.unit_loss import mean_loss
from ..tasks.task import Task
from ..types import PyTree
from . import freezing, trial
from .job import Job
from .trial import KEY

_MEASURES = "the first step measures parameters (--model.centred, Task.measured)"


class Parameters(NamedTuple):
    """The parameters of a run, before its first step."""

    params: PyTree  # the trainable ones
    frozen: PyTree
    measured: PyTree | None  # by the first step


class Learner(NamedTuple):
    """What is trained, before its first step.

    Attributes:
      params: the trainable parameters.
      frozen: those that stay as they are.
      measured: those that the first step measures; None: it measures nothing.
      loss: the loss that is differentiated, `(params, record, key, shared=(frozen, measured))`;
        with batch units the same as `unit_loss`.
      unit_loss: the mean loss of some records, `(params, records, keys, mask,
        shared=(frozen, measured))`.
      numbers_of: the numbers of a record for `measured`, in its structure.
    """

    params: PyTree
    frozen: PyTree
    measured: PyTree | None
    loss: Callable[..., jax.Array]
    unit_loss: Callable[..., jax.Array]
    numbers_of: Callable[[PyTree], PyTree] | None

    @property
    def shared(self) -> tuple[PyTree, PyTree | None]:
        """What the losses take beside the trainable parameters, before the first step."""
        return self.frozen, self.measured


def draw(job: Job, init_key: jax.Array) -> Parameters:
    """Draws the parameters, and takes the frozen ones apart.

    Raises:
      ValueError: for a task that can't be learnt with the clipping, or on these records.
    """
    task = job.task
    _check_unit(job)
    _check_measuring(job)
    drawn_by = (keys.jax_key(init_key, "init"), job.data.private.zero())
    trial.tried("init", task.init, *drawn_by)
    drawn = task.init(*drawn_by)
    trial.try_task(job, drawn)
    rest, measured = drawn, None
    if task.measured is not None:
        numbers = trial.tried("measured", task.measured, job.data.private.shape_of_one())
        _check_measured(numbers, drawn, job.options.frozen)
        rest, measured = freezing.take_out(drawn, numbers.keys())
    params, frozen = freezing.split(rest, job.options.frozen)
    trial.try_optimizer(job, params)
    return Parameters(params, frozen, measured)


def make_learner(job: Job, params: Parameters, records_at_once: int) -> Learner:
    """Puts the losses beside the parameters.

    Args:
      job: what the run is made of.
      params: its parameters.
      records_at_once: how many records of a batch unit are differentiated at a time.
    """
    task = job.task
    unit_loss = _unit_loss(task, records_at_once)

    def of_unit(params: PyTree, records: PyTree, *rest: jax.Array, shared: PyTree) -> jax.Array:
        return unit_loss(freezing.merge(params, *shared), records, *rest)

    def of_record(params: PyTree, record: PyTree, key: jax.Array, *, shared: PyTree) -> jax.Array:
        assert task.loss is not None  # `_check_unit` has looked
        return task.loss(freezing.merge(params, *shared), record, key)

    def numbers_of(record: PyTree) -> PyTree:
        assert task.measured is not None
        found = task.measured(record)
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: found[path_name(path)].astype(leaf.dtype), params.measured
        )

    loss = of_unit if job.unit == "batch" else of_record
    return Learner(
        **params._asdict(),
        loss=loss,
        unit_loss=of_unit,
        numbers_of=None if task.measured is None else numbers_of,
    )


def shape_of_example(records: Records, plan: Plan) -> tuple[PyTree, ...]:
    """The shapes of a loss's arguments after the parameters: for a record, or a batch unit."""
    rows = () if plan.num_units is None else (plan.capacity,)
    shape = lambda leaf: jax.ShapeDtypeStruct((*rows, *leaf.shape), leaf.dtype)
    record = (jax.tree.map(shape, records.shape_of_one()), shape(KEY))
    return record if plan.num_units is None else (*record, jax.ShapeDtypeStruct(rows, bool))


def shape_of_batch(
    records: Records, plan: Plan, layout: Layout | None = None
) -> tuple[feeding.Batch, jax.ShapeDtypeStruct]:
    """The shapes of the batch and the mask of a step, and where they lie."""
    rows = (plan.capacity,) if plan.num_units is None else (plan.num_units, plan.capacity)
    where = None
    if layout is not None:
        where, rows = layout.rows, (-(-rows[0] // layout.parts) * layout.parts, *rows[1:])
    array = lambda *own, dtype: jax.ShapeDtypeStruct((*rows, *own), dtype, sharding=where)
    batch = feeding.Batch(
        records=jax.tree.map(lambda x: array(*x.shape, dtype=x.dtype), records.shape_of_one()),
        ids=array(dtype=np.int32),
        key=KEY,
    )
    return batch, array(dtype=bool)


def _check_measuring(job: Job) -> None:
    clipping, steps = job.plan.clipping, job.plan.steps
    if job.task.measured is None:
        return
    if clipping.kind != "individual" or callable(getattr(clipping, "clipping_norm", None)):
        raise ValueError(
            f"{_MEASURES}, and the clipping is {clipping!r}: give individual clipping to one norm "
            "that stays (--clipping.kind individual, jaxdp.clip_individual), or measure nothing "
            "(--model.centred False, a task without `measured`)"
        )
    if steps < 2:
        raise ValueError(
            f"{_MEASURES}, and steps is {steps}: give at least 2, or measure nothing "
            "(--model.centred False)"
        )


def _check_measured(numbers: Any, params: PyTree, frozen: Sequence[str]) -> None:
    """Refuses what is no `{path: numbers}` with paths and shapes of some of the parameters."""
    arrays = isinstance(numbers, dict) and all(hasattr(x, "shape") for x in numbers.values())
    if not arrays or not numbers:
        raise ValueError(
            f"the task's measured(record) returns {shown(numbers)}: return {{path of a parameter: "
            'array}, as {"mean": record[0]}'
        )
    leaves = jax.tree_util.tree_leaves_with_path(params)
    is_real = lambda x: jax.numpy.issubdtype(x.dtype, jax.numpy.floating)
    shapes = {path_name(path): leaf.shape for path, leaf in leaves if is_real(leaf)}
    for path, number in numbers.items():
        if shapes.get(path) != number.shape or not is_real(number):
            raise ValueError(
                f"the task measures {path!r}, {shown(number)}, and the shapes of its real "
                f"parameters are {shapes}: give the path of one, and real numbers of its shape"
            )
        for pattern in frozen:
            if takes(pattern, path):
                raise ValueError(
                    f"frozen has {pattern!r}, which takes {path!r}, and the first step measures "
                    "that: leave it out"
                )
    if sum(math.prod(number.shape) for number in numbers.values()) == 0:
        raise ValueError(f"the task measures no number, {shown(numbers)}: leave measured out")
    if len(numbers) == len(leaves):
        raise ValueError(f"the task measures all its parameters {shapes}: leave some to train")
    if len(shapes) < sum(is_real(leaf) for _, leaf in leaves):
        raise ValueError("parameters share a path, and the task measures some: rename them")


def _check_unit(job: Job) -> None:
    if job.unit == "example" and job.task.loss is None:
        raise ValueError(
            "the model has BatchNorm: it mixes the examples of a batch, so that no example has a "
            "gradient of its own to clip. Use GroupNorm instead (--model.norm group), or clip "
            "batch units (--clipping.kind batch, jaxdp.clip_batch)"
        )
    if job.task.statistics is not None and job.data.public is None:
        raise ValueError(
            "the model has BatchNorm, whose statistics for evaluation and release must not come "
            "from private records, and there are no public ones: set some apart, as "
            "--data.private train[:80%] --data.public train[80%:], or use GroupNorm (--model.norm "
            "group)"
        )


def _unit_loss(task: Task, microbatch_size: int) -> Callable[..., jax.Array]:
    if task.unit_loss is not None:
        return task.unit_loss
    assert task.loss is not None  # a task has one of the two
    return mean_loss(task.loss, microbatch_size=microbatch_size)
