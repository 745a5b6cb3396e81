"""Prepares a run before its first step: data, plan, model, keys, and where it goes on."""

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from ..datasets import feeding
from ..datasets.augmentation import AUGMENTATIONS
from ..datasets.loading import Use, load
from ..datasets.records import Dataset
from ..dpsgd import keys
from ..dpsgd.noise import draws_per_step
from ..dpsgd.plan import Plan
from ..dpsgd.privatizer import privatize
from ..gradients.explanation import explain
from ..models.build import init_params, make_model, public_statistics
from ..models.losses import make_loss, make_unit_loss
from ..types import Tell
from . import averages, freezing, public_norms
from .clipping_options import NormsOfLayers, make_clipping, units_at_a_time
from .config import Config
from .optimizer import make_optimizer
from .run import resume
from .run.fingerprint import make_fingerprint
from .run.segment import SavedSegment, draw_secrets
from .step import TrainState, init_state, make_train_step


@dataclass(frozen=True)
class Run:
    """Everything that is decided before the first step.

    Attributes:
      config: the settings.
      dataset: the records to train on and to score.
      plan: the numbers that decide privacy.
      model: a Flax module.
      state: the state before the next step.
      train_step: `(state, batch, mask) -> (state, facts)`.
      saved: the segment's secrets, configuration and fingerprint.
      frozen: the parameters that are not trained.
      statistics: a function that finds BatchNorm's statistics on public records; it returns None
        if the model has no BatchNorm.
      refresh: a function that gives a state the clipping norms of its epoch; None if they stay.
      first_step: the first step of the segment; its sampling begins there.
      repeats: whether the run goes on in the segment in which it was stopped.
    """

    config: Config
    dataset: Dataset
    plan: Plan
    model: nn.Module
    state: TrainState
    train_step: jax.stages.Wrapped
    saved: SavedSegment
    frozen: freezing.Params
    statistics: Callable[[freezing.Params], Any]
    refresh: public_norms.Refresh | None
    first_step: int = 0
    repeats: bool = False

    def released(self, state: TrainState) -> freezing.Params:
        """The parameters to score and release: the average if there is one, and the frozen ones."""
        average = averages.averaged(state.optimizer)
        return freezing.merge(state.params if average is None else average, self.frozen)

    def batches(
        self, start: int | None = None, end: int | None = None
    ) -> Iterator[tuple[feeding.Batch, np.ndarray]]:
        """Samples the records of every step and brings them to the device.

        A segment's sampling begins at its first step, and so do its shuffled epochs. The accounting
        counts them from there, too.
        """
        data_config, secrets = self.config.data, self.saved.keys
        start = self.first_step if start is None else start
        count = (self.plan.steps if end is None else end) - start
        samples = self.plan.batches(key=secrets.sampling, start=start - self.first_step)
        return feeding.feed(
            self.dataset.private,
            itertools.islice(samples, count),
            placement=data_config.placement,
            augment=AUGMENTATIONS[data_config.augment],
            step_key=functools.partial(keys.jax_key, secrets.augmentation, "augmentation"),
            start=start,
        )

    def before_step(self, step: int, state: TrainState) -> TrainState:
        """Gives the state new clipping norms before the first step of an epoch."""
        epoch_steps = public_norms.steps_per_epoch(self.config, len(self.dataset.private))
        if self.refresh is None or step == 0 or step % epoch_steps:
            return state
        return self.refresh(step, state)


def start_run(config: Config, tell: Tell = print) -> Run:
    """Loads the data, solves the plan and builds the model of a new run.

    Args:
      config: the settings.
      tell: gets a line about what takes long or is not as expected.

    Raises:
      ValueError: for any number or name that makes no sense. No budget is spent yet.
    """
    dataset = _load_data(config, tell)
    secrets = draw_secrets(config.seed)
    learner = make_learner(config, dataset, secrets.init)
    measure, norms = _measure_norms(config, dataset, learner, tell)
    plan = _make_plan(config, dataset, learner, norms, config.plan.delta, tell)
    saved = SavedSegment(config, make_fingerprint(config, dataset, plan), secrets)
    return build(config, dataset, plan, saved, learner, measure)


def resume_run(config: Config, history: resume.History, tell: Tell = print) -> Run:
    """Prepares a stopped run, so that it goes on in its segment or in a new one.

    Args:
      config: the settings; they may differ from the run's earlier ones.
      history: the history of the run. Its budget stays in force.
      tell: gets a line about what takes long or is not as expected.

    Raises:
      ValueError: for any number or name that makes no sense, for other records, for settings that
        would change what was promised, and if no step is left to take.
    """
    dataset = _load_data(config, tell, resume.earlier_data(history))
    secrets = resume.next_secrets(history)
    learner = make_learner(config, dataset, secrets.init)
    if config.training.frozen:
        frozen = resume.restore_frozen(history, learner.frozen)
        if frozen is not None:
            learner = make_learner(config, dataset, secrets.init, frozen)
    measure, norms = _measure_norms(config, dataset, learner, tell)
    delta = history.ledger.budget.delta if config.plan.delta is None else config.plan.delta
    plan = _make_plan(config, dataset, learner, norms, delta, tell)
    resume.check_budget(history, config, plan)

    newest, fingerprint = history.newest, make_fingerprint(config, dataset, plan)
    reason = resume.why_sealed(history)
    if reason is None:
        run = build(config, dataset, plan, replace(history.last, config=config), learner, measure)
        state = resume.restore(history, config, run.state, lambda line: None)
        if run.refresh and newest is not None and newest.segment < len(history.ledger.segments):
            state = run.refresh(history.step, state)  # the last segment began with this, too
        reason = resume.why_not_free(history, fingerprint, state)
        if reason is None:
            first_step = history.ledger.segments[-1].start
            return replace(run, state=state, repeats=True, first_step=first_step)

    resume.check_a_step_is_left(history, plan)
    tell(
        f"Steps that were charged stay charged, and a new segment begins, with new secrets: "
        f"{reason}."
    )
    saved = SavedSegment(config, fingerprint, secrets)
    run = build(config, dataset, plan, saved, learner, measure)
    state = resume.restore(history, config, run.state, tell)
    # The norms in the checkpoint may come from other settings or other public records.
    if run.refresh and newest is not None:
        state = run.refresh(history.step, state)
    elif measure is not None:
        state = state.with_clipping_norms(run.state.privatize.clipping.clipping_norms)
    return replace(run, state=state, first_step=history.step)


class Learner(NamedTuple):
    """The model before its first step.

    Attributes:
      model: a Flax module.
      params: the trainable parameters.
      frozen: the other parameters.
      loss: the loss of one record, `(params, x, y)`; with batch units the same as `unit_loss`.
      unit_loss: the mean loss of some records, `(params, x, y, mask)`.
    """

    model: nn.Module
    params: freezing.Params
    frozen: freezing.Params
    loss: Callable[..., jax.Array]
    unit_loss: Callable[..., jax.Array]


def make_learner(
    config: Config,
    dataset: Dataset,
    init_key: jax.Array,
    frozen: freezing.Params | None = None,
) -> Learner:
    """Builds the model and draws its parameters, except `frozen` ones from a checkpoint."""
    model = make_model(config.model, dataset)
    unit = config.clipping.clipped_unit
    params, drawn = freezing.split(
        init_params(model, keys.jax_key(init_key, "init"), dataset, unit), config.training.frozen
    )
    others = drawn if frozen is None else frozen

    def with_frozen(full_loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        if not others:
            return full_loss
        return lambda params, *records: full_loss(freezing.merge(params, others), *records)

    unit_loss = with_frozen(make_unit_loss(model, dataset, config.training.microbatch_size))
    loss = unit_loss if unit == "batch" else with_frozen(make_loss(model, dataset))
    return Learner(model, params, others, loss, unit_loss)


def build(
    config: Config,
    dataset: Dataset,
    plan: Plan,
    saved: SavedSegment,
    learner: Learner,
    measure: public_norms.Measure | None = None,
) -> Run:
    """Puts the model, the mechanism and the optimizer together, before the first step.

    Args:
      config: the settings.
      dataset: the records to train on and to score.
      plan: the numbers that decide privacy.
      saved: the segment with its secrets.
      learner: from `make_learner`.
      measure: measures the layers' norms on public records; None if clipping norms are given.
    """
    privatizer = privatize(plan, key=saved.keys.noise, allocation=config.clipping.allocation)
    optimizer = make_optimizer(config.training, plan.steps)
    return Run(
        config=config,
        dataset=dataset,
        plan=plan,
        model=learner.model,
        state=init_state(learner.params, privatizer, optimizer),
        train_step=make_train_step(
            learner.loss,
            privatizer,
            optimizer,
            units_at_a_time(config, plan),
            plan.clipping.unit,
            config.training.constant_time,
        ),
        saved=saved,
        frozen=learner.frozen,
        statistics=public_statistics(learner.model, dataset),
        refresh=public_norms.make_refresh(config, len(dataset.private), plan.clipping, measure),
    )


def _load_data(config: Config, tell: Tell, earlier: list[Use] | tuple[()] = ()) -> Dataset:
    dataset = load(config.data, tell, earlier)
    if config.data.augment == "crop_flip" and dataset.private.inputs.ndim != 4:
        raise ValueError("data.augment is crop_flip, and the records are no images: choose none")
    return dataset


def _measure_norms(
    config: Config, dataset: Dataset, learner: Learner, tell: Tell
) -> tuple[public_norms.Measure | None, NormsOfLayers | None]:
    """Finds the first clipping norms on public records, if they come from there.

    Returns:
      A function that measures them again, and the first norms for every group of layers. Both are
      None if the norms are given.
    """
    if config.clipping.norms_from == "given":
        return None, None
    public = dataset.public
    if public is None:
        raise ValueError(
            f"clipping.norms-from is {config.clipping.norms_from}, and there are no public "
            "records: name some that need no protection, as --data.private train[:90%] "
            "--data.public train[90%:]. Norms of private gradients would leak"
        )
    layers = public_norms.layers_apart(config.clipping)
    tell(f"Measuring gradient norms on {len(public):,} public records ...")
    measure = public_norms.make_measure(config, public, learner.loss, layers)
    norms = public_norms.first_norms(
        config, public, learner.unit_loss, measure, layers, learner.params
    )
    return measure, norms


def _make_plan(
    config: Config,
    dataset: Dataset,
    learner: Learner,
    norms: NormsOfLayers | None,
    delta: float | None,
    tell: Tell,
) -> Plan:
    clipping = make_clipping(config.clipping, norms)
    plan = Plan(
        num_examples=len(dataset.private),
        expected_batch_size=config.plan.expected_batch_size,
        steps=config.plan.steps,
        clipping=clipping,
        num_units=config.clipping.units if config.clipping.clipped_unit == "batch" else None,
        epsilon=config.plan.epsilon,
        noise_multiplier=config.plan.noise_multiplier,
        delta=delta,
        sampling=config.plan.sampling,
        adjacency=config.plan.adjacency,
        num_parameters=draws_per_step(clipping, clipping.groups(learner.params)),
    )
    if config.model.norm == "batch" and plan.capacity > config.training.microbatch_size:
        tell(
            f"BatchNorm takes a whole unit at once: up to {plan.capacity} records, whatever "
            f"training.microbatch-size = {config.training.microbatch_size} says. More "
            "clipping.units make them smaller."
        )
    return _with_rounding_bound(plan, config, dataset, learner, tell)


def _with_rounding_bound(
    plan: Plan, config: Config, dataset: Dataset, learner: Learner, tell: Tell
) -> Plan:
    """The plan with a bound on the rounding of its sums, if one is proved for the model.

    Tells of parameters that can't learn. Only the shapes of the records are looked at.
    """
    batch_unit = plan.clipping.unit == "batch"
    rows = (plan.capacity,) if batch_unit else ()
    example = [
        jax.ShapeDtypeStruct((*rows, *array.shape[1:]), jax.dtypes.canonicalize_dtype(array.dtype))
        for array in (dataset.private.inputs, dataset.private.labels)
    ]
    if batch_unit:
        example.append(jax.ShapeDtypeStruct(rows, bool))
    at_a_time = units_at_a_time(config, plan)
    held = explain(
        learner.loss,
        learner.params,
        tuple(example),
        unit=plan.clipping.unit,
        microbatch_size=at_a_time,
    )
    if held.warning:
        tell(held.warning)
    return plan.with_rounding_bound(at_a_time) if held.one_term else plan
