"""What is decided before the first step: data, plan, model, keys, and where a run goes on."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from ..datasets import augmentation, feeding, loading
from ..datasets.records import Dataset
from ..dpsgd.plan import Plan
from ..dpsgd.privatizer import privatize
from ..models.build import init_params, make_model, public_statistics
from ..models.losses import make_loss, make_unit_loss
from . import averages, freezing, public_norms
from . import config as configs
from .clipping_options import make_clipping, unit_of, units_at_a_time
from .optimizer import make_optimizer
from .run import checkpoint, resume
from .run.fingerprint import make_fingerprint
from .run.segment import SavedSegment, draw_secrets
from .step import State, init_state, make_train_step


@dataclass(frozen=True)
class Run:
    """Everything that is decided before the first step."""

    config: configs.Config
    dataset: Dataset
    plan: Plan
    model: nn.Module
    state: State
    train_step: jax.stages.Wrapped
    saved: SavedSegment
    frozen: freezing.Params  # the parameters that are not trained
    statistics: Callable[[freezing.Params], Any]  # BatchNorm's on public records, or None
    refresh: public_norms.Refresh | None  # what gives a state the clipping norms of its epoch
    first_step: int = 0  # of its segment, whose sampling begins with it
    repeats: bool = False  # whether it goes on in the segment that it was stopped in

    def released(self, state: State) -> freezing.Params:
        """What is scored and released: averages if there are any, and the frozen parameters."""
        params, (_, optimizer_state) = state
        average = averages.averaged(optimizer_state)
        return freezing.merge(params if average is None else average, self.frozen)

    def batches(
        self, start: int | None = None, end: int | None = None
    ) -> Iterator[tuple[feeding.Batch, np.ndarray]]:
        """Samples the records of every step and brings them to the device.

        A segment's sampling begins with its first step, so that shuffled epochs begin there, too:
        as many are accounted for.
        """
        data_config, secrets = self.config.data, self.saved.secrets
        start = self.first_step if start is None else start
        count = (self.plan.steps if end is None else end) - start
        samples = self.plan.batches(secrets.sampling, start - self.first_step)
        return feeding.feed(
            self.dataset.private,
            itertools.islice(samples, count),
            placement=data_config.placement,
            augment=augmentation.crop_and_flip if data_config.augment == "crop_flip" else None,
            key=secrets.augmentation,
            start=start,
        )

    def before_step(self, step: int, state: State) -> State:
        """Gives the state new clipping norms before the first step of an epoch."""
        epoch_steps = public_norms.steps_per_epoch(self.config, len(self.dataset.private))
        if self.refresh is None or step == 0 or step % epoch_steps:
            return state
        return self.refresh(step, state)


class Learner(NamedTuple):
    """The model before its first step.

    Attributes:
      params: the trainable ones.
      frozen: the others.
      loss: of what is clipped: of one record, `(params, x, y)`, or with batch units `unit_loss`.
      unit_loss: the mean over some records, `(params, x, y, mask)`.
    """

    model: nn.Module
    params: freezing.Params
    frozen: freezing.Params
    loss: Callable[..., jax.Array]
    unit_loss: Callable[..., jax.Array]


def prepare(
    config: configs.Config,
    tell: Callable[[str], None] = print,
    history: resume.History | None = None,
) -> Run:
    """Loads the data, solves the plan and builds the model.

    Args:
      config: the settings.
      tell: gets a line about what takes long or is not as expected.
      history: of the run to go on with; its budget binds.

    Raises:
      ValueError: for any number or name that makes no sense, before a budget is spent.
    """
    earlier = () if history is None else resume.earlier_data(history)
    dataset = loading.load(config.data, tell, earlier)
    if config.data.augment == "crop_flip" and dataset.private.inputs.ndim != 4:
        raise ValueError("data.augment is crop_flip, and the records are no images: choose none")
    secrets = draw_secrets(config.seed) if history is None else history.last.secrets
    learner = make_learner(config, dataset, secrets.init)
    if history is not None and history.newest is not None and config.training.frozen:
        _, arrays = checkpoint.split_frozen(history.newest.arrays)
        like = {checkpoint.FROZEN: learner.frozen}
        frozen = checkpoint.from_arrays(arrays, like)[checkpoint.FROZEN]
        learner = make_learner(config, dataset, secrets.init, frozen)
    measure, bounds = measure_bounds(config, dataset, learner, tell)
    delta = config.plan.delta
    if delta is None and history is not None:
        delta = history.ledger.budget.delta
    plan = Plan(
        num_examples=len(dataset.private),
        expected_batch_size=config.plan.expected_batch_size,
        steps=config.plan.steps,
        clipping=make_clipping(config.clipping, bounds),
        num_units=config.clipping.units if unit_of(config.clipping) == "batch" else None,
        epsilon=config.plan.epsilon,
        noise_multiplier=config.plan.noise_multiplier,
        delta=delta,
        sampling=config.plan.sampling,
        adjacency=config.plan.adjacency,
    )
    if config.model.norm == "batch" and plan.capacity > config.training.microbatch_size:
        tell(
            f"BatchNorm takes a whole unit at once: up to {plan.capacity} records, whatever "
            f"training.microbatch-size = {config.training.microbatch_size} says. More "
            "clipping.units make them smaller."
        )
    refresh = public_norms.make_refresh(config, len(dataset.private), plan.clipping, measure)
    fingerprint = make_fingerprint(config, dataset, plan)
    if history is None:
        saved = SavedSegment(config, fingerprint, secrets)
        return build(config, dataset, plan, saved, learner, refresh)

    resume.check_budget(history, config, plan)
    ledger, newest = history.ledger, history.newest
    run = build(config, dataset, plan, replace(history.last, config=config), learner, refresh)
    state = resume.restore(history, config, run.state, lambda line: None)
    if refresh and newest is not None and newest.segment < len(ledger.segments):
        state = refresh(history.step, state)  # as when the last segment began
    reason = resume.why_not_free(history, fingerprint, state)
    if reason is None:
        return replace(run, state=state, repeats=True, first_step=ledger.segments[-1].start)
    resume.check_a_step_is_left(history, plan)
    tell(
        f"Steps that were charged stay charged, and a new segment begins, with new secrets: "
        f"{reason}."
    )
    saved = SavedSegment(config, fingerprint, resume.next_secrets(history))
    run = build(config, dataset, plan, saved, learner, refresh)
    state = resume.restore(history, config, run.state, tell)
    # The norms of the checkpoint may be of other settings, or other public records.
    if refresh and newest is not None:
        state = refresh(history.step, state)
    elif measure is not None:
        params, (private, optimizer) = state
        measured = run.state[1][0].clipping
        state = params, (private._replace(clipping=measured), optimizer)
    return replace(run, state=state, first_step=history.step)


def make_learner(
    config: configs.Config,
    dataset: Dataset,
    init_key: jax.Array,
    frozen: freezing.Params | None = None,
) -> Learner:
    """Builds the model and draws its parameters; `frozen` ones come from a checkpoint, if any."""
    model = make_model(config.model, dataset)
    unit = unit_of(config.clipping)
    params, drawn = freezing.split(
        init_params(model, init_key, dataset, unit), config.training.frozen
    )
    others = drawn if frozen is None else frozen

    def with_frozen(full_loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        if not others:
            return full_loss
        return lambda params, *records: full_loss(freezing.merge(params, others), *records)

    unit_loss = with_frozen(make_unit_loss(model, dataset, config.training.microbatch_size))
    loss = unit_loss if unit == "batch" else with_frozen(make_loss(model, dataset))
    return Learner(model, params, others, loss, unit_loss)


def measure_bounds(
    config: configs.Config,
    dataset: Dataset,
    learner: Learner,
    tell: Callable[[str], None],
) -> tuple[public_norms.Measure | None, dict[tuple[str, ...], float] | None]:
    """Finds the first clipping norms on public records, where they shall come from there.

    Returns:
      What measures them again, and the first ones for every group of layers; or two times None.
    """
    if config.clipping.bounds == "given":
        return None, None
    public = dataset.public
    if public is None:
        raise ValueError(
            f"clipping.bounds is {config.clipping.bounds}, and there are no public records: name "
            "some that need no protection, as --data.private train[:90%] --data.public "
            "train[90%:]. Norms of private gradients would leak"
        )
    layers = public_norms.layers_apart(config.clipping, unit_of(config.clipping))
    tell(f"Measuring gradient norms on {len(public):,} public records ...")
    measure = public_norms.make_measure(config, public, learner.loss, layers)
    bounds = public_norms.first_bounds(
        config, public, learner.unit_loss, measure, layers, learner.params
    )
    return measure, bounds


def build(
    config: configs.Config,
    dataset: Dataset,
    plan: Plan,
    saved: SavedSegment,
    learner: Learner,
    refresh: public_norms.Refresh | None = None,
) -> Run:
    """Puts the model, the mechanism and the optimizer together, before the first step."""
    privatizer = privatize(plan, key=saved.secrets.noise, allocation=config.clipping.allocation)
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
        ),
        saved=saved,
        frozen=learner.frozen,
        statistics=public_statistics(learner.model, dataset),
        refresh=refresh,
    )
