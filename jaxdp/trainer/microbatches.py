"""By which method, and how many records at a time, the gradients of a run are computed."""

from dataclasses import dataclass, replace
from typing import Literal

from ..dpsgd.clippings import clip_batch, clip_individual
from ..dpsgd.plan import Plan
from ..gradients.limit import DoesNotFit, default_method, need_of, program_of, within_limit
from ..gradients.program import Program
from ..types import Method, Tell
from .clipping_options import units_at_a_time
from .command_line import shown
from .device import free_memory
from .distributed import first
from .job import Job
from .learner import Learner, Parameters, make_learner, shape_of_example
from .memory_limit import as_size, bytes_of
from .plan_settings import PlanSettings


@dataclass(frozen=True)
class Asked:
    """What the options say."""

    microbatch_size: int | Literal["auto"]
    memory_limit: int | str | None
    method: Method


@dataclass(frozen=True)
class Microbatches:
    """What was asked for, and what is taken. It is kept in private/: the limit tells the machine.

    Attributes:
      asked: the options.
      method: the one that is taken.
      size: how many records are differentiated at a time.
      limit: the memory, in bytes, into which they were fitted; None: the options say how many.
      limit_from: where the limit comes from, in words.
    """

    asked: Asked
    method: Method
    size: int
    limit: int | None = None
    limit_from: str | None = None

    @property
    def methods(self) -> tuple[Method, Method]:
        """The method that was asked for, and the one that is taken."""
        return self.asked.method, self.method


def resolve(
    job: Job, params: Parameters, before: Microbatches | None, tell: Tell
) -> tuple[Job, Microbatches]:
    """Turns microbatch_size="auto" into a number and, if it is "auto", the method into one.

    Args:
      job: what the run is made of.
      params: its parameters.
      before: of the newest segment of a run that goes on. If nothing else is asked for now, the
        same is taken again, however much memory there is.
      tell: gets a line about what is chosen.

    Returns:
      The job with numbers in the place of "auto", and what was chosen.

    Raises:
      ValueError: if the limit is too small.
    """
    options = job.options
    asked = Asked(options.microbatch_size, options.memory_limit, options.method)
    if asked.microbatch_size != "auto":
        if before is not None and asked == Asked(before.size, None, before.method):
            return job, before  # the resumed run sets them
        return job, Microbatches(asked, asked.method, asked.microbatch_size)
    # Machines differ in what is free, and all must take the same number.
    limit, limit_from = first("memory limit", lambda: _limit(job, before))
    if before is not None and before.limit == limit and asked.method in before.methods:
        tell(f"Gradients as before: {_in_words(before)}.")
        return _with_numbers(job, before), before
    stand_in = _stand_in(job)
    try:
        method, size = _fitting(job, params, stand_in, limit)
    except DoesNotFit as error:
        raise ValueError(_too_small(job, stand_in, limit, limit_from, error.least)) from None
    chosen = Microbatches(asked, method, size, limit, limit_from)
    tell(f"Gradients: {_in_words(chosen)}, to fit into {as_size(limit)} ({limit_from}).")
    return _with_numbers(job, chosen), chosen


def describe(job: Job, learner: Learner, plan: Plan, chosen: Microbatches, parts: int) -> str:
    """The method, the number of records and an estimate of the memory, for a dry run.

    `parts` is the number of devices that have rows of their own.
    """
    rows = -(-(plan.capacity if plan.num_units is None else plan.num_units) // parts)
    at_once = min(units_at_a_time(chosen.size, plan), rows)
    program, method = _program(job, learner, plan), chosen.method
    if method == "auto":
        method = default_method(program, at_once)
    need = need_of(program, method, rows)(at_once)
    return f"Gradients: {_in_words(chosen)}, in about {as_size(need)} by an estimate."


def _in_words(chosen: Microbatches) -> str:
    records = "1 record" if chosen.size == 1 else f"{chosen.size} records"
    return f"{records} at a time by method {chosen.method}"


def _with_numbers(job: Job, chosen: Microbatches) -> Job:
    """The job as if its options had the numbers. So has the configuration that the run keeps."""
    size, method, config = chosen.size, chosen.method, job.config
    options = replace(job.options, microbatch_size=size, method=method, memory_limit=None)
    if config is not None:
        training = replace(config.training, microbatch_size=size, method=method, memory_limit=None)
        config = replace(config, training=training)
    return replace(job, options=options, config=config)


def _limit(job: Job, before: Microbatches | None) -> tuple[int, str]:
    """The limit in bytes, and where it comes from: the options, the run, or what is free."""
    given = job.options.memory_limit
    if given is not None:
        return bytes_of(_option(job), given), f"{_option(job)} {given}"
    if before is not None and before.limit is not None and before.limit_from is not None:
        return before.limit, before.limit_from
    free = free_memory()
    if free is None:
        raise ValueError(
            f"this device does not tell how much memory is free: give {_option(job)}, as 4GB"
        )
    return free // 2, "half of what is free"


def _option(job: Job, name: str = "memory_limit") -> str:
    """An option as its user writes it: in the command, or in `fit`."""
    return name if job.config is None else shown(f"training.{name}")


def _stand_in(job: Job) -> Plan:
    """A plan with the batches of the run. Its noise is nobody's: it is solved later."""
    if isinstance(job.plan, Plan):
        return job.plan
    plan: PlanSettings = replace(job.plan, epsilon=None, noise_multiplier=1.0)
    clipping = clip_batch(1.0) if job.unit == "batch" else clip_individual(1.0)
    return plan.solve(len(job.data.private), clipping, 1, None)


def _program(job: Job, learner: Learner, plan: Plan) -> Program:
    example = shape_of_example(job.data.private, plan)
    return program_of(learner.loss, learner.params, example, learner.shared)


def _fitting(job: Job, params: Parameters, plan: Plan, limit: int) -> tuple[Method, int]:
    """The method and the number of records that fit. Raises DoesNotFit."""
    asked = job.options.method
    program = lambda size: _program(job, make_learner(job, params, size), plan)
    if plan.num_units is None:
        return within_limit(program(1), limit, asked, plan.capacity, None, "example")
    try:
        units = within_limit(
            program(plan.capacity), limit, asked, plan.num_units, None, "batch unit"
        )
        return units[0], units[1] * plan.capacity
    except DoesNotFit:
        if job.task.unit_loss is not None:
            raise  # it takes a whole unit at a time
    # One unit at a time, and a part of it at a time.
    size = plan.capacity
    while True:
        size = max(1, size // 2)
        try:
            method, _ = within_limit(program(size), limit, asked, plan.num_units, 1, "batch unit")
            return method, size
        except DoesNotFit:
            if size == 1:
                raise


def _too_small(job: Job, plan: Plan, limit: int, limit_from: str, least: int) -> str:
    what, cure = "1 record", "or make the records smaller"
    if job.unit == "batch" and job.task.unit_loss is not None:
        what, cure = f"a unit of {plan.capacity} records", "or more clipping.units"
    if job.options.method != "auto":
        cure = f"or {_option(job, 'method')} auto"
    return (
        f"the memory for gradients is {limit:,} bytes ({limit_from}), and that of {what} may take "
        f"{least:,}: give {_option(job)} of at least {as_size(least)}, {cure}"
    )
