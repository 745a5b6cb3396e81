"""Prepares a run before its first step: plan, model, keys, and where it goes on."""

import copy
import functools
import itertools
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import numpy as np

from ..datasets import feeding
from ..datasets.records import Records
from ..dpsgd import keys
from ..dpsgd.clipping import Clipping
from ..dpsgd.noise import draws_per_step
from ..dpsgd.plan import Plan
from ..dpsgd.privatizer import privatize
from ..gradients.explanation import explain
from ..gradients.jax_internals import constants
from ..gradients.unit_loss import mean_loss
from ..tasks.task import Task, variables_of
from ..types import PyTree, Tell
from . import averages, freezing, public_norms, trial
from .clipping_options import NormsOfLayers, make_clipping, units_at_a_time
from .job import Job
from .plan_settings import PlanSettings
from .release.claims import make_facts
from .run import resume
from .run.fingerprint import make_fingerprint
from .run.segment import SavedSegment, Secrets, draw_secrets
from .scoring import Scores, make_scorer
from .step import StepFacts, TrainState, init_state, make_train_step
from .trial import KEY


@dataclass(frozen=True)
class Run:
    """Everything that is decided before the first step.

    Attributes:
      job: what the run is made of.
      plan: the numbers that decide privacy.
      state: the state before the next step.
      train_step: `(state, batch, mask, frozen) -> (state, facts)`.
      saved: the segment's secrets, facts and fingerprint.
      frozen: the parameters that are not trained.
      score: a function from variables to scores on the test records.
      refresh: a function that gives a state the clipping norms of its epoch; None if they stay.
      first_step: the first step of the segment; its sampling begins there.
      repeats: whether the run goes on in the segment in which it was stopped.
    """

    job: Job
    plan: Plan
    state: TrainState
    train_step: jax.stages.Wrapped
    saved: SavedSegment
    frozen: PyTree
    score: Callable[[PyTree], Scores]
    refresh: public_norms.Refresh | None
    first_step: int = 0
    repeats: bool = False

    def take_step(
        self, state: TrainState, batch: feeding.Batch, mask: np.ndarray
    ) -> tuple[TrainState, StepFacts]:
        """Takes a step. The memory of the state is used again."""
        taken: tuple[TrainState, StepFacts] = self.train_step(state, batch, mask, self.frozen)
        return taken

    def released(self, state: TrainState) -> PyTree:
        """The parameters to score and release: the average if there is one, and the frozen ones."""
        average = averages.averaged(state.optimizer)
        return freezing.merge(state.params if average is None else average, self.frozen)

    def statistics(self, params: PyTree) -> PyTree | None:
        """BatchNorm's statistics at released parameters, from public records, if there are any."""
        task, public = self.job.task, self.job.data.public
        if task.statistics is None or public is None:
            return None
        return task.statistics(params, public.good_fields())

    def variables(self, params: PyTree) -> PyTree:
        """What the task scores and predicts with, at released parameters."""
        return variables_of(params, self.statistics(params))

    def batches(
        self, start: int | None = None, end: int | None = None
    ) -> Generator[tuple[feeding.Batch, np.ndarray], None, None]:
        """Samples the records of every step and brings them to the device.

        A segment's sampling begins at its first step, and so do its shuffled epochs. The accounting
        counts them from there, too.
        """
        secrets = self.saved.keys
        start = self.first_step if start is None else start
        count = (self.plan.steps if end is None else end) - start
        samples = self.plan.batches(key=secrets.sampling, start=start - self.first_step)
        return feeding.feed(
            self.job.data.private,
            itertools.islice(samples, count),
            step_key=functools.partial(keys.jax_key, secrets.loss, "loss"),
            placement=self.job.options.placement,
            start=start,
        )

    def before_step(self, step: int, state: TrainState) -> TrainState:
        """Gives the state new clipping norms before the first step of an epoch."""
        if self.refresh is None or step == 0 or step % self.job.steps_per_epoch:
            return state
        return self.refresh(step, state)


def start_run(job: Job, tell: Tell = print) -> Run:
    """Draws the parameters, solves the plan and builds the step of a new run.

    Args:
      job: what the run is made of.
      tell: gets a line about what takes long or is not as expected.

    Raises:
      ValueError: for any number or name that makes no sense. No budget is spent yet.
    """
    secrets = draw_secrets(job.options.seed)
    prepared = _prepare(job, make_learner(job, secrets.init), None, tell)
    return prepared.run(secrets)


def resume_run(job: Job, history: resume.History, tell: Tell = print) -> Run:
    """Prepares a stopped run, so that it goes on in its segment or in a new one.

    Args:
      job: what the run is made of; its settings may differ from the run's earlier ones.
      history: the history of the run. Its budget stays in force.
      tell: gets a line about what takes long or is not as expected.

    Raises:
      ValueError: for any number or name that makes no sense, for settings that would change what
        was promised, and if no step is left to take.
    """
    secrets = resume.next_secrets(history)
    learner = make_learner(job, secrets.init)
    if job.options.frozen:
        frozen = resume.restore_frozen(history, learner.frozen)
        learner = learner if frozen is None else learner._replace(frozen=frozen)
    prepared = _prepare(job, learner, history.ledger.budget.delta, tell)
    plan = prepared.plan
    resume.check_budget(history, job.options.seed, plan)

    newest, reason = history.newest, resume.why_sealed(history)
    if reason is None:
        run = prepared.run(history.last.keys)
        state = resume.restore(history, run.saved.clipping, run.state, lambda line: None)
        if run.refresh and newest is not None and newest.segment < len(history.ledger.segments):
            state = run.refresh(history.step, state)  # the last segment began with this, too
        reason = resume.why_not_free(history, run.saved.fingerprint, state)
        if reason is None:
            first_step = history.ledger.segments[-1].start
            return replace(run, state=state, repeats=True, first_step=first_step)

    resume.check_a_step_is_left(history, plan)
    if history.step < plan.steps:
        tell(
            "Steps that were charged stay charged, and a new segment begins, with new secrets: "
            f"{reason}."
        )
    run = prepared.run(secrets)
    state = resume.restore(history, run.saved.clipping, run.state, tell)
    # The norms in the checkpoint may come from other settings or other public records.
    if run.refresh and newest is not None:
        state = run.refresh(history.step, state)
    elif prepared.measure is not None:
        state = state.with_clipping_norms(run.state.privatize.clipping.clipping_norms)
    return replace(run, state=state, first_step=history.step)


class Learner(NamedTuple):
    """What is trained, before its first step.

    Attributes:
      params: the trainable parameters.
      frozen: the other parameters.
      loss: the loss that is differentiated, `(params, record, key, shared=(frozen,))`; with batch
        units the same as `unit_loss`.
      unit_loss: the mean loss of some records, `(params, records, keys, mask,
        shared=(frozen,))`.
    """

    params: PyTree
    frozen: PyTree
    loss: Callable[..., jax.Array]
    unit_loss: Callable[..., jax.Array]


def make_learner(job: Job, init_key: jax.Array) -> Learner:
    """Draws the parameters, and takes the frozen ones apart.

    Raises:
      ValueError: for a task that can't be learnt with the clipping, or on these records.
    """
    task = job.task
    _check_unit(job)
    drawn_by = (keys.jax_key(init_key, "init"), job.data.private.zero())
    trial.tried("init", task.init, *drawn_by)
    drawn = task.init(*drawn_by)
    trial.try_task(job, drawn)
    params, frozen = freezing.split(drawn, job.options.frozen)
    trial.try_optimizer(job, params)
    unit_loss = _unit_loss(task, job.options.microbatch_size)

    def of_unit(params: PyTree, records: PyTree, *rest: jax.Array, shared: PyTree) -> jax.Array:
        return unit_loss(freezing.merge(params, *shared), records, *rest)

    def of_record(params: PyTree, record: PyTree, key: jax.Array, *, shared: PyTree) -> jax.Array:
        assert task.loss is not None  # `_check_unit` has looked
        return task.loss(freezing.merge(params, *shared), record, key)

    return Learner(params, frozen, of_unit if job.unit == "batch" else of_record, of_unit)


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


@dataclass(frozen=True)
class _Prepared:
    """A run without its secrets: nothing in it depends on them."""

    job: Job
    plan: Plan
    learner: Learner
    train_step: jax.stages.Wrapped
    measure: public_norms.Measure | None

    def run(self, secrets: Secrets) -> Run:
        """The run with its secrets, before its first step."""
        job, plan = self.job, self.plan
        privatizer = privatize(plan, key=secrets.noise, allocation=job.options.allocation)
        state = init_state(self.learner.params, privatizer, job.averaging_optimizer)
        batch, mask = shape_of_batch(job.data.private, plan)
        program = self.train_step.trace(state, batch, mask, self.learner.frozen)
        if any(map(job.data.private.hold, constants(program.jaxpr))):
            raise ValueError(
                "the loss or the optimizer holds an array of the private rows: it would see all "
                "records at every step, past the clipping. Let them use the record that they are "
                "given, and public arrays"
            )
        saved = SavedSegment(
            facts=make_facts(job, plan, self.learner.params),
            config=job.config,
            fingerprint=make_fingerprint(job, plan, program, self.learner.frozen),
            secrets=secrets,
        )
        return Run(
            job=job,
            plan=plan,
            state=state,
            train_step=self.train_step,
            saved=saved,
            frozen=self.learner.frozen,
            score=make_scorer(job.task, job.data.test),
            refresh=public_norms.make_refresh(job, plan.clipping, self.measure),
        )


def shape_of_batch(records: Records, plan: Plan) -> tuple[feeding.Batch, jax.ShapeDtypeStruct]:
    """The shapes of the batch and the mask of a step."""
    rows = (plan.capacity,) if plan.num_units is None else (plan.num_units, plan.capacity)
    shape = lambda leaf: jax.ShapeDtypeStruct((*rows, *leaf.shape), leaf.dtype)
    batch = feeding.Batch(
        records=jax.tree.map(shape, records.shape_of_one()),
        ids=jax.ShapeDtypeStruct(rows, np.int32),
        key=KEY,
    )
    return batch, jax.ShapeDtypeStruct(rows, bool)


def _prepare(job: Job, learner: Learner, delta: float | None, tell: Tell) -> _Prepared:
    measure, norms = _measure_norms(job, learner, tell)
    plan = _make_plan(job, learner, norms, delta, tell)
    train_step = make_train_step(
        learner.loss,
        privatize(plan, allocation=job.options.allocation),
        job.averaging_optimizer,
        units_at_a_time(job.options.microbatch_size, plan),
        plan.clipping.unit,
        job.options.constant_time,
    )
    return _Prepared(job, plan, learner, train_step, measure)


def _measure_norms(
    job: Job, learner: Learner, tell: Tell
) -> tuple[public_norms.Measure | None, NormsOfLayers | None]:
    """Finds the first clipping norms on public records, if they come from there.

    Returns:
      A function that measures them again, and the first norms for every group of layers. Both are
      None if the norms are given.
    """
    settings, public = job.clipping_options, job.data.public
    if settings is None or settings.norms_from == "given":
        return None, None
    if public is None:
        raise ValueError(
            f"clipping.norms-from is {settings.norms_from}, and there are no public "
            "records: name some that need no protection, as --data.private train[:90%] "
            "--data.public train[90%:]. Norms of private gradients would leak"
        )
    layers = public_norms.layers_apart(settings)
    tell(f"Measuring gradient norms on {len(public):,} public records ...")
    measure = public_norms.make_measure(
        job, settings, public, learner.loss, layers, (learner.frozen,)
    )
    norms = public_norms.first_norms(
        job, settings, public, learner.unit_loss, measure, layers, learner.params, (learner.frozen,)
    )
    return measure, norms


def _make_plan(
    job: Job, learner: Learner, norms: NormsOfLayers | None, delta: float | None, tell: Tell
) -> Plan:
    plan = job.plan
    if isinstance(plan, PlanSettings):
        given = plan.clipping
        clipping = given if isinstance(given, Clipping) else make_clipping(given, norms)
        groups = clipping.groups(learner.params)
        plan = plan.solve(len(job.data.private), clipping, draws_per_step(clipping, groups), delta)
    else:
        plan = copy.copy(plan)  # its batches are drawn here
    size = job.options.microbatch_size
    if job.task.statistics is not None and plan.capacity > size:
        tell(
            f"BatchNorm takes a whole unit at once: up to {plan.capacity} records, whatever "
            f"training.microbatch-size = {size} says. More clipping.units make them smaller."
        )
    return _with_rounding_bound(plan, job, learner, tell)


def _with_rounding_bound(plan: Plan, job: Job, learner: Learner, tell: Tell) -> Plan:
    """The plan with a bound on the rounding of its sums, if one is proved for the task.

    Tells of parameters that can't learn. Only the shapes of the records are looked at.
    """
    batch_unit = plan.clipping.unit == "batch"
    rows = (plan.capacity,) if batch_unit else ()
    shape = lambda leaf: jax.ShapeDtypeStruct((*rows, *leaf.shape), leaf.dtype)
    example = [jax.tree.map(shape, job.data.private.shape_of_one()), shape(KEY)]
    if batch_unit:
        example.append(jax.ShapeDtypeStruct(rows, bool))
    at_a_time = units_at_a_time(job.options.microbatch_size, plan)
    held = explain(
        learner.loss,
        learner.params,
        tuple(example),
        unit=plan.clipping.unit,
        microbatch_size=at_a_time,
        shared=(learner.frozen,),
    )
    if held.warning:
        tell(held.warning)
    return plan.with_rounding_bound(at_a_time) if held.one_term else plan
