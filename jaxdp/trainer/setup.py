"""Prepares a run before its first step: plan, model, keys, and where it goes on."""

import copy
import functools
import itertools
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

import jax
import numpy as np

from ..datasets import feeding
from ..dpsgd import devices, keys
from ..dpsgd.clipping import Clipping
from ..dpsgd.devices import Layout
from ..dpsgd.noise import draws_per_step
from ..dpsgd.plan import Plan
from ..dpsgd.privatizer import privatize
from ..gradients.explanation import explain
from ..gradients.jax_internals import constants
from ..tasks.task import variables_of
from ..types import PyTree, Tell
from . import averages, freezing, mesh, microbatches, public_norms
from .clipping_options import NormsOfLayers, make_clipping, units_at_a_time
from .distributed import arrays_from_first, first
from .job import Job
from .learner import Learner, Parameters, draw, make_learner, shape_of_batch, shape_of_example
from .mesh import make_layout
from .microbatches import Microbatches
from .plan_settings import PlanSettings
from .release.claims import make_facts
from .run import resume
from .run.fingerprint import check_same_computation, make_fingerprint
from .run.segment import SavedSegment, Secrets, draw_secrets
from .scoring import Scores, make_scorer
from .step import StepFacts, TrainState, init_state, make_train_step


@dataclass(frozen=True)
class Run:
    """Everything that is decided before the first step.

    Attributes:
      job: what the run is made of.
      plan: the numbers that decide privacy.
      state: the state before the next step.
      train_step: `(state, batch, mask, frozen) -> (state, facts)`.
      saved: the segment's secrets, facts and fingerprint.
      learner: the first parameters and the loss.
      score: a function from variables to scores on the test records.
      refresh: a function that gives a state the clipping norms of its epoch; None if they stay.
      first_step: the first step of the segment; its sampling begins there.
      repeats: whether the run goes on in the segment in which it was stopped.
      placed: the parameters that are not trained, on the devices of the step.
      layout: how a step is shared out to several devices; None: there is one.
    """

    job: Job
    plan: Plan
    state: TrainState
    train_step: jax.stages.Wrapped
    saved: SavedSegment
    learner: Learner
    score: Callable[[PyTree], Scores]
    refresh: public_norms.Refresh | None
    placed: PyTree
    first_step: int = 0
    repeats: bool = False
    layout: Layout | None = None

    @property
    def frozen(self) -> PyTree:
        """The parameters that stay as they were drawn."""
        return self.learner.frozen

    def laid_out(self, state: TrainState) -> TrainState:
        """A state on the devices where that before the first step is."""
        if self.layout is None:
            return state
        place = lambda x, like: like if x is like else devices.put(x, like.sharding)
        return jax.tree.map(place, state, self.state)

    def take_step(
        self, state: TrainState, batch: feeding.Batch, mask: np.ndarray
    ) -> tuple[TrainState, StepFacts]:
        """Takes a step. The memory of the state is used again."""
        taken: tuple[TrainState, StepFacts] = self.train_step(state, batch, mask, self.placed)
        return taken

    def released(self, state: TrainState) -> PyTree:
        """The parameters to score and release: the average if there is one, and all others."""
        average = averages.averaged(state.optimizer)
        params = state.params if average is None else average
        return freezing.merge(params, self.frozen, state.measured)

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
            dealer=self.layout,
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
    prepared = _prepare(job, draw(job, secrets.init), None, tell)
    return prepared.run(secrets)


def resume_run(job: Job, history: resume.History | None, tell: Tell = print) -> Run:
    """Prepares a stopped run, so that it goes on in its segment or in a new one.

    Args:
      job: what the run is made of; its settings may differ from the run's earlier ones.
      history: the history of the run. Its budget stays in force. None: process 0 has it.
      tell: gets a line about what takes long or is not as expected.

    Raises:
      ValueError: for any number or name that makes no sense, for settings that would change what
        was promised, and if no step is left to take.
    """
    past = resume.past_of(history)
    secrets = resume.next_secrets(past)
    params = draw(job, secrets.init)
    if job.options.frozen and history is not None:
        frozen = resume.restore_frozen(history, params.frozen)
        params = params if frozen is None else params._replace(frozen=frozen)
    prepared = _prepare(job, params, past, tell)
    plan = prepared.plan
    if history is not None:
        resume.check_budget(history, job.options.seed, plan)

    reason = resume.why_sealed(past)
    if reason is None:
        assert past.secrets is not None
        run = prepared.run(past.secrets)
        state = _restored(run, history, lambda line: None)
        if run.refresh and past.has_checkpoint and not past.is_current:
            state = run.refresh(past.step, state)  # the last segment began with this, too
        reason = _why_not_free(run, history, state)
        if reason is None:
            return replace(run, state=state, repeats=True, first_step=past.start)

    if history is not None:
        resume.check_a_step_is_left(history, plan)
    if past.step < plan.steps:
        tell(
            "Steps that were charged stay charged, and a new segment begins, with new secrets: "
            f"{reason}."
        )
    run = prepared.run(secrets)
    state = _restored(run, history, tell)
    # The norms in the checkpoint may come from other settings or other public records.
    if run.refresh and past.has_checkpoint:
        state = run.refresh(past.step, state)
    elif prepared.measure is not None:
        state = state.with_clipping_norms(run.state.privatize.clipping.clipping_norms)
    return replace(run, state=state, first_step=past.step)


def _restored(run: Run, history: resume.History | None, tell: Tell) -> TrainState:
    """The state of a run's newest checkpoint, on its devices."""
    state = devices.held(run.state)
    if history is not None:
        state = resume.restore(history, run.saved.clipping, state, tell)
    return run.laid_out(arrays_from_first("the state", state))


def _why_not_free(run: Run, history: resume.History | None, state: TrainState) -> str | None:
    held = devices.held(state)

    def why() -> str | None:
        assert history is not None
        return resume.why_not_free(history, run.saved.fingerprint, held)

    return first("why a segment begins", why)


@dataclass(frozen=True)
class _Prepared:
    """A run without its secrets: nothing in it depends on them."""

    job: Job
    plan: Plan
    learner: Learner
    train_step: jax.stages.Wrapped
    measure: public_norms.Measure | None
    chosen: Microbatches
    layout: Layout | None

    def run(self, secrets: Secrets) -> Run:
        """The run with its secrets, before its first step."""
        job, plan = self.job, self.plan
        privatizer = privatize(plan, key=secrets.noise, allocation=job.options.allocation)
        learner = self.learner
        params = learner.params if self.layout is None else self.layout.place(learner.params)
        state = init_state(params, privatizer, job.averaging_optimizer, learner.measured)
        if self.layout is not None:
            state = self.layout.spread(state)
        batch, mask = shape_of_batch(job.data.private, plan, self.layout)
        frozen = self.learner.frozen if self.layout is None else self.layout.spread(learner.frozen)
        program = self.train_step.trace(state, batch, mask, frozen)
        if any(map(job.data.real.hold, constants(program.jaxpr))):
            raise ValueError(
                "the loss or the optimizer holds an array of the private rows: it would see all "
                "records at every step, past the clipping. Let them use the record that they are "
                "given, and public arrays"
            )
        fingerprint = make_fingerprint(job, plan, program, self.learner.frozen)
        check_same_computation(fingerprint)
        saved = SavedSegment(
            facts=make_facts(job, plan, self.learner.params),
            config=job.config,
            fingerprint=fingerprint,
            microbatches=self.chosen,
            secrets=secrets,
        )
        return Run(
            job=job,
            plan=plan,
            state=state,
            train_step=self.train_step,
            saved=saved,
            learner=self.learner,
            score=make_scorer(job.task, job.data.test),
            refresh=public_norms.make_refresh(job, plan.clipping, self.measure),
            placed=frozen,
            layout=self.layout,
        )


def _prepare(
    job: Job,
    params: Parameters,
    past: resume.Past | None,
    tell: Tell,
) -> _Prepared:
    params = arrays_from_first("the parameters", params)
    before = None if past is None else past.microbatches
    delta = None if past is None else past.delta
    job, chosen = microbatches.resolve(job, params, before, tell)
    options = job.options
    layout = make_layout(options.mesh)
    learner = make_learner(job, params, options.records_at_once)
    if layout is not None:
        tell(mesh.describe(layout, learner.params))
    measure, norms = _measure_norms(job, learner, tell)
    plan = _make_plan(job, learner, norms, delta, layout, tell)
    train_step = make_train_step(
        learner.loss,
        privatize(plan, allocation=options.allocation),
        job.averaging_optimizer,
        units_at_a_time(options.records_at_once, plan),
        options.method,
        plan.clipping.unit,
        options.constant_time,
        learner.numbers_of,
        layout,
    )
    return _Prepared(job, plan, learner, train_step, measure, chosen, layout)


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
    measure = public_norms.make_measure(job, settings, public, learner.loss, layers, learner.shared)
    norms = public_norms.first_norms(
        job, settings, public, learner.unit_loss, measure, layers, learner.params, learner.shared
    )
    # Machines may differ in the last bits.
    values = first("first clipping norms", lambda: [*norms.values()])
    return measure, dict(zip(norms, values, strict=True))


def _make_plan(
    job: Job,
    learner: Learner,
    norms: NormsOfLayers | None,
    delta: float | None,
    layout: Layout | None,
    tell: Tell,
) -> Plan:
    plan = job.plan
    if isinstance(plan, PlanSettings):
        given = plan.clipping
        clipping = given if isinstance(given, Clipping) else make_clipping(given, norms)
        draws = max(
            draws_per_step(clipping, clipping.groups(params))
            for params in (learner.params, learner.measured)
            if params is not None
        )
        plan = plan.solve(len(job.data.private), clipping, draws, delta)
    else:
        plan = copy.copy(plan)  # its batches are drawn here
    size = job.options.records_at_once
    if job.task.statistics is not None and plan.capacity > size:
        tell(
            f"BatchNorm takes a whole unit at once: up to {plan.capacity} records, whatever "
            f"training.microbatch-size = {size} says. More clipping.units make them smaller."
        )
    parts = 1 if layout is None else layout.parts
    return _with_rounding_bound(plan, job, learner, parts, tell)


def _with_rounding_bound(plan: Plan, job: Job, learner: Learner, parts: int, tell: Tell) -> Plan:
    """The plan with a bound on the rounding of its sums, if one is proved for the task.

    Tells of parameters that can't learn. Only the shapes of the records are looked at.
    """
    options = job.options
    at_a_time = units_at_a_time(options.records_at_once, plan)
    held = explain(
        learner.loss,
        learner.params,
        shape_of_example(job.data.private, plan),
        method="auto" if options.method == "vmap" else options.method,
        unit=plan.clipping.unit,
        microbatch_size=at_a_time,
        shared=learner.shared,
    )
    if held.warning:
        tell(held.warning)
    one_term = options.method == "vmap" or held.one_term  # vmap holds every gradient as one array
    return plan.with_rounding_bound(at_a_time, parts) if one_term else plan
